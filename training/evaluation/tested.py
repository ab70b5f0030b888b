"""The tested images of an experiment by its own labels, as papers report them, and the papers' numbers beside ours."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from dicom_node.evaluation import statistics
from dicom_node.evaluation.bootstrap import RESAMPLES
from training.evaluation.groups import at, best_thresholds, group
from training.evaluation.measures import measure
from training.papers.paper import Measure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from dicom_node.evaluation.shape import Compared, ComparedTable, Figure, Group, OfRuns, Tested
    from training.data.manifest import Picture
    from training.evaluation.rows import Rows
    from training.papers.paper import Paper, Published

_OF_RUNS = {
    "auc": Measure("auc"),
    "accuracy": Measure("accuracy"),
    "macro precision": Measure("precision", positive=""),
    "macro recall": Measure("recall", positive=""),
    "macro F1": Measure("f1", positive=""),
}


def asked_class(classes: Sequence[str], task: str) -> str:
    """The class that an experiment's score asks for: its task's, or the last where there is none of that name."""
    return task if task in classes else classes[-1]


def figures(
    record: Mapping[str, Any], rows: Rows, pictures: Mapping[str, Picture], resamples: int = RESAMPLES
) -> Tested | None:
    """All figures of the rows, pooled over the runs; None where they hold one class only.

    Thresholds are chosen on the rows that they are applied to, as in the papers: such figures flatter.
    """
    positive, name = asked_class(rows.classes, record["task"]), record["recipe"]["score"]
    truth = rows.is_class(positive)
    if truth.all() or not truth.any():
        return None
    scores, probabilities = rows.column(name), rows.probabilities
    source = np.array([pictures[image].source for image in rows.images.tolist()])
    by_class, classes = {}, None
    if probabilities is not None:
        predicted = probabilities.argmax(axis=1)
        classes = statistics.predicted_classes(rows.labels, predicted, rows.classes, rows.groups, resamples)
        by_class = {
            label: _group(rows, probabilities[:, i], rows.labels == i, resamples=resamples)
            for i, label in enumerate(rows.classes)
        }
    return {
        "score": name,
        "positive": positive,
        "figures": _group(rows, scores, truth, resamples=resamples),
        "one_against_rest": by_class,
        "classes": classes,
        "sources": {str(where): _group(rows, scores, truth, source == where, resamples) for where in np.unique(source)},
        "of_runs": _of_runs(record, rows, positive),
        "runs": rows.run_names,
    }


def _group(
    rows: Rows,
    scores: NDArray[np.float64],
    truth: NDArray[np.bool_],
    which: NDArray[np.bool_] | None = None,
    resamples: int = RESAMPLES,
) -> Group:
    """Figures of some rows at the thresholds that are best on all."""
    which = np.ones(len(rows), dtype=bool) if which is None else which
    names = [rows.classes[label] for label in rows.labels[which].tolist()]
    both = bool(truth.any() and not truth.all())
    thresholds = best_thresholds(scores, truth) if both else {}
    by_threshold = at(scores[which], truth[which], thresholds, "on these very images, all sources together")
    patients, groups = rows.patients[which], rows.groups[which]
    return group(scores[which], truth[which], patients, groups, by_threshold, names, resamples)


def _of_runs(record: Mapping[str, Any], rows: Rows, positive: str) -> dict[str, OfRuns]:
    found: dict[str, OfRuns] = {}
    for name, wanted in _OF_RUNS.items():
        asked = Measure(wanted.kind, positive=positive if wanted.positive else "")
        figure = measure(record, rows, asked, resamples=0)
        if figure is not None and (each := figure.get("of_runs")) is not None:
            found[name] = each
    return found


def published(paper: Paper, record: Mapping[str, Any], rows: Rows, resamples: int = RESAMPLES) -> list[ComparedTable]:
    """Every number of the paper, in its order, with ours where this experiment gives it."""
    return [
        {
            "name": table.name,
            "caption": table.caption,
            "numbers": [_compared(paper, record, rows, number, resamples) for number in table.numbers],
        }
        for table in paper.tables
    ]


def _compared(paper: Paper, record: Mapping[str, Any], rows: Rows, number: Published, resamples: int) -> Compared:
    wanted, ours, why = number.measure, None, ""
    variant = (wanted.variant or paper.variants[0]) if wanted else ""
    if wanted is None:
        why = "not a number that scores give"
    elif variant != record["variant"] and not wanted.of_data:
        why = f"of the variant {variant}"
    else:
        ours, why = _ours(record, rows, wanted, resamples)
    return {
        "row": number.row,
        "column": number.column,
        "paper": number.value,
        "deviation": number.deviation,
        "deviation_is": number.deviation_is,
        "remark": number.remark,
        "measure": asdict(wanted) if wanted else None,
        "variant": variant,
        "ours": ours,
        "why": why,
    }


def _ours(record: Mapping[str, Any], rows: Rows, wanted: Measure, resamples: int) -> tuple[Figure | None, str]:
    try:
        found = measure(record, rows, wanted, resamples)
    except ValueError as error:
        return None, str(error)
    if found is not None:
        return found, ""
    named = [name for name in (wanted.positive, wanted.predicted) if name and name not in rows.classes]
    return None, f"no image of class {named[0]} was tested" if named else "the tested scores do not give it"
