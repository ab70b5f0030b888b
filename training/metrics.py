"""Figures with their 95 % intervals, and the thresholds that are chosen by them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

RESAMPLES = 2000


def proportion(hits: int, n: int) -> dict[str, Any] | None:
    """A proportion with its Clopper-Pearson interval; None of nothing."""
    if n == 0:
        return None
    interval = binomtest(hits, n).proportion_ci(0.95, method="exact")
    return {"value": hits / n, "low": float(interval.low), "high": float(interval.high), "hits": hits, "n": n}


def auc(
    scores: NDArray[np.float64], positive: NDArray[np.bool_], patients: Sequence[str], resamples: int = RESAMPLES
) -> dict[str, float] | None:
    """Area under the ROC curve with a percentile bootstrap over patients; None where one class is missing.

    Patients are drawn, not images: images of one patient are no independent evidence. Draws without both classes are
    left out. An area of exactly 1 gives an interval without width, which says little.
    """
    if positive.all() or not positive.any():
        return None
    names, owner = np.unique(np.asarray(patients), return_inverse=True)
    rng = np.random.default_rng(0)
    values = []
    for _ in range(resamples):
        weight = rng.multinomial(len(names), np.full(len(names), 1 / len(names)))[owner]
        if weight[positive].any() and weight[~positive].any():
            values.append(roc_auc_score(positive, scores, sample_weight=weight))
    low, high = np.percentile(values, [2.5, 97.5])
    return {"value": float(roc_auc_score(positive, scores)), "low": float(low), "high": float(high)}


def calibration_error(probability: NDArray[np.float64], positive: NDArray[np.bool_]) -> dict[str, float]:
    """Brier score, and the expected calibration error over ten bins of equal width."""
    bins = np.minimum((probability * 10).astype(int), 9)
    gap = sum(
        abs(float(probability[bins == b].mean() - positive[bins == b].mean())) * float((bins == b).mean())
        for b in np.unique(bins)
    )
    return {"brier": float(np.mean((probability - positive) ** 2)), "ece": gap}


def operating_points(
    probability: NDArray[np.float64], positive: NDArray[np.bool_], least_sensitivity: float
) -> dict[str, dict[str, float]]:
    """Two thresholds on a probability, each with the sensitivity and specificity that it gives on these images.

    `balanced` has the largest sum of both (Youden), `high-sensitivity` the best specificity at `least_sensitivity` or
    more. A threshold lies half-way between two probabilities that occur, so that rounding decides nothing.
    """
    found = np.unique(probability)
    thresholds = (found + np.concatenate([[0.0], found[:-1]])) / 2
    flagged = probability[None, :] >= thresholds[:, None]
    sensitivity = flagged[:, positive].mean(axis=1)
    specificity = 1 - flagged[:, ~positive].mean(axis=1)
    chosen = {
        "balanced": int(np.argmax(sensitivity + specificity)),
        "high-sensitivity": int(np.flatnonzero(sensitivity >= least_sensitivity)[-1]),
    }
    return {
        name: {
            "threshold": float(thresholds[index]),
            "sensitivity": float(sensitivity[index]),
            "specificity": float(specificity[index]),
        }
        for name, index in chosen.items()
    }
