"""All figures of one score on one set of images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dicom_node.evaluation import statistics
from dicom_node.evaluation.bootstrap import RESAMPLES
from dicom_node.evaluation.statistics import at_thresholds, operating_points

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from dicom_node.evaluation.bootstrap import Patients
    from dicom_node.evaluation.shape import AtThreshold, Brief, Group

LEAST_SENSITIVITY = 0.95
# By name: which of `operating_points`, and how it is chosen.
THRESHOLDS = {
    "youden": ("balanced", "largest sum of sensitivity and specificity"),
    f"sensitivity {LEAST_SENSITIVITY}": (
        "high-sensitivity",
        f"highest threshold with a sensitivity of {LEAST_SENSITIVITY} or more",
    ),
}


def best_thresholds(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> dict[str, float]:
    """The threshold by each name of `THRESHOLDS`; needs both classes."""
    points = operating_points(scores, positive, LEAST_SENSITIVITY)
    return {name: points[point]["threshold"] for name, (point, _) in THRESHOLDS.items()}


def at(
    scores: NDArray[np.float64],
    positive: NDArray[np.bool_],
    thresholds: Mapping[str, NDArray[np.float64] | float],
    chosen_on: str,
) -> dict[str, AtThreshold]:
    """What each threshold gives; a threshold is one number, or one for each image."""
    return {
        name: at_thresholds(scores, positive, threshold, f"{THRESHOLDS[name][1]} {chosen_on}")
        for name, threshold in thresholds.items()
    }


def brief(
    scores: NDArray[np.float64],
    positive: NDArray[np.bool_],
    patients: Patients,
    groups: Patients,
    by_threshold: dict[str, AtThreshold],
    resamples: int = RESAMPLES,
) -> Brief:
    """The figures that a small group bears; `patients` are counted, and `groups` drawn."""
    return {
        "images": len(positive),
        "patients": len(set(patients)),
        "positives": int(positive.sum()),
        "auc": statistics.auc(scores, positive, groups, resamples),
        "at": by_threshold,
    }


def group(
    scores: NDArray[np.float64],
    positive: NDArray[np.bool_],
    patients: Patients,
    groups: Patients,
    by_threshold: dict[str, AtThreshold],
    names: Sequence[str] = (),
    resamples: int = RESAMPLES,
) -> Group:
    """All figures; the histogram is by `names`, one for each image, or by positive and negative."""
    return {
        **brief(scores, positive, patients, groups, by_threshold, resamples),
        "average_precision": statistics.average_precision(scores, positive, groups, resamples),
        "roc": statistics.roc(scores, positive),
        "precision_recall": statistics.precision_recall(scores, positive),
        "histogram": statistics.histogram(scores, names or np.where(positive, "positive", "negative").tolist()),
    }
