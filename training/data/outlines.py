"""Outlines of lungs that come with the images: masks, or boxes."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image
from torch.nn import functional

from dicom_node.domain import NodeError
from training.data.squares import pixels_of
from training.models.preprocess import square

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from training.data.manifest import Picture
    from training.models.preprocess import Preprocess

MASKS, BOXES = "masks", "lung_boxes.json"
OF_MASK, OF_BOXES = "mask", "boxes"


_Box = tuple[float, float, float, float]  # left, top, width, height in pixels of the image


class Outline(NamedTuple):
    """Where the lungs are: `inside` has the image's own shape (H, W); `origin` is "mask" or "boxes"."""

    origin: str
    inside: NDArray[np.bool_]


def outlines(data: Path, pictures: Sequence[Picture]) -> dict[str, Outline]:
    """The outlines by image id; one that cannot be read, or has none, or no lungs in it, is left out.

    `masks/IMAGE_ID.png` and `lung_boxes.json` are looked for in the folder of the manifest, of the image, and the one
    above that.

    Parameters
    ----------
    data
        The manifest, or its folder.
    """
    folder = data if data.is_dir() else data.parent
    boxes_in = cache(_boxes)
    found: dict[str, Outline] = {}
    for picture in pictures:
        for place in (folder, *picture.path.absolute().parents[:2]):
            mask, boxes = place / MASKS / f"{picture.image_id}.png", boxes_in(place).get(picture.image_id, [])
            if mask.is_file() or boxes:
                with suppress(NodeError):
                    shape = pixels_of(picture).shape
                    found[picture.image_id] = _drawn_mask(mask, shape) if mask.is_file() else _drawn_boxes(boxes, shape)
                break
    return {image_id: outline for image_id, outline in found.items() if outline.inside.any()}


def _drawn_mask(mask: Path, shape: Sequence[int]) -> Outline:
    height, width = shape
    with Image.open(mask) as image:
        drawn = image.convert("L").resize((width, height), Image.Resampling.NEAREST)
    return Outline(OF_MASK, np.asarray(drawn) > 0)


def _drawn_boxes(boxes: Sequence[_Box], shape: Sequence[int]) -> Outline:
    inside = np.zeros(shape, dtype=bool)
    for left, top, width, height in boxes:
        rows = slice(max(round(top), 0), max(round(top + height), 0))
        inside[rows, max(round(left), 0) : max(round(left + width), 0)] = True
    return Outline(OF_BOXES, inside)


def lung_share(inside: NDArray[np.bool_], transform: Preprocess, cells: Sequence[int]) -> Tensor:
    """How much of each cell of a heatmap is lung; the cells tile the network's input."""
    start = (transform.resize - transform.crop) // 2
    window = slice(start, start + transform.crop)
    seen = square(inside.astype(np.float32), transform.resize)[:, window, window]
    return functional.adaptive_avg_pool2d(seen[None], (cells[0], cells[1]))[0, 0]


def _boxes(place: Path) -> dict[str, list[_Box]]:
    """Of each lung, by image id."""
    file = place / BOXES
    if not file.is_file():
        return {}
    return {
        image_id: [tuple(lung["box"]) for lung in lungs_of]
        for image_id, lungs_of in json.loads(file.read_text(encoding="utf-8")).items()
    }
