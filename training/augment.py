"""Random changes of training images, made against what tells the sources apart without a lung."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from training.models.preprocess import standardise

if TYPE_CHECKING:
    from torch import Tensor

    from training.papers.zhang2020 import Recipe


def augment(squares: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Training inputs of a batch.

    Parameters
    ----------
    squares
        uint8, shape (N, side, side).

    Returns
    -------
    float32, shape (N, 1, crop, crop).
    """
    pixels = _warp(squares[:, None].float() / 255, recipe, generator)
    pixels = pixels.clamp(0, 1) ** torch.exp(_uniform(pixels, -recipe.gamma, recipe.gamma, generator))
    pixels = standardise(_blur(pixels, recipe.blur_px, generator))
    pixels = pixels * _uniform(pixels, 0.8, 1.2, generator) + _uniform(pixels, -0.2, 0.2, generator)
    pixels += torch.randn(pixels.shape, generator=generator) * _uniform(pixels, 0, recipe.noise, generator)
    return pixels * _kept(pixels, generator)


def _uniform(like: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    """One draw per image, shape (N, 1, 1, 1)."""
    return low + (high - low) * torch.rand((len(like), 1, 1, 1), generator=generator)


def _warp(pixels: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Zoom, rotation, flip and random crop in one interpolation."""
    scale = recipe.crop / pixels.shape[-1] / _uniform(pixels, *recipe.zoom, generator).flatten()
    angle = math.radians(recipe.rotation_deg) * _uniform(pixels, -1, 1, generator).flatten()
    flip = torch.where(torch.rand(len(pixels), generator=generator) < 0.5, -1.0, 1.0)
    shift = (1 - scale).clamp_min(0)[:, None] * (2 * torch.rand((len(pixels), 2), generator=generator) - 1)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    affine = torch.stack([cos * flip, -sin, shift[:, 0], sin * flip, cos, shift[:, 1]], dim=1).view(-1, 2, 3)
    grid = functional.affine_grid(affine, [len(pixels), 1, recipe.crop, recipe.crop], align_corners=False)
    return functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _blur(pixels: Tensor, most_px: float, generator: torch.Generator) -> Tensor:
    """Half of the images made softer by a Gaussian: resolution differs by source."""
    sigma = _uniform(pixels, -most_px, most_px, generator).clamp_min(0.1).view(-1, 1)
    weights = torch.exp(-(torch.arange(-2.0, 3.0) ** 2) / (2 * sigma**2))
    weights = weights / weights.sum(1, keepdim=True)
    count = len(pixels)
    planes = functional.pad(pixels.transpose(0, 1), (2, 2, 2, 2), mode="reflect")
    planes = functional.conv2d(planes, weights.view(count, 1, 1, 5), groups=count)
    return functional.conv2d(planes, weights.view(count, 1, 5, 1), groups=count).transpose(0, 1)


def _kept(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Mask that takes out a rectangle of half of the images and a frame of half of them."""
    count, side = len(pixels), pixels.shape[-1]
    place = torch.linspace(0, 1, side)
    top, left = (_uniform(pixels, 0, 0.9, generator) for _ in range(2))
    height, width = (_uniform(pixels, -0.35, 0.35, generator) for _ in range(2))
    rows, columns = place.view(1, 1, side, 1), place.view(1, 1, 1, side)
    patch = (rows >= top) & (rows < top + height.abs()) & (columns >= left) & (columns < left + width.abs())
    patch &= torch.rand((count, 1, 1, 1), generator=generator) < 0.5
    frame = _uniform(pixels, -0.1, 0.1, generator)
    inside = (rows - 0.5).abs().maximum((columns - 0.5).abs()) <= 0.5 - frame.clamp_min(0)
    return (inside & ~patch).float()
