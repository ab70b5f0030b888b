"""The heatmap: the X-ray with what the members looked at over it, as a Secondary Capture.

The picture is drawn from the archived maps; the network does not run again. Nothing that identifies the patient is
drawn: the archive shows that itself, and Burned In Annotation (0028,0301) stays what the source says.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import cv2
import numpy as np
from highdicom import SpecificCharacterSetValues, sr  # noqa: F401
from highdicom.sc import SCImage
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node import __version__, uids
from dicom_node.domain import MANUFACTURER, MODEL_NAME
from dicom_node.normalise import CHARACTER_SET
from dicom_node.report import check, equipment, find_target, local_time, seal, thresholds, weights_sha256

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from numpy.typing import NDArray

    from dicom_node.bundle import Manifest
    from dicom_node.domain import MemberMap, Prediction

BANNER = "RESEARCH - NOT FOR DIAGNOSTIC USE"
NO_HEATMAP = "No heatmap: the prediction has no maps."
CAPTION = "Colour: where the networks looked, relative to the strongest point. Not the extent of disease."
SERIES_NUMBER = 9001
SERIES_DESCRIPTION = "AI heatmap - RESEARCH, NOT FOR DIAGNOSTIC USE"

# Opacity of the overlay at full activation: the X-ray stays legible below.
OPACITY = 0.55
CONTOUR_AT = 0.5  # of the maximum

_BACKGROUND = (16, 18, 20)
_TEXT = (236, 238, 240)
_QUIET = (176, 182, 188)
_BANNER = (255, 205, 0)
_BANNER_TEXT = (0, 0, 0)
_FLAGGED = (255, 138, 76)
_NOT_FLAGGED = (150, 205, 255)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parts of a picture lie, in pixels; `xray` and `bar` are (top, left, height, width).

    `bar` is None in a picture without maps.
    """

    height: int
    width: int
    xray: tuple[int, int, int, int]
    bar: tuple[int, int, int, int] | None
    text: int


def fit(rows: int, columns: int, size: int) -> tuple[int, int]:
    """(height, width) of the X-ray at its own aspect with `size` as the longer side."""
    longer = max(rows, columns)
    return max(1, round(rows * size / longer)), max(1, round(columns * size / longer))
