"""The one transform from an image to a network's input, in training's evaluation and in service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dicom_node.resize import square as draw_square

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

# A picture of one grey would be divided by nothing; below this deviation (of a range of 1) there is no image.
_LEAST_DEVIATION = 1e-4
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as torchvision's weights expect
_LEVELS = 256
PER_IMAGE, IMAGENET, CENTRED, EQUALISED, NONE = STANDARDISATIONS = (
    "per image", "imagenet", "centred", "equalised", "none",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Square resize with antialias to `resize`, centre crop to `crop` (pixels), standardisation.

    Attributes
    ----------
    resolution
        Side, in pixels, of a smaller square that the image is drawn to first: collections differ in their sharpness.
        0 is none.
    """

    resize: int
    crop: int
    standardise: str = PER_IMAGE
    resolution: int = 0

    def __post_init__(self) -> None:
        """Refuse a crop that does not lie in the middle of whole pixels."""
        if not 0 <= self.resolution <= self.resize:
            raise ValueError(f"resolution {self.resolution} is not from 0 to the {self.resize} pixels of resize")
        if not 0 < self.crop <= self.resize or (self.resize - self.crop) % 2:
            raise ValueError(f"crop {self.crop} does not lie centred in {self.resize} pixels")
        if self.standardise not in STANDARDISATIONS:
            raise ValueError(f"standardise {self.standardise!r} is not known; known: {', '.join(STANDARDISATIONS)}")

    @classmethod
    def from_manifest(cls, preprocessing: Mapping[str, float | int | str]) -> Preprocess:
        """The transform that `to_manifest` described; anything else is a ValueError."""
        given = dict(preprocessing)
        how = str(given.get("standardise", ""))
        resize, crop, resolution = (int(given.get(name, 0)) for name in ("resize", "crop", "resolution"))
        transform = cls(resize, crop, how, resolution)
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
            **({"resolution": self.resolution} if self.resolution else {}),
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
        return self.finish(square(image, *self.square)[None])[0]

    @property
    def square(self) -> tuple[int, int]:
        """Side and resolution of the square that the image is drawn to; `finish` makes the rest of it."""
        return self.resize, self.resolution

    def finish(self, squares: Tensor) -> Tensor:
        """The network's inputs from images drawn to squares, shape (N, 1, resize, resize), in [0, 1]."""
        start = (self.resize - self.crop) // 2
        window = slice(start, start + self.crop)
        return standardise(squares[:, :, window, window], self.standardise)


def square(image: NDArray[np.float32], side: int, resolution: int = 0) -> Tensor:
    """The image as `dicom_node.resize.square` draws it, shape (1, side, side)."""
    return torch.from_numpy(draw_square(image, side, resolution))[None]


def standardise(pixels: Tensor, how: str) -> Tensor:
    """The last step of the transform, in training and in service.

    Parameters
    ----------
    pixels
        Shape (N, 1, H, W), in [0, 1].
    how
        ``per image``: zero mean and unit deviation over each image, zeros where there is no contrast. ``imagenet``:
        three equal channels, by the mean and deviation of each channel of ImageNet. ``centred``: from -1 to 1, as
        EfficientNet-Lite's weights expect. ``equalised``: each pixel's rank among the image's pixels, from -1 to 1
        (histogram equalisation, 256 grey levels). ``none``: as it is.
    """
    if how == PER_IMAGE:
        deviation, mean = torch.std_mean(pixels.double(), dim=(-2, -1), correction=0, keepdim=True)
        return ((pixels - mean) / deviation.clamp_min(_LEAST_DEVIATION)).float()
    if how == IMAGENET:
        mean, deviation = (torch.tensor(v, device=pixels.device).view(1, 3, 1, 1) for v in (_MEAN, _DEVIATION))
        return (pixels - mean) / deviation
    if how == CENTRED:
        return pixels * 2 - 1
    if how == EQUALISED:
        return _rank(pixels) * 2 - 1
    return pixels


def _rank(pixels: Tensor) -> Tensor:
    """The share of an image's pixels that are darker, half of the equally dark ones among them; from 0 to 1."""
    count = len(pixels)
    levels = (pixels * (_LEVELS - 1)).round().long().clamp(0, _LEVELS - 1).view(count, -1)
    levels = levels + _LEVELS * torch.arange(count, device=pixels.device)[:, None]
    each = torch.bincount(levels.flatten(), minlength=_LEVELS * count).view(count, _LEVELS)
    below = (each.cumsum(dim=1) - each / 2) / levels.shape[1]
    return below.flatten()[levels].view_as(pixels).float()
