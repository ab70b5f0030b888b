"""What each member of an ensemble is worth: alone, and by what is lost without it; each image judged by other folds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dicom_node.evaluation.bootstrap import RESAMPLES
from dicom_node.evaluation.statistics import auc, auc_difference
from training.data.splits import groups_of
from training.evaluation.tasks import COVID19, LEAST_IMAGES, NORMAL, PNEUMONIA, Scored
from training.targets import ABNORMAL, fit_targets

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from dicom_node.combination import Answer
    from training.data.manifest import Picture
    from training.targets import Readings, Scores

    Answers = Sequence[Mapping[str, Answer]]  # by question, image by image

QUESTIONS = ((COVID19, COVID19, PNEUMONIA), (ABNORMAL, PNEUMONIA, NORMAL), (PNEUMONIA, PNEUMONIA, NORMAL))


def nested(
    readings: Readings, pictures: Sequence[Picture], scores: Sequence[Scores], runs: NDArray[np.str_]
) -> list[Mapping[str, Answer]]:
    """The answers to each image, weights and straight lines fitted on split `train` of the other folds."""
    found: list[Mapping[str, Answer]] = [{}] * len(pictures)
    train = np.array([picture.split == "train" for picture in pictures])
    for run in np.unique(runs):
        here = np.flatnonzero(runs == run).tolist()
        others = np.flatnonzero(train & (runs != run)).tolist()
        fitted = fit_targets(readings, [pictures[i] for i in others], [scores[i] for i in others])
        for i, answer in zip(here, fitted.answers([scores[i] for i in here]), strict=True):
            found[i] = answer
    return found


def scored(pictures: Sequence[Picture], answers: Answers, question: str, runs: NDArray[np.str_]) -> Scored:
    """One question's answers as the evaluation takes them."""
    logits = np.array([answer[question].logit for answer in answers])
    probability = 1 / (1 + np.exp(-logits))
    return Scored(tuple(pictures), "probability", probability, logits, runs, calibrated=True)


def what_members_are_worth(
    readings: Readings,
    pictures: Sequence[Picture],
    scores: Sequence[Scores],
    runs: NDArray[np.str_],
    resamples: int = RESAMPLES,
) -> list[dict[str, Any]]:
    """One row for each question within one collection: the ensemble, each member alone, the ensemble without each."""
    whole = nested(readings, pictures, scores, runs)
    without = {}
    if len(readings) > 1:
        for left_out in readings:
            rest = {name: own for name, own in readings.items() if name != left_out}
            if any(COVID19 in own for own in rest.values()):
                without[left_out] = nested(rest, pictures, scores, runs)
    rows = []
    for question, where, chosen, truth in _asked(pictures, whole):
        indices = np.flatnonzero(chosen).tolist()
        groups = groups_of([pictures[i] for i in indices])
        logits = _column(whole, indices, question)
        alone = {
            name: np.array([whole[i][question].members[name] for i in indices])
            for name in whole[indices[0]][question].members
        }
        areas = {name: auc(values, truth, groups, resamples) for name, values in alone.items()}
        best = max(areas, key=lambda name: (areas[name] or {"value": 0})["value"])
        rest_of = {
            name: _column(answers, indices, question)
            for name, answers in without.items()
            if all(question in answers[i] for i in indices)
        }
        rows.append(
            {
                "question": question,
                "where": where,
                "images": len(indices),
                "positives": int(truth.sum()),
                "ensemble": auc(logits, truth, groups, resamples),
                "unconditional": auc(
                    np.array([whole[i][question].unconditional for i in indices]), truth, groups, resamples
                ),
                "members": areas,
                "best": best,
                "more_than_best": auc_difference(logits, alone[best], truth, groups, resamples),
                "without": {
                    name: {
                        "auc": auc(values, truth, groups, resamples),
                        "loss": auc_difference(logits, values, truth, groups, resamples),
                    }
                    for name, values in rest_of.items()
                },
            }
        )
    return rows


def _column(answers: Answers, indices: Sequence[int], question: str) -> NDArray[np.float64]:
    return np.array([answers[i][question].logit for i in indices])


def _asked(
    pictures: Sequence[Picture], answers: Answers
) -> Iterator[tuple[str, str, NDArray[np.bool_], NDArray[np.bool_]]]:
    """Question, where, which images, and which of those are positive."""
    source = np.array([picture.source for picture in pictures])
    finding = np.array([picture.finding for picture in pictures])
    view = np.array([picture.view for picture in pictures])
    for question, positive, negative in QUESTIONS:
        if not all(question in answer for answer in answers):
            continue
        for name in np.unique(source).tolist():
            for only in ("", "PA") if question == COVID19 else ("",):
                chosen = (source == name) & np.isin(finding, [positive, negative]) & ((view == only) | (only == ""))
                truth = finding[chosen] == positive
                if min(truth.sum(), (~truth).sum()) >= LEAST_IMAGES:
                    yield question, f"{name}, {only}" if only else name, chosen, truth
