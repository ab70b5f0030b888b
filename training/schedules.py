"""How the learning rate changes, by name: each gives its factor at a (broken) epoch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Schedule = Callable[[float], float]


def constant(_epochs: int) -> Schedule:
    """Always 1."""
    return lambda _epoch: 1.0


def linear(epochs: int) -> Schedule:
    """From 1 down to 0 at the end."""
    return lambda epoch: max(0.0, 1 - epoch / epochs)


def cosine(epochs: int, warmup_epochs: float = 0.0) -> Schedule:
    """Linear warm-up, then half a cosine down to 0 at the end (Loshchilov and Hutter 2017, without restarts)."""
    if warmup_epochs >= epochs:
        raise ValueError(f"warmup_epochs {warmup_epochs:g}: the training has {epochs} epochs in all")

    def factor(epoch: float) -> float:
        if epoch < warmup_epochs:
            return (epoch + 0.01) / warmup_epochs
        part = (epoch - warmup_epochs) / (epochs - warmup_epochs)
        return 0.5 * (1 + math.cos(math.pi * min(part, 1.0)))

    return factor


def steps(_epochs: int, factors: Sequence[tuple[int, float]]) -> Schedule:
    """`factors`: from which epoch on (counted from 0) which factor holds; the first epoch is 0."""
    if not factors or factors[0][0] != 0:
        raise ValueError("steps begin at epoch 0")
    return lambda epoch: next(factor for start, factor in reversed(factors) if epoch >= start)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "steps": steps,
}
