"""How the members of an ensemble become one probability."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from training.models.calibration import sigmoid

if TYPE_CHECKING:
    from collections.abc import Mapping


def combined_probability(logits: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Sigmoid of the weighted mean of the members' calibrated logits.

    Parameters
    ----------
    logits
        By member; one that has no weight has no say.
    weights
        By member, at least 0, with a positive sum; they need not sum to 1.
    """
    total = math.fsum(weights.values())
    if not total > 0 or min(weights.values()) < 0:
        raise ValueError(f"weights {dict(weights)} have no positive sum")
    return sigmoid(math.fsum(weights[name] * logits[name] for name in weights) / total)
