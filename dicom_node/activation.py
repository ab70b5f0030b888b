"""Where the networks looked: the maps of a prediction taken together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from dicom_node.heatmap import mean_activation, shares

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dicom_node.bundle import Manifest
    from dicom_node.domain import MemberMap

_GRID = 256  # cells along the longer side
_STRONG = 0.5  # of the maximum


def strongest_region(
    maps: Sequence[MemberMap], manifest: Manifest, rows: int, columns: int
) -> tuple[float, float, float, float] | None:
    """(top, left, height, width) as fractions of the source: the box of the connected part with the strongest point.

    None without maps or without activation.
    """
    longer = max(rows, columns)
    height, width = max(1, round(rows * _GRID / longer)), max(1, round(columns * _GRID / longer))
    heat = mean_activation(maps, height, width, shares(maps, manifest)) if maps else np.zeros((1, 1), np.float32)
    if not heat.max() > 0:
        return None
    _, labels, boxes, _ = cv2.connectedComponentsWithStats((heat >= _STRONG).astype(np.uint8))
    left, top, wide, high = boxes[labels[np.unravel_index(int(heat.argmax()), heat.shape)]][:4]
    return float(top) / height, float(left) / width, float(high) / height, float(wide) / width
