"""Heatmaps: where in the image an output of a network comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def grad_cam(features: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
    """Grad-CAM of one head (arXiv:1610.02391, eq. 1 and 2), without a second pass through the trunk.

    Parameters
    ----------
    features
        The last feature map, shape (N, C, h, w); it may come from a trunk run without gradients, not from one run
        in inference mode.
    head
        The part of the network between the feature map and the output that is explained.

    Returns
    -------
    Shape (N, h, w), at least 0, in units of the output; all zero where nothing speaks for a higher output.
    """
    with torch.enable_grad():
        leaf = features.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(head(leaf).sum(), leaf)
    importance = gradient.mean(dim=(2, 3), keepdim=True)
    return functional.relu((importance * features.detach()).sum(dim=1))


def to_eight_bits(heatmaps: Tensor, side: int) -> Tensor:
    """The heatmaps at the resolution of the network's input: uint8, shape (N, side, side), the strongest place at 255.

    Parameters
    ----------
    heatmaps
        Shape (N, h, w), at least 0. Their cells tile the input, so their edges meet the input's edges.

    Returns
    -------
    All zero where a heatmap is.
    """
    drawn = heatmaps.float()[:, None]
    large = functional.interpolate(drawn, size=(side, side), mode="bilinear", align_corners=False)[:, 0]
    peak = large.amax(dim=(1, 2), keepdim=True)
    return (large / torch.where(peak > 0, peak, 1) * 255).round().to(torch.uint8)
