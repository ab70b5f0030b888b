"""What kind of image it is, told from the maps of a network that was made for something else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

FRONTAL = "frontal"
TURNS = (0, 90, 180, 270)  # clockwise, of the image that is shown
# Upright and turned, in its own polarity and inverted: the one and only order.
FRONTALS = tuple(
    " ".join([FRONTAL, *(["inverted"] if inverted else []), *([f"turned {turn}"] if turn else [])])
    for inverted in (False, True)
    for turn in TURNS
)
LATERAL, SLICE, PART, OTHER = STRANGERS = ("lateral", "slice", "body part", "other")
KINDS = (*FRONTALS, *STRANGERS)
_GRID = 3  # cells a side of the coarser maps: which way is up is told from where things lie


class Gate(nn.Module):
    """The probability of each kind, and how far the image is from those that it was fitted on.

    A linear layer reads the maps' pooled values: of the first half of them the mean and the deviation of each channel,
    of the others the means over a grid. The distance is Mahalanobis' on their principal components.

    Parameters
    ----------
    values, components
        How many pooled values, and principal components, there are.
    """

    def __init__(self, values: int, components: int, kinds: int = len(KINDS)) -> None:
        super().__init__()
        self.kinds = nn.Linear(values, kinds)
        self.axes = nn.Linear(values, components)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Probabilities of shape (N, kinds) and distances of shape (N,), both float64."""
        return self.tell(pooled_values(maps))

    def tell(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The same, of values that were pooled already, shape (N, values)."""
        return functional.softmax(self.kinds(values).double(), dim=1), self.axes(values).double().norm(dim=1)


def pooled_values(maps: Sequence[Tensor]) -> Tensor:
    """What the gate reads of maps of shapes (N, channels, h, w): float32, shape (N, values)."""
    half = len(maps) // 2
    found: list[Tensor] = []
    for index, one in enumerate(maps):
        one = one.float()
        if index < half:
            deviation, mean = torch.std_mean(one, dim=(2, 3))
            found += [mean, deviation]
        else:
            found.append(functional.adaptive_avg_pool2d(one, _GRID).flatten(1))
    return torch.cat(found, dim=1)
