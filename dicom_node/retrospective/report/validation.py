"""A run held against the truth: how well the ensemble agrees with what a site knows of its own studies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dicom_node.domain import NodeError
from dicom_node.evaluation import statistics

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from dicom_node.evaluation.shape import Calibration, Curve, Figure

LEAST_OF_A_GROUP = 10  # of either class
LEAST_POSITIVE = 20  # for a threshold to be set by
_AGES = ((0, 17), (18, 39), (40, 64), (65, 200))


class ValidationError(NodeError):
    """The labels do not bear a validation."""

    reason = "validation"


class Labelled(NamedTuple):
    """A labelled study with an answer."""

    score: float
    flagged: bool
    positive: bool
    patient: str | None
    sex: str
    age: int | None
    view: str
    scanner: str


@dataclass(frozen=True, slots=True)
class AtThreshold:
    """What a threshold gives on these studies."""

    threshold: float | None
    sensitivity: Figure | None
    specificity: Figure | None
    ppv: Figure | None
    npv: Figure | None


@dataclass(frozen=True, slots=True)
class Subgroup:
    """Studies that share something; without figures where either class has too few of them."""

    name: str
    group: str
    studies: int
    positive: int
    auc: Figure | None
    sensitivity: Figure | None
    specificity: Figure | None


@dataclass(frozen=True, slots=True)
class Validation:
    """All figures of one question.

    Attributes
    ----------
    by_patient
        Whether the intervals of the bootstrap draw patients; studies otherwise.
    current
        By the thresholds that counted when the studies were screened; indeterminate counts as not flagged.
    aimed
        By the threshold at which the sensitivity that was asked for is reached on these studies.
    """

    target: str
    studies: int
    positive: int
    by_patient: bool
    auc: Figure
    average_precision: Figure
    roc: Curve
    precision_recall: Curve
    current: AtThreshold
    aimed_sensitivity: float
    aimed: AtThreshold
    calibration: Calibration
    subgroups: tuple[Subgroup, ...]


def validate(
    target: str, found: Sequence[Labelled], thresholds: Sequence[float], aimed: float, resamples: int = 2000
) -> Validation:
    """Everything that the labels tell.

    Raises
    ------
    ValidationError
        Where no labelled study has an answer, or all have the same label.
    """
    positive = np.array([one.positive for one in found], dtype=bool)
    if not len(found):
        raise ValidationError("no labelled study of the run has an answer: do the labels name studies of this run?")
    if positive.all() or not positive.any():
        one = "positive" if positive.all() else "negative"
        raise ValidationError(f"all {len(found)} labelled studies with an answer are {one}: both are needed")
    scores = np.array([one.score for one in found], dtype=np.float64)
    flagged = np.array([one.flagged for one in found], dtype=bool)
    by_patient = all(one.patient for one in found)
    patients = [one.patient or "" for one in found] if by_patient else [str(number) for number in range(len(found))]
    area = statistics.auc(scores, positive, patients, resamples)
    precision = statistics.average_precision(scores, positive, patients, resamples)
    roc, curve = statistics.roc(scores, positive), statistics.precision_recall(scores, positive)
    calibration = statistics.calibration(scores, positive)
    if area is None or precision is None or roc is None or curve is None or calibration is None:
        raise ValidationError("the labels bear no curve")
    chosen = statistics.operating_points(scores, positive, aimed)["high-sensitivity"]["threshold"]
    counted = set(thresholds)
    return Validation(
        target=target,
        studies=len(found),
        positive=int(positive.sum()),
        by_patient=by_patient,
        auc=area,
        average_precision=precision,
        roc=roc,
        precision_recall=curve,
        current=_at(counted.pop() if len(counted) == 1 else None, flagged, positive),
        aimed_sensitivity=aimed,
        aimed=_at(chosen, scores >= chosen, positive),
        calibration=calibration,
        subgroups=tuple(_subgroups(found, scores, flagged, positive, patients, resamples)),
    )


def _at(threshold: float | None, flagged: NDArray[np.bool_], positive: NDArray[np.bool_]) -> AtThreshold:
    def share(hits: NDArray[np.bool_], of: NDArray[np.bool_]) -> Figure | None:
        return statistics.proportion(int((hits & of).sum()), int(of.sum()))

    return AtThreshold(
        threshold=threshold,
        sensitivity=share(flagged, positive),
        specificity=share(~flagged, ~positive),
        ppv=share(positive, flagged),
        npv=share(~positive, ~flagged),
    )


def _subgroups(
    found: Sequence[Labelled],
    scores: NDArray[np.float64],
    flagged: NDArray[np.bool_],
    positive: NDArray[np.bool_],
    patients: Sequence[str],
    resamples: int,
) -> list[Subgroup]:
    made = []
    asked: tuple[tuple[str, Callable[[Labelled], str]], ...] = (
        ("sex", lambda one: one.sex or "not stated"),
        ("age", lambda one: age_group(one.age)),
        ("view", lambda one: one.view or "not stated"),
        ("scanner", lambda one: one.scanner or "not stated"),
    )
    owners = np.asarray(patients)
    for name, key in asked:
        groups = np.array([key(one) for one in found])
        for group in sorted(set(groups.tolist())):
            here = groups == group
            count, hits = int(here.sum()), int(positive[here].sum())
            bears = min(hits, count - hits) >= LEAST_OF_A_GROUP
            at = _at(None, flagged[here], positive[here])
            area = statistics.auc(scores[here], positive[here], owners[here].tolist(), resamples) if bears else None
            made.append(
                Subgroup(
                    name,
                    group,
                    count,
                    hits,
                    area,
                    at.sensitivity if bears else None,
                    at.specificity if bears else None,
                )
            )
    return made


def age_group(age: int | None) -> str:
    """The group in years, such as ``18-39``."""
    if age is None:
        return "not stated"
    return next(
        (f"{low}-{high}" if high < 200 else f"{low}+" for low, high in _AGES if low <= age <= high), "not stated"
    )


def basis(run: str, found: Validation) -> str:
    """On what a threshold stands that is set by these figures."""

    def told(figure: Figure | None) -> str:
        return "none" if figure is None else f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"

    return (
        f"run {run}: {found.studies} studies, {found.positive} positive; sensitivity {told(found.aimed.sensitivity)}, "
        f"specificity {told(found.aimed.specificity)} (exact 95 % intervals)"
    )


def as_json(found: Validation) -> dict[str, Any]:
    """The figures as JSON knows them."""
    from dataclasses import asdict

    plain = statistics.finite(asdict(found))
    assert isinstance(plain, dict)  # noqa: S101 - of a dict a dict is made
    return plain
