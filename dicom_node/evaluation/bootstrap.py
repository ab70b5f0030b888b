"""Percentile intervals by drawing patients: images of one patient are no independent evidence.

Nor are near duplicates: what is drawn is a group of patients that they join, where the pictures are at hand.

A draw is a weight for each image (how often its patient, or group, was drawn), and a statistic takes many draws at
once. The weighted statistics here are those of scikit-learn with `sample_weight`, for all draws together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    # Weights of shape (draws, N) in, shape (draws,) out; NaN where a draw does not bear the statistic.
    Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
    # Of each image, shape (N,): its patient, or the group of patients that near duplicates join.
    Patients = Sequence[str] | Sequence[int] | NDArray[np.str_] | NDArray[np.int64]

RESAMPLES = 2000
METHOD = "bootstrap over patients"
_ENDS = (2.5, 97.5)  # percent
_AT_ONCE = 2_000_000  # weights held in memory at a time


def interval(
    statistic: Statistic, patients: Patients, resamples: int = RESAMPLES
) -> tuple[float, float] | tuple[None, None]:
    """The 2.5 and 97.5 % quantiles over draws of patients; None twice where no draw bears the statistic."""
    values = np.concatenate([np.zeros(0), *(statistic(drawn) for drawn in draws(patients, resamples))])
    values = values[np.isfinite(values)]
    if not len(values):
        return None, None
    low, high = np.percentile(values, _ENDS)
    return float(low), float(high)


def band(
    statistic: Statistic, patients: Patients, resamples: int = RESAMPLES
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """`interval` at each place of a curve, shape (places,) twice; None where no draw bears it.

    `statistic` gives shape (draws, places), a draw that does not bear it being NaN at every place.
    """
    values = np.concatenate([statistic(drawn) for drawn in draws(patients, resamples)])
    values = values[np.isfinite(values).all(axis=1)]
    if not len(values):
        return None
    low, high = np.percentile(values, _ENDS, axis=0)
    return low, high


def draws(patients: Patients, resamples: int, seed: int = 0) -> Iterator[NDArray[np.float64]]:
    """Weights of the images, shape (some draws, N), until there are `resamples` of them."""
    names, owner = np.unique(np.asarray(patients), return_inverse=True)
    rng = np.random.default_rng(seed)
    step = max(1, _AT_ONCE // max(len(owner), 1))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        chosen = rng.integers(len(names), size=(size, len(names))) + np.arange(size)[:, None] * len(names)
        counts = np.bincount(chosen.ravel(), minlength=size * len(names)).reshape(size, -1)
        yield counts[:, owner].astype(np.float64)


def weighted_mean(values: NDArray[np.float64]) -> Statistic:
    """Mean of the values."""

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore"):
            return np.asarray((weights @ values) / weights.sum(axis=1))

    return statistic


def weighted_auc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> Statistic:
    """Area under the ROC curve: share of pairs in the right order, half of those that tie."""
    masses = _masses(scores, positive)

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        hits, misses = masses(weights)
        above = hits.sum(axis=1, keepdims=True) - np.cumsum(hits, axis=1)
        with np.errstate(invalid="ignore"):
            return np.asarray((misses * (above + hits / 2)).sum(axis=1) / (hits.sum(axis=1) * misses.sum(axis=1)))

    return statistic


def weighted_average_precision(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> Statistic:
    """Area under the precision-recall curve as a sum of steps."""
    masses = _masses(-scores, positive)

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        hits, misses = masses(weights)
        found = np.cumsum(hits, axis=1)
        flagged = found + np.cumsum(misses, axis=1)
        with np.errstate(invalid="ignore"):
            precision = np.where(flagged > 0, found / flagged, 0.0)
            return np.asarray((precision * hits).sum(axis=1) / hits.sum(axis=1))

    return statistic


def weighted_roc(scores: NDArray[np.float64], positive: NDArray[np.bool_], at: NDArray[np.float64]) -> Statistic:
    """At each rate of `at`, the highest sensitivity of a threshold whose false positive rate is no higher."""
    masses = _masses(-scores, positive)

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        hits, misses = (np.cumsum(mass, axis=1) for mass in masses(weights))
        found = np.empty((len(weights), len(at)))
        with np.errstate(invalid="ignore"):
            sensitivity, false_positive = hits / hits[:, -1:], misses / misses[:, -1:]
        for draw, (rising, rates) in enumerate(zip(sensitivity, false_positive, strict=True)):
            place = np.searchsorted(rates, at, side="right")
            found[draw] = np.concatenate([[0.0], rising])[place]
        return np.where(np.isfinite(sensitivity[:, -1:] + false_positive[:, -1:]), found, np.nan)

    return statistic


def weighted_precision(scores: NDArray[np.float64], positive: NDArray[np.bool_], at: NDArray[np.float64]) -> Statistic:
    """At each recall of `at`, above 0, the precision of the highest threshold that reaches it."""
    masses = _masses(-scores, positive)

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        hits, misses = (np.cumsum(mass, axis=1) for mass in masses(weights))
        found = np.empty((len(weights), len(at)))
        with np.errstate(invalid="ignore"):
            recall, precision = hits / hits[:, -1:], hits / (hits + misses)
        for draw, (rising, shares) in enumerate(zip(recall, precision, strict=True)):
            found[draw] = shares[np.searchsorted(rising, at).clip(0, len(shares) - 1)]
        return np.where(np.isfinite(recall[:, -1:]), found, np.nan)

    return statistic


def _masses(
    scores: NDArray[np.float64], positive: NDArray[np.bool_]
) -> Callable[[NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Weights to their sums over the positive and the negative images of each score that occurs, rising."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    sign = positive[order].astype(np.float64)

    def masses(weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        sorted_weights = weights[:, order]
        everything = np.add.reduceat(sorted_weights, starts, axis=1)
        hits = np.add.reduceat(sorted_weights * sign, starts, axis=1)
        return hits, everything - hits

    return masses


def weighted_confusion(true: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> Statistic:
    """Confusion matrices, shape (draws, classes, classes), rows the true class."""
    cells = np.zeros((len(true), classes * classes))
    cells[np.arange(len(true)), true * classes + predicted] = 1.0

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray((weights @ cells).reshape(-1, classes, classes))

    return statistic


def difference(one: Statistic, other: Statistic) -> Statistic:
    """One minus the other, on the same draws: the images are paired."""
    return lambda weights: one(weights) - other(weights)
