"""Where the lungs are, told from the maps of a network, and what of the maps lies on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.models.efficientnet_lite import CHANNELS

if TYPE_CHECKING:
    from collections.abc import Sequence

_LEAST = 1e-3  # cells of lung: where there is less, nothing is pooled


class Lungs(nn.Module):
    """The probability that a cell is lung: one linear layer on the maps of several blocks, the finest first.

    Parameters
    ----------
    name, levels
        An EfficientNet-Lite, and the blocks, counted from 0, whose maps are read.
    """

    def __init__(self, name: str, levels: Sequence[int]) -> None:
        super().__init__()
        if not levels:
            raise ValueError("lungs are told of the maps of levels: give levels")
        channels = [CHANNELS[name][level] for level in levels]
        self.cells = nn.ModuleList(nn.Conv2d(count, 1, 1, bias=not index) for index, count in enumerate(channels))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Shape (N, 1, h, w), h and w those of the first map."""
        logits = [layer(one) for layer, one in zip(self.cells, maps, strict=True)]
        return torch.sigmoid(torch.stack([_resized(one, logits[0]) for one in logits]).sum(dim=0))

    @torch.no_grad()
    def take(self, weight: Tensor, bias: float) -> None:
        """Take over a linear layer's weight, shape (channels of all maps,), and its bias, one number."""
        start = 0
        for layer in self.cells:
            own = layer.get_parameter("weight")
            own.copy_(weight[start : start + own.numel()].view_as(own))
            start += own.numel()
        self.cells[0].get_parameter("bias").fill_(bias)


def cells_of(maps: Sequence[Tensor]) -> Tensor:
    """What `Lungs` reads, shape (N * h * w, channels of all maps), h and w those of the first map."""
    return torch.cat([_resized(one, maps[0]) for one in maps], dim=1).permute(0, 2, 3, 1).flatten(0, 2)


def _resized(one: Tensor, first: Tensor) -> Tensor:
    size = (first.shape[-2], first.shape[-1])
    return functional.interpolate(one, size=size, mode="bilinear", align_corners=False)


def pooled(maps: Sequence[Tensor], lungs: Tensor | None, *, deviation: bool) -> Tensor:
    """The mean and, if wanted, the deviation of each channel of each map, shape (N, values).

    Parameters
    ----------
    lungs
        Shape (N, 1, h, w): how much each cell counts. None: all cells the same.
    """
    found = []
    for one in maps:
        weight = one.new_ones(1, 1, *one.shape[-2:]) if lungs is None else share_of_cells(lungs, one)
        weight = weight / (weight.sum(dim=(2, 3), keepdim=True) + (0 if lungs is None else _LEAST))
        mean = (one * weight).sum(dim=(2, 3), keepdim=True)
        found.append(mean.flatten(1))
        if deviation:
            found.append(((one - mean).square() * weight).sum(dim=(2, 3)).sqrt())
    return torch.cat(found, dim=1)


def pooled_by_each(maps: Sequence[Tensor], weights: Tensor, *, deviation: bool) -> Tensor:
    """As `pooled`, by each of several weights in turn, shape (N, P, values): products of matrices, no copies of maps.

    Parameters
    ----------
    weights
        Shape (N, P, h, w): how much each cell counts, P times.
    """
    found = []
    for one in maps:
        weight = share_of_cells(weights, one).flatten(2)
        weight = weight / (weight.sum(dim=2, keepdim=True) + _LEAST)
        cells = one.flatten(2).transpose(1, 2)
        mean = weight @ cells
        found.append(mean)
        if deviation:
            total = weight.sum(dim=2, keepdim=True)
            variance = weight @ cells.square() - mean.square() * (2 - total)
            found.append(variance.clamp_min(0).sqrt())
    return torch.cat(found, dim=2)


def share_of_cells(lungs: Tensor, one: Tensor) -> Tensor:
    """How much of each of a map's cells is lung, shape (N, 1, h, w) with h and w of the map, from finer cells."""
    return functional.adaptive_avg_pool2d(lungs, (one.shape[-2], one.shape[-1]))
