"""Random changes of training images, by the ranges of a recipe."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from training.models.preprocess import standardise

if TYPE_CHECKING:
    from torch import Tensor

    from training.recipe import Augmentation


def augment(squares: Tensor, crop: int, how: str, ranges: Augmentation, generator: torch.Generator) -> Tensor:
    """Training inputs of a batch.

    Parameters
    ----------
    squares
        uint8, shape (N, side, side).
    crop
        Side of the input in pixels.
    how
        The network's standardisation, as `training.models.preprocess.Preprocess` has it.
    generator
        On the device of `squares`.

    Returns
    -------
    float32, shape (N, 1, crop, crop), or of three channels where `how` makes them.
    """
    # In float32 as in service: a sampling grid of bfloat16 would move pixels by a column.
    with torch.autocast(squares.device.type, enabled=False):
        return _augment(squares, crop, how, ranges, generator)


def _augment(squares: Tensor, crop: int, how: str, ranges: Augmentation, generator: torch.Generator) -> Tensor:
    pixels = _warp(squares[:, None].float() / 255, crop, ranges, generator).clamp(0, 1)
    if ranges.gamma:
        pixels = pixels ** torch.exp(_uniform(pixels, -ranges.gamma, ranges.gamma, generator))
    if ranges.contrast != (1.0, 1.0):
        mean = pixels.mean(dim=(-2, -1), keepdim=True)
        pixels = mean + (pixels - mean) * _uniform(pixels, *ranges.contrast, generator)
    if ranges.brightness:
        pixels = pixels + _uniform(pixels, -ranges.brightness, ranges.brightness, generator)
    pixels = pixels.clamp(0, 1)
    if ranges.blur_px:
        pixels = _blur(pixels, ranges.blur_px, generator)
    pixels = standardise(pixels, how)
    if ranges.jitter:
        pixels = pixels * _uniform(pixels, 1 - ranges.jitter, 1 + ranges.jitter, generator)
        pixels = pixels + _uniform(pixels, -ranges.jitter, ranges.jitter, generator)
    if ranges.noise:
        noise = torch.randn(pixels.shape, generator=generator, device=pixels.device)
        pixels = pixels + noise * _uniform(pixels, 0, ranges.noise, generator)
    return pixels * _kept(pixels, ranges.erase, generator) if ranges.erase else pixels


def _uniform(like: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    """One draw per image, shape (N, 1, 1, 1)."""
    draws = torch.rand((len(like), 1, 1, 1), generator=generator, device=like.device)
    return low + (high - low) * draws


def _warp(pixels: Tensor, crop: int, ranges: Augmentation, generator: torch.Generator) -> Tensor:
    """Zoom, rotation, shear, flip, shift and crop in one interpolation."""

    def draw(low: float, high: float) -> Tensor:
        return _uniform(pixels, low, high, generator).flatten()

    scale = crop / pixels.shape[-1] / draw(*ranges.zoom)
    angle = math.radians(ranges.rotation_deg) * draw(-1, 1)
    shear = torch.tan(math.radians(ranges.shear_deg) * draw(-1, 1))
    flip = torch.where(draw(0, 1) < ranges.flip, -1.0, 1.0)
    room = (1 - scale).clamp_min(0) if ranges.random_crop else torch.zeros_like(scale)
    across, down = ((room + 2 * ranges.shift) * draw(-1, 1) for _ in range(2))
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = [cos * flip, shear * cos - sin, across, sin * flip, shear * sin + cos, down]
    affine = torch.stack(rows, dim=1).view(-1, 2, 3)
    grid = functional.affine_grid(affine, [len(pixels), 1, crop, crop], align_corners=False)
    return functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _blur(pixels: Tensor, most_px: float, generator: torch.Generator) -> Tensor:
    """Half of the images made softer by a Gaussian: resolution differs by source."""
    sigma = _uniform(pixels, -most_px, most_px, generator).clamp_min(0.1).view(-1, 1)
    weights = torch.exp(-(torch.arange(-2.0, 3.0, device=pixels.device) ** 2) / (2 * sigma**2))
    weights = weights / weights.sum(1, keepdim=True)
    count = len(pixels)
    planes = functional.pad(pixels.transpose(0, 1), (2, 2, 2, 2), mode="reflect")
    planes = functional.conv2d(planes, weights.view(count, 1, 1, 5), groups=count)
    return functional.conv2d(planes, weights.view(count, 1, 5, 1), groups=count).transpose(0, 1)


def _kept(pixels: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Mask that takes out a rectangle, and a frame, each with the given probability."""
    side = pixels.shape[-1]
    place = torch.linspace(0, 1, side, device=pixels.device)
    top, left = (_uniform(pixels, 0, 0.9, generator) for _ in range(2))
    height, width = (_uniform(pixels, 0, 0.35, generator) for _ in range(2))
    rows, columns = place.view(1, 1, side, 1), place.view(1, 1, 1, side)
    patch = (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)
    patch &= _uniform(pixels, 0, 1, generator) < probability
    frame = _uniform(pixels, 0, 0.1, generator) * (_uniform(pixels, 0, 1, generator) < probability)
    inside = (rows - 0.5).abs().maximum((columns - 0.5).abs()) <= 0.5 - frame
    return (inside & ~patch).float()
