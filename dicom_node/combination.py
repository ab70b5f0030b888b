"""How the outputs of an ensemble's members become one answer to each question of its bundle. No torch, no I/O."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dicom_node.bundle import REST, SUM
from dicom_node.domain import SITE, Decision, NodeError, TargetResult, decided

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dicom_node.bundle import Calibration, Manifest, Scaling, Target

    Outputs = Mapping[str, Mapping[str, float]]  # of one image, by member and name

_LEAST = 1e-12  # a probability's distance from 0 and 1, where its logit is asked for


class AnswerError(NodeError):
    """The members' outputs give no answer."""

    reason = "no_answer"


@dataclass(frozen=True, slots=True)
class Answer:
    """One question's answer before it is held against a threshold.

    Attributes
    ----------
    logit
        Of the combined probability.
    unconditional
        What the members say together, before any condition and scaling.
    members
        By member, the logit of what the answer would be if that member were alone.
    spread
        Weighted deviation of `members` about their weighted mean.
    """

    logit: float
    unconditional: float
    members: Mapping[str, float]
    spread: float


def answers(manifest: Manifest, outputs: Outputs) -> dict[str, Answer]:
    """The answer to each question, by its name.

    Parameters
    ----------
    outputs
        A member that is not there has no say, where the manifest does not require it.

    Raises
    ------
    AnswerError
        A question that no member is left to answer, or an output that is not finite.
    """
    found: dict[str, Answer] = {}
    for target in sorted(manifest.targets, key=lambda each: each.condition is not None):
        found[target.name] = _answer(target, _logits(manifest, target, outputs), found)
    return found


def results(
    manifest: Manifest, outputs: Outputs, thresholds: Mapping[str, float] | None = None
) -> tuple[TargetResult, ...]:
    """The answers in the manifest's order, each decided.

    Parameters
    ----------
    thresholds
        Of a site, by target; where it has none, the operating point's in force holds.

    Raises
    ------
    AnswerError
        As `answers`.
    """
    found = answers(manifest, outputs)
    return tuple(
        _decide(target, found[target.name], (thresholds or {}).get(target.name)) for target in manifest.targets
    )


def _decide(target: Target, answer: Answer, of_site: float | None) -> TargetResult:
    threshold = target.threshold if of_site is None else of_site
    point = target.operating_point if of_site is None else SITE
    probability = sigmoid(answer.logit)
    decision = decided(probability, threshold)
    if target.disagreement is not None and disagreement(answer, threshold) > target.disagreement.bound:
        decision = Decision.INDETERMINATE
    members = {name: sigmoid(logit) for name, logit in answer.members.items()}
    return TargetResult(target.name, probability, threshold, decision, members, point)


def anomalies(manifest: Manifest, outputs: Outputs) -> dict[str, list[str]]:
    """Of each member that tells anomalies, the outputs by which the image is one."""
    return {
        member.name: [name for name, limits in member.anomalous.items() if limits.passed(outputs[member.name][name])]
        for member in manifest.members
        if member.anomalous and member.name in outputs
    }


def disagreement(answer: Answer, threshold: float) -> float:
    """The spread of the members' logits over the distance of the combined logit from the threshold's; 0 to infinity.

    Where members lie apart and the threshold among them, it is a matter of chance which of them prevail.
    """
    margin = abs(answer.logit - log_odds(threshold))
    return answer.spread / margin if margin > 0 else math.inf if answer.spread > 0 else 0.0


def _logits(manifest: Manifest, target: Target, outputs: Outputs) -> dict[str, float]:
    """Each member's calibrated logit of the question."""
    found = {}
    for member in manifest.members:
        if member.name in target.weights and member.name in outputs:
            logit = calibrated(member.calibration[target.name], outputs[member.name])
            if not math.isfinite(logit):
                raise AnswerError(f"{manifest.name} {manifest.release}: {target.name} of {member.name} is {logit}")
            found[member.name] = logit
        elif member.name in target.weights and member.required:
            raise AnswerError(f"{manifest.name} {manifest.release}: {member.name} is required and gave no output")
    return found


def calibrated(scaling: Calibration, outputs: Mapping[str, float]) -> float:
    """The logit of one member's outputs."""
    value = _summed(scaling.output, outputs)
    if scaling.over:
        over = 1 - value if scaling.over == REST else _summed(scaling.over, outputs)
        value = math.log(max(value, _LEAST)) - math.log(max(over, _LEAST))
    return _scaled(scaling, value)


def _summed(names: str, outputs: Mapping[str, float]) -> float:
    return math.fsum(outputs[name] for name in names.split(SUM))


def _scaled(scaling: Scaling | None, value: float) -> float:
    return value if scaling is None else scaling.slope * value + scaling.intercept


def _answer(target: Target, logits: Mapping[str, float], before: Mapping[str, Answer]) -> Answer:
    weights = {name: target.weights[name] for name in logits}
    size = math.fsum(map(abs, weights.values()))
    if not size > 0:
        raise AnswerError(f"{target.name}: no member is left to answer it")

    def finished(logit: float) -> float:
        if target.condition is not None:
            over = before[target.condition.target].logit - log_odds(target.condition.threshold)
            logit = _both(logit, over)
        return _scaled(target.scaling, logit)

    members = {name: finished(logit) for name, logit in logits.items()}
    middle = math.fsum(abs(weights[name]) * members[name] for name in members) / size
    variance = math.fsum(abs(weights[name]) * (members[name] - middle) ** 2 for name in members) / size
    combined = _combined(target, logits, weights)
    return Answer(finished(combined), combined, members, math.sqrt(variance))


def _combined(target: Target, logits: Mapping[str, float], weights: Mapping[str, float]) -> float:
    total = math.fsum(weights.values())
    if target.combination == "stacking":
        return target.intercept + math.fsum(weights[name] * logits[name] for name in logits)
    if target.combination == "voting":
        return log_odds(math.fsum(weights[name] for name in logits if logits[name] >= 0) / total)
    return math.fsum(weights[name] * logits[name] for name in logits) / total


def _both(a: float, b: float) -> float:
    """The logit of the product of the probabilities whose logits are `a` and `b`."""
    terms = (-a, -b, -a - b)
    largest = max(terms)
    return -(largest + math.log(math.fsum(math.exp(term - largest) for term in terms)))


def sigmoid(logit: float) -> float:
    """The probability of a logit, without overflow at either end."""
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else 1 - 1 / (1 + math.exp(logit))


def log_odds(probability: float) -> float:
    """The logit of a probability; finite at 0 and 1 too."""
    inside = min(max(probability, _LEAST), 1 - _LEAST)
    return math.log(inside) - math.log1p(-inside)
