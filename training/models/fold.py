"""Batch normalisation folded into the convolution before it: the same function in evaluation, in fewer steps."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn


@torch.no_grad()
def fold_batch_norm(module: nn.Module) -> None:
    """Every convolution that stands right before its normalisation in a sequence takes it over, in place.

    Only in evaluation mode: in training the normalisation is by the batch's own statistics.
    """
    for child in module.modules():
        if not isinstance(child, nn.Sequential):
            continue
        for (_, convolution), (name, norm) in pairwise(list(child.named_children())):
            if type(norm) is nn.BatchNorm2d and isinstance(convolution, nn.Conv2d | nn.ConvTranspose2d):
                _fold(convolution, norm)
                child._modules[name] = nn.Identity()


def _fold(convolution: nn.Conv2d | nn.ConvTranspose2d, norm: nn.BatchNorm2d) -> None:
    if norm.training or norm.running_mean is None or norm.running_var is None:
        raise ValueError("only a normalisation in evaluation mode, with running statistics, can be folded")
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    # The axis of the channels that come out: the first, but of a transposed convolution the second.
    shape = [1, -1, 1, 1] if isinstance(convolution, nn.ConvTranspose2d) else [-1, 1, 1, 1]
    bias = 0.0 if convolution.bias is None else convolution.bias.double()
    weight = convolution.weight.double() * scale.view(shape)
    convolution.weight = nn.Parameter(weight.float(), requires_grad=False)
    shift = (bias - norm.running_mean.double()) * scale + norm.bias.double()
    convolution.bias = nn.Parameter(shift.float(), requires_grad=False)
