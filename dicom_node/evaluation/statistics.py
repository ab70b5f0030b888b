"""Figures with their 95 % intervals, and the thresholds that are chosen by them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import logit
from scipy.stats import binomtest, norm
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    brier_score_loss,
    confusion_matrix,
    precision_recall_curve,
    precision_recall_fscore_support,
    roc_auc_score,
    roc_curve,
)

from dicom_node.evaluation import bootstrap
from dicom_node.evaluation.bootstrap import RESAMPLES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dicom_node.evaluation.bootstrap import Patients
    from dicom_node.evaluation.shape import (
        AtPrevalence,
        AtThreshold,
        Band,
        Calibration,
        Classes,
        Curve,
        Figure,
        Histogram,
        OfRuns,
    )

POINTS = 200  # of a curve that is kept
_DECIMALS = 5  # of a point
_BAND_POINTS = 101
BINS = 40  # of a histogram
_CALIBRATION_BINS = 10
PREVALENCES = (0.01, 0.05, 0.10, 0.30)
CLOPPER_PEARSON = "Clopper-Pearson"


def proportion(hits: int, n: int) -> Figure | None:
    """A proportion with its Clopper-Pearson interval, Wilson's and the normal approximation; None of nothing."""
    if n == 0:
        return None
    found = binomtest(hits, n)
    exact, wilson = found.proportion_ci(0.95, method="exact"), found.proportion_ci(0.95, method="wilson")
    return {
        "value": hits / n,
        "low": float(exact.low),
        "high": float(exact.high),
        "hits": hits,
        "n": n,
        "interval": CLOPPER_PEARSON,
        "wilson": [float(wilson.low), float(wilson.high)],
        "normal": normal_half_width(hits / n, n),
    }


def normal_half_width(share: float, n: int) -> float:
    """Minaee 2020, eq. 3: ``z sqrt(accuracy (1 - accuracy) / N)``; 0 at a share of 0 or 1, which says nothing."""
    return float(norm.ppf(0.975)) * math.sqrt(share * (1 - share) / n)


def bootstrapped(
    value: float, statistic: bootstrap.Statistic, patients: Patients, resamples: int = RESAMPLES
) -> Figure:
    """A figure with its percentile interval over draws of patients."""
    low, high = bootstrap.interval(statistic, patients, resamples)
    return {
        "value": float(value),
        "low": low,
        "high": high,
        "n": len(patients),
        "interval": bootstrap.METHOD if low is not None else "none",
    }


def auc(
    scores: NDArray[np.float64], positive: NDArray[np.bool_], patients: Patients, resamples: int = RESAMPLES
) -> Figure | None:
    """Area under the ROC curve; None where one class is missing.

    Draws without both classes are left out. An area of exactly 1 gives an interval without width, which says little.
    """
    if positive.all() or not positive.any():
        return None
    statistic = bootstrap.weighted_auc(scores, positive)
    return bootstrapped(roc_auc_score(positive, scores), statistic, patients, resamples)


def average_precision(
    scores: NDArray[np.float64], positive: NDArray[np.bool_], patients: Patients, resamples: int = RESAMPLES
) -> Figure | None:
    """Area under the precision-recall curve as scikit-learn's sum of steps; None where one class is missing."""
    if positive.all() or not positive.any():
        return None
    statistic = bootstrap.weighted_average_precision(scores, positive)
    return bootstrapped(average_precision_score(positive, scores), statistic, patients, resamples)


def auc_difference(
    one: NDArray[np.float64],
    other: NDArray[np.float64],
    positive: NDArray[np.bool_],
    patients: Patients,
    resamples: int = RESAMPLES,
) -> Figure | None:
    """AUC of `one` minus AUC of `other` on the same images; None where one class is missing."""
    if positive.all() or not positive.any():
        return None
    statistic = bootstrap.difference(bootstrap.weighted_auc(one, positive), bootstrap.weighted_auc(other, positive))
    value = roc_auc_score(positive, one) - roc_auc_score(positive, other)
    return bootstrapped(value, statistic, patients, resamples)


def mean(values: NDArray[np.float64], patients: Patients, resamples: int = RESAMPLES) -> Figure | None:
    """A mean over images; None of nothing."""
    if not len(values):
        return None
    return bootstrapped(float(values.mean()), bootstrap.weighted_mean(values), patients, resamples)


def of_runs(values: Sequence[float | None]) -> OfRuns | None:
    """Mean and sample deviation over the runs that have the figure; None where none has."""
    found = [float(value) for value in values if value is not None]
    if not found:
        return None
    deviation = float(np.std(found, ddof=1)) if len(found) > 1 else None
    return {"values": found, "mean": float(np.mean(found)), "deviation": deviation}


def roc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> Curve | None:
    """False positive rate and sensitivity; None where one class is missing."""
    if positive.all() or not positive.any():
        return None
    x, y, _ = roc_curve(positive, scores)
    return thinned(x, y)


def precision_recall(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> Curve | None:
    """Recall and precision, from the highest threshold down; None where one class is missing."""
    if positive.all() or not positive.any():
        return None
    precision, recall, _ = precision_recall_curve(positive, scores, drop_intermediate=True)
    return thinned(recall[::-1], precision[::-1])


def roc_band(
    scores: NDArray[np.float64], positive: NDArray[np.bool_], patients: Patients, resamples: int = RESAMPLES
) -> Band | None:
    """Where the ROC lies over draws of patients; None where one class is missing."""
    at = np.linspace(0, 1, _BAND_POINTS)
    return _band(bootstrap.weighted_roc(scores, positive, at), at, positive, patients, resamples)


def precision_recall_band(
    scores: NDArray[np.float64], positive: NDArray[np.bool_], patients: Patients, resamples: int = RESAMPLES
) -> Band | None:
    """Where the precision-recall curve lies over draws of patients; None where one class is missing."""
    at = np.linspace(0, 1, _BAND_POINTS)[1:]
    return _band(bootstrap.weighted_precision(scores, positive, at), at, positive, patients, resamples)


def _band(
    statistic: bootstrap.Statistic,
    at: NDArray[np.float64],
    positive: NDArray[np.bool_],
    patients: Patients,
    resamples: int,
) -> Band | None:
    if positive.all() or not positive.any() or (found := bootstrap.band(statistic, patients, resamples)) is None:
        return None
    low, high = (np.round(end, _DECIMALS).tolist() for end in found)
    return {"x": np.round(at, _DECIMALS).tolist(), "low": low, "high": high}


def thinned(x: NDArray[np.float64], y: NDArray[np.float64]) -> Curve:
    """At most `POINTS` points of a curve, first and last among them, evenly along its length."""
    if len(x) > POINTS:
        length = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
        kept = np.unique(np.searchsorted(length, np.linspace(0, length[-1], POINTS)).clip(0, len(x) - 1))
        x, y = x[kept], y[kept]
    return {"x": np.round(x, _DECIMALS).tolist(), "y": np.round(y, _DECIMALS).tolist()}


def histogram(scores: NDArray[np.float64], names: Sequence[str]) -> Histogram:
    """Counts of the scores by name, in `BINS` bins of equal width over all of them."""
    groups = np.asarray(names)
    largest = float(np.abs(scores).max(initial=0.0))
    # numpy widens the range of equal scores, but not of those that so few floats lie between.
    alike = len(scores) > 0 and np.ptp(scores) <= max(1e-12 * largest, np.finfo(np.float64).tiny)
    half = max(largest, 1.0) / 2
    edges = np.histogram_bin_edges(scores, BINS, (scores.min() - half, scores.max() + half) if alike else None)
    counts = {str(name): np.histogram(scores[groups == name], edges)[0].tolist() for name in np.unique(groups)}
    return {"edges": edges.tolist(), "counts": counts}


def operating_points(
    probability: NDArray[np.float64], positive: NDArray[np.bool_], least_sensitivity: float
) -> dict[str, dict[str, float]]:
    """Two thresholds on a score, each with the sensitivity and specificity that it gives on these images.

    `balanced` has the largest sum of both (Youden), `high-sensitivity` the best specificity at `least_sensitivity` or
    more. A threshold lies half-way between two scores that occur, so that rounding decides nothing.
    """
    false_positive, sensitivity, found = roc_curve(positive, probability, drop_intermediate=False)
    # The curve's first point, at infinity, flags nothing. Below the lowest score everything is flagged: half of it.
    false_positive, sensitivity, found = false_positive[1:], sensitivity[1:], found[1:]
    below = np.append(found[1:], min(0.0, 2 * found[-1]))
    thresholds = (found + below) / 2
    chosen = {
        "balanced": _last_argmax(sensitivity - false_positive),
        "high-sensitivity": int(np.flatnonzero(sensitivity >= least_sensitivity)[0]),
    }
    return {
        name: {
            "threshold": float(thresholds[index]),
            "sensitivity": float(sensitivity[index]),
            "specificity": float(1 - false_positive[index]),
        }
        for name, index in chosen.items()
    }


def _last_argmax(values: NDArray[np.float64]) -> int:
    """Of equally good thresholds the lowest: it is the more sensitive one."""
    return len(values) - 1 - int(np.argmax(values[::-1]))


def at_thresholds(
    scores: NDArray[np.float64],
    positive: NDArray[np.bool_],
    thresholds: NDArray[np.float64] | float,
    chosen: str,
) -> AtThreshold:
    """Sensitivity and specificity where a score at or above its threshold is flagged.

    Parameters
    ----------
    thresholds
        One for all images, or one for each, shape (N,).
    chosen
        How the threshold was chosen and on what, for the reader.
    """
    flagged = scores >= thresholds
    sensitivity = proportion(int(flagged[positive].sum()), int(positive.sum()))
    specificity = proportion(int((~flagged[~positive]).sum()), int((~positive).sum()))
    return {
        "thresholds": [float(value) for value in dict.fromkeys(np.atleast_1d(thresholds).tolist())],
        "chosen": chosen,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "predictive_values": predictive_values(sensitivity["value"], specificity["value"])
        if sensitivity and specificity
        else [],
    }


def predictive_values(sensitivity: float, specificity: float) -> list[AtPrevalence]:
    """PPV and NPV at each of `PREVALENCES`, by Bayes' rule."""
    found: list[AtPrevalence] = []
    for prevalence in PREVALENCES:
        true, false = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
        missed, right = (1 - sensitivity) * prevalence, specificity * (1 - prevalence)
        ppv = true / (true + false) if true + false > 0 else None
        npv = right / (right + missed) if right + missed > 0 else None
        found.append({"prevalence": prevalence, "ppv": ppv, "npv": npv})
    return found


def predicted_classes(
    true: NDArray[np.int64],
    predicted: NDArray[np.int64],
    names: Sequence[str],
    patients: Patients,
    resamples: int = RESAMPLES,
) -> Classes:
    """Accuracy, precision, recall and F1 of predicted classes, and their confusion matrix.

    Accuracy, precision and recall of a class are proportions; F1 and the macro means have bootstrap intervals. Over a
    class that is never predicted, precision counts 0.
    """
    classes = list(range(len(names)))
    matrix = confusion_matrix(true, predicted, labels=classes)
    each = precision_recall_fscore_support(true, predicted, labels=classes, zero_division=0.0)
    confusions = bootstrap.weighted_confusion(true, predicted, len(names))
    accuracy = proportion(round(accuracy_score(true, predicted, normalize=False)), len(true))
    if accuracy is None:
        raise ValueError("no image to predict the class of")
    per_class: dict[str, dict[str, Figure | None]] = {}
    for index, name in enumerate(names):
        hits = int(matrix[index, index])
        per_class[name] = {
            "precision": proportion(hits, int(matrix[:, index].sum())),
            "recall": proportion(hits, int(matrix[index].sum())),
            "f1": bootstrapped(
                each[2][index],
                lambda weights, index=index: by_class(confusions(weights))[2][:, index],  # type: ignore[misc]
                patients,
                resamples,
            ),
        }
    macro = {
        name: bootstrapped(
            float(np.mean(each[place])),
            lambda weights, place=place: by_class(confusions(weights))[place].mean(axis=1),  # type: ignore[misc]
            patients,
            resamples,
        )
        for place, name in enumerate(("precision", "recall", "f1"))
    }
    return {
        "names": list(names),
        "confusion": matrix.tolist(),
        "accuracy": accuracy,
        "macro": macro,
        "per_class": per_class,
    }


def by_class(matrices: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Precision, recall and F1 of each class, shape (draws, classes), from confusion matrices; 0 where undefined."""
    hits = np.diagonal(matrices, axis1=1, axis2=2)
    called, there = matrices.sum(axis=1), matrices.sum(axis=2)
    with np.errstate(invalid="ignore", divide="ignore"):
        parts = hits / called, hits / there, 2 * hits / (called + there)
    return tuple(np.nan_to_num(part) for part in parts)


def calibration_error(probability: NDArray[np.float64], positive: NDArray[np.bool_]) -> dict[str, float]:
    """Brier score, and the expected calibration error over ten bins of equal width (Guo 2017, eq. 3)."""
    bins = np.minimum((probability * _CALIBRATION_BINS).astype(np.int64), _CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights=probability - positive, minlength=_CALIBRATION_BINS)
    return {
        "brier": float(brier_score_loss(positive, probability, pos_label=True)),
        "ece": float(np.abs(gaps).sum() / max(len(positive), 1)),
    }


def recalibration(probability: NDArray[np.float64], positive: NDArray[np.bool_]) -> tuple[float, float] | None:
    """Slope and intercept of the logistic regression of the truth on the probability's logit (Cox 1958).

    None where no line is likeliest: one class only, or probabilities that part the classes.
    """
    if positive.all() or not positive.any():
        return None
    logits = logit(probability.clip(1e-12, 1 - 1e-12))
    if logits[positive].min() >= logits[~positive].max() or logits[positive].max() <= logits[~positive].min():
        return None
    scale = float(logits.std()) or 1.0
    fitted = LogisticRegression(C=np.inf, max_iter=1000).fit(logits[:, None] / scale, positive)
    return float(fitted.coef_[0, 0]) / scale, float(fitted.intercept_[0])


def calibration(probability: NDArray[np.float64], positive: NDArray[np.bool_]) -> Calibration | None:
    """All about a probability; None where one class is missing."""
    line = recalibration(probability, positive)
    if positive.all() or not positive.any():
        return None
    errors = calibration_error(probability, positive)
    share, forecast = calibration_curve(positive, probability, n_bins=10)
    at, model, everything = decision(probability, positive)
    return {
        "images": len(positive),
        "brier": errors["brier"],
        "ece": errors["ece"],
        "slope": line[0] if line else None,
        "intercept": line[1] if line else None,
        "reliability": thinned(forecast, share),
        "decision": thinned(at, model),
        "decision_all": thinned(at, everything),
    }


def decision(
    probability: NDArray[np.float64], positive: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Threshold probabilities, the net benefit of the model and of calling all positive (Vickers and Elkin 2006).

    Net benefit is true positives minus false positives times the threshold's odds, each per image.
    """
    at = np.linspace(0.01, 0.99, 99)
    odds = at / (1 - at)
    flagged = probability[None, :] >= at[:, None]
    model = (flagged & positive).mean(axis=1) - (flagged & ~positive).mean(axis=1) * odds
    everything = positive.mean() - (1 - positive.mean()) * odds
    return at, model, everything


def finite(found: Any) -> Any:
    """The same plain values with None for what is no number, and numpy's numbers as Python's."""
    if isinstance(found, dict):
        return {str(name): finite(value) for name, value in found.items()}
    if isinstance(found, list | tuple):
        return [finite(value) for value in found]
    if isinstance(found, np.generic):
        found = found.item()
    return None if isinstance(found, float) and not math.isfinite(found) else found
