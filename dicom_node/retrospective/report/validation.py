"""A run held against the truth: how well the ensemble agrees with what a site knows of its own studies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dicom_node.combination import log_odds
from dicom_node.domain import Decision, NodeError, decided
from dicom_node.evaluation import statistics
from dicom_node.evaluation.bootstrap import RESAMPLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from dicom_node.evaluation.shape import Band, Calibration, Curve, Figure

LEAST_OF_A_GROUP = 10  # of either class
LEAST_POSITIVE = 20  # for a threshold to be set by
_AGES = ((0, 17), (18, 39), (40, 64), (65, 200))


class ValidationError(NodeError):
    """The labels do not bear a validation."""

    reason = "validation"


class Labelled(NamedTuple):
    """A labelled study with an answer.

    Attributes
    ----------
    images
        Of each of its images with an answer, the probability and the answer's reach
        (`dicom_node.retrospective.report.answers.Told`).
    """

    score: float
    decision: str
    positive: bool
    patient: str | None
    sex: str
    age: int | None
    view: str
    scanner: str
    images: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class AtThreshold:
    """What a threshold gives on these studies.

    Attributes
    ----------
    threshold
        None where it was not the same for all of them.
    indeterminate
        How many are left undecided, of the positive and of the negative; all of them count as not flagged.
    """

    threshold: float | None
    indeterminate: tuple[int, int]
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
        As the studies were decided on, by the thresholds that counted when they were screened.
    aimed
        Of the threshold at which the probability alone reaches the sensitivity that was asked for: nothing is left
        undecided.
    aimed_decided
        Of the same threshold, what would be flagged by it: where the members disagree too far, nothing is.
    """

    target: str
    studies: int
    positive: int
    by_patient: bool
    auc: Figure
    average_precision: Figure
    roc: Curve
    roc_band: Band | None
    precision_recall: Curve
    precision_recall_band: Band | None
    current: AtThreshold
    aimed_sensitivity: float
    aimed: AtThreshold
    aimed_decided: AtThreshold
    calibration: Calibration
    subgroups: tuple[Subgroup, ...]


def validate(
    target: str, found: Sequence[Labelled], thresholds: Iterable[float], aimed: float, resamples: int = RESAMPLES
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
    decisions = [one.decision for one in found]
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
    current = _decided(counted.pop() if len(counted) == 1 else None, decisions, positive)
    flagged = np.array([one == Decision.FLAGGED for one in decisions], dtype=bool)
    return Validation(
        target=target,
        studies=len(found),
        positive=int(positive.sum()),
        by_patient=by_patient,
        auc=area,
        average_precision=precision,
        roc=roc,
        roc_band=statistics.roc_band(scores, positive, patients, resamples),
        precision_recall=curve,
        precision_recall_band=statistics.precision_recall_band(scores, positive, patients, resamples),
        current=current,
        aimed_sensitivity=aimed,
        aimed=_at(chosen, scores >= chosen, positive),
        aimed_decided=_decided(chosen, [decision_at(chosen, one.images) for one in found], positive),
        calibration=calibration,
        subgroups=tuple(_subgroups(found, scores, flagged, positive, patients, resamples)),
    )


def decision_at(threshold: float, images: Sequence[tuple[float, float]]) -> Decision:
    """What would be decided of a study were its images held against another threshold."""
    at = log_odds(threshold)
    decisions = [
        Decision.INDETERMINATE if abs(log_odds(probability) - at) < reach else decided(probability, threshold)
        for probability, reach in images
    ]
    if Decision.FLAGGED in decisions:
        return Decision.FLAGGED
    return max(zip(images, decisions, strict=True), key=lambda one: one[0][0])[1]


def _decided(threshold: float | None, decisions: Sequence[str], positive: NDArray[np.bool_]) -> AtThreshold:
    found = np.array(decisions)
    return _at(threshold, found == str(Decision.FLAGGED), positive, found == str(Decision.INDETERMINATE))


def _at(
    threshold: float | None,
    flagged: NDArray[np.bool_],
    positive: NDArray[np.bool_],
    undecided: NDArray[np.bool_] | None = None,
) -> AtThreshold:
    open_ones = np.zeros_like(positive) if undecided is None else undecided

    def share(hits: NDArray[np.bool_], of: NDArray[np.bool_]) -> Figure | None:
        return statistics.proportion(int((hits & of).sum()), int(of.sum()))

    return AtThreshold(
        threshold=threshold,
        indeterminate=(int((open_ones & positive).sum()), int((open_ones & ~positive).sum())),
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

    text = (
        f"run {run}: {found.studies} studies, {found.positive} positive; sensitivity {told(found.aimed.sensitivity)}, "
        f"specificity {told(found.aimed.specificity)} (exact 95 % intervals)"
    )
    if any(found.aimed_decided.indeterminate):
        text += f"; indeterminate counted as missed, sensitivity {told(found.aimed_decided.sensitivity)}"
    return text
