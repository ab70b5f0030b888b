"""The one transform from an image to a network's input, in training's evaluation and in service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor

# A picture of one grey would be divided by nothing; below this deviation (of a range of 1) there is no image.
_LEAST_DEVIATION = 1e-4


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Square resize with antialias to `resize`, centre crop to `crop` (pixels), per-image standardisation."""

    resize: int
    crop: int

    def __post_init__(self) -> None:
        """Refuse a crop that does not lie in the middle of whole pixels."""
        if not 0 < self.crop <= self.resize or (self.resize - self.crop) % 2:
            raise ValueError(f"crop {self.crop} does not lie centred in {self.resize} pixels")

    @classmethod
    def from_manifest(cls, preprocessing: Mapping[str, float | int | str]) -> Preprocess:
        """The transform that `to_manifest` described; anything else is a ValueError."""
        given = dict(preprocessing)
        transform = cls(int(given.get("resize", 0)), int(given.get("crop", 0)))
        if given != transform.to_manifest():
            raise ValueError(f"preprocessing {given} is not known; this version knows {transform.to_manifest()}")
        return transform

    def to_manifest(self) -> dict[str, float | int | str]:
        """Plain values that say all of the transform."""
        return {
            "input": "float32 in [0, 1], MONOCHROME2",
            "resize": self.resize,
            "interpolation": "bilinear, antialias",
            "crop": self.crop,
            "standardise": "per image",
        }

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(top, left, height, width) of the crop as fractions of the source's rows and columns."""
        margin, side = (self.resize - self.crop) / 2 / self.resize, self.crop / self.resize
        return (margin, margin, side, side)

    def __call__(self, image: NDArray[np.float32]) -> Tensor:
        """The network's input.

        Parameters
        ----------
        image
            float32, shape (H, W), in [0, 1], MONOCHROME2 sense (PS3.3 C.7.6.3.1.2).

        Returns
        -------
        float32, shape (1, crop, crop), zero mean and unit deviation; all zero for a picture of one grey.
        """
        start = (self.resize - self.crop) // 2
        window = slice(start, start + self.crop)
        return standardise(square(image, self.resize)[:, window, window])


def square(image: NDArray[np.float32], side: int) -> Tensor:
    """The image drawn to a square, shape (1, side, side); its aspect is not kept, as in the paper."""
    pixels = torch.from_numpy(np.array(image, dtype=np.float32))[None, None]
    return functional.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True, align_corners=False)[0]


def standardise(pixels: Tensor) -> Tensor:
    """Zero mean and unit deviation over the last two axes; zeros where there is no contrast."""
    deviation, mean = torch.std_mean(pixels.double(), dim=(-2, -1), correction=0, keepdim=True)
    return ((pixels - mean) / deviation.clamp_min(_LEAST_DEVIATION)).float()
