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
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as torchvision's weights expect
PER_IMAGE, IMAGENET, CENTRED, NONE = STANDARDISATIONS = ("per image", "imagenet", "centred", "none")


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Square resize with antialias to `resize`, centre crop to `crop` (pixels), standardisation."""

    resize: int
    crop: int
    standardise: str = PER_IMAGE

    def __post_init__(self) -> None:
        """Refuse a crop that does not lie in the middle of whole pixels."""
        if not 0 < self.crop <= self.resize or (self.resize - self.crop) % 2:
            raise ValueError(f"crop {self.crop} does not lie centred in {self.resize} pixels")
        if self.standardise not in STANDARDISATIONS:
            raise ValueError(f"standardise {self.standardise!r} is not known; known: {', '.join(STANDARDISATIONS)}")

    @classmethod
    def from_manifest(cls, preprocessing: Mapping[str, float | int | str]) -> Preprocess:
        """The transform that `to_manifest` described; anything else is a ValueError."""
        given = dict(preprocessing)
        how = str(given.get("standardise", ""))
        transform = cls(int(given.get("resize", 0)), int(given.get("crop", 0)), how)
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
            "standardise": self.standardise,
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
        float32, shape (1, crop, crop), or (3, crop, crop) where ImageNet's statistics of three channels are used.
        """
        start = (self.resize - self.crop) // 2
        window = slice(start, start + self.crop)
        return standardise(square(image, self.resize)[None, :, window, window], self.standardise)[0]


def square(image: NDArray[np.float32], side: int) -> Tensor:
    """The image drawn to a square, shape (1, side, side); its aspect is not kept, as in the paper."""
    pixels = torch.from_numpy(np.array(image, dtype=np.float32))[None, None]
    return functional.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True, align_corners=False)[0]


def standardise(pixels: Tensor, how: str) -> Tensor:
    """The last step of the transform, in training and in service.

    Parameters
    ----------
    pixels
        Shape (N, 1, H, W), in [0, 1].
    how
        ``per image``: zero mean and unit deviation over each image, zeros where there is no contrast. ``imagenet``:
        three equal channels, by the mean and deviation of each channel of ImageNet. ``centred``: from -1 to 1, as
        EfficientNet-Lite's weights expect. ``none``: as it is.
    """
    if how == PER_IMAGE:
        deviation, mean = torch.std_mean(pixels.double(), dim=(-2, -1), correction=0, keepdim=True)
        return ((pixels - mean) / deviation.clamp_min(_LEAST_DEVIATION)).float()
    if how == IMAGENET:
        mean, deviation = (torch.tensor(v, device=pixels.device).view(1, 3, 1, 1) for v in (_MEAN, _DEVIATION))
        return (pixels - mean) / deviation
    if how == CENTRED:
        return pixels * 2 - 1
    return pixels
