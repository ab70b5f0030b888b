"""The numbers that papers publish, each computed from an experiment's scores: `training.papers.paper.KINDS`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.metrics import f1_score, log_loss, precision_score, recall_score

from dicom_node.evaluation import bootstrap, statistics
from dicom_node.evaluation.bootstrap import RESAMPLES
from dicom_node.evaluation.statistics import bootstrapped, proportion

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from dicom_node.evaluation.shape import Figure
    from training.evaluation.rows import Rows
    from training.papers.paper import Measure

    # Rows, the measure with its score filled in, and the number of bootstrap draws.
    Kind = Callable[[Rows, Measure, int], Figure | None]


def measure(record: Mapping[str, Any], rows: Rows, wanted: Measure, resamples: int = RESAMPLES) -> Figure | None:
    """The number over the pooled rows of all runs, with its interval, and `of_runs`: run by run.

    None where the rows do not give it: no image of the class, or a network without a probability for each class.

    Raises
    ------
    ValueError
        Where the kind or the score is not known.
    """
    if wanted.kind == "training images":
        return _training_images(record, wanted.positive)
    kind = _BY_KIND.get(wanted.kind)
    if kind is None:
        raise ValueError(f"measure {wanted.kind!r} is not known; known are {', '.join(_BY_KIND)}")
    filled = replace(wanted, score=wanted.score or record["recipe"]["score"])
    figure = kind(rows, filled, resamples)
    if figure is not None:
        each = [kind(rows.chosen(rows.runs == run), filled, 0) for run in rows.run_names]
        figure["of_runs"] = statistics.of_runs([None if found is None else found["value"] for found in each])
    return figure


def _training_images(record: Mapping[str, Any], positive: str) -> Figure | None:
    """Mean over the runs: with folds, an image is trained on in several."""
    by_run = [run["train_by_class"] for run in record["runs"]]
    runs = statistics.of_runs([found.get(positive, 0) if positive else sum(found.values()) for found in by_run])
    if runs is None:
        return None
    return _counted(runs["mean"], round(runs["mean"])) | {"of_runs": runs}


def _counted(value: float, n: int) -> Figure:
    return {"value": float(value), "low": None, "high": None, "n": n, "interval": "none"}


def _of(rows: Rows, wanted: Measure) -> Rows:
    """The rows of class `positive`; all where it is empty."""
    return rows.chosen(rows.is_class(wanted.positive)) if wanted.positive else rows


def _images(rows: Rows, wanted: Measure, _resamples: int) -> Figure | None:
    count = len(_of(rows, wanted))
    return _counted(count, count)


def _patients(rows: Rows, wanted: Measure, _resamples: int) -> Figure | None:
    chosen = _of(rows, wanted)
    return _counted(len(np.unique(chosen.patients)), len(chosen))


def _auc(rows: Rows, wanted: Measure, resamples: int) -> Figure | None:
    return statistics.auc(rows.column(wanted.score), rows.is_class(wanted.positive), rows.groups, resamples)


def _sensitivity(rows: Rows, wanted: Measure, _resamples: int) -> Figure | None:
    scores = rows.column(wanted.score)[rows.is_class(wanted.positive)]
    return proportion(int((scores >= _at(wanted)).sum()), len(scores))


def _specificity(rows: Rows, wanted: Measure, _resamples: int) -> Figure | None:
    scores = rows.column(wanted.score)[~rows.is_class(wanted.positive)]
    return proportion(int((scores < _at(wanted)).sum()), len(scores))


def _at(wanted: Measure) -> float:
    if wanted.at is None:
        raise ValueError(f"measure {wanted.kind!r} needs a threshold or a target in `at`")
    return wanted.at


def _at_sensitivity(then: Kind) -> Kind:
    """The kind at the highest threshold that reaches sensitivity `at` on these rows."""

    def kind(rows: Rows, wanted: Measure, resamples: int) -> Figure | None:
        positive = rows.is_class(wanted.positive)
        if positive.all() or not positive.any():
            return None
        points = statistics.operating_points(rows.column(wanted.score), positive, _at(wanted))
        return then(rows, replace(wanted, at=points["high-sensitivity"]["threshold"]), resamples)

    return kind


def _predicted(rows: Rows) -> NDArray[np.int64] | None:
    """The likeliest class of each row."""
    probabilities = rows.probabilities
    return None if probabilities is None or not len(rows) else probabilities.argmax(axis=1)


def _accuracy(rows: Rows, _wanted: Measure, _resamples: int) -> Figure | None:
    predicted = _predicted(rows)
    return None if predicted is None else proportion(int((predicted == rows.labels).sum()), len(rows))


def _by_class(place: int, score: Callable[..., Any]) -> Kind:
    """Precision, recall or F1 (0, 1, 2): of class `positive`, or the mean over the classes."""

    def kind(rows: Rows, wanted: Measure, resamples: int) -> Figure | None:
        predicted = _predicted(rows)
        if predicted is None or (wanted.positive and wanted.positive not in rows.classes):
            return None
        classes = list(range(len(rows.classes)))
        confusions = bootstrap.weighted_confusion(rows.labels, predicted, len(classes))
        if not wanted.positive:
            value = score(rows.labels, predicted, labels=classes, average="macro", zero_division=0.0)
            return bootstrapped(
                value, lambda weights: statistics.by_class(confusions(weights))[place].mean(axis=1), rows.groups,
                resamples,
            )  # fmt: skip
        index = rows.classes.index(wanted.positive)
        called, there = predicted == index, rows.labels == index
        if place < 2:
            return proportion(int((called & there).sum()), int((called, there)[place].sum()))
        return bootstrapped(
            score(there, called, zero_division=0.0),
            lambda weights: statistics.by_class(confusions(weights))[place][:, index],
            rows.groups,
            resamples,
        )

    return kind


def _confusion(rows: Rows, wanted: Measure, _resamples: int) -> Figure | None:
    """A count; its interval is that of the share, times the images of the class."""
    predicted, of_class = _predicted(rows), rows.is_class(wanted.positive)
    if predicted is None or wanted.predicted not in rows.classes:
        return None
    n = int(of_class.sum())
    share = proportion(int((predicted[of_class] == rows.classes.index(wanted.predicted)).sum()), n)
    if share is None or share["low"] is None or share["high"] is None:
        return None
    hits, low, high = share["hits"], share["low"] * n, share["high"] * n
    return {"value": float(hits), "low": low, "high": high, "n": n, "interval": share["interval"]}


def _micro(*, of_predictions: bool) -> Kind:
    """Keras' Precision or Recall over one-hot labels: each probability of `at` or more is a prediction."""

    def kind(rows: Rows, wanted: Measure, _resamples: int) -> Figure | None:
        chosen = _of(rows, wanted)
        probabilities = chosen.probabilities
        if probabilities is None:
            return None
        predictions = probabilities >= _at(wanted)
        right = int(predictions[np.arange(len(chosen)), chosen.labels].sum())
        return proportion(right, int(predictions.sum()) if of_predictions else len(chosen))

    return kind


def _mean_score(rows: Rows, wanted: Measure, resamples: int) -> Figure | None:
    chosen = _of(rows, wanted)
    return statistics.mean(chosen.column(wanted.score), chosen.groups, resamples)


def _loss(rows: Rows, wanted: Measure, resamples: int) -> Figure | None:
    chosen = _of(rows, wanted)
    probabilities = chosen.probabilities
    if probabilities is None or not len(chosen):
        return None
    value = log_loss(chosen.labels, probabilities, labels=list(range(len(rows.classes))))
    least = np.finfo(np.float64).eps
    of_true = probabilities[np.arange(len(chosen)), chosen.labels].clip(least, 1 - least)
    return bootstrapped(value, bootstrap.weighted_mean(-np.log(of_true)), chosen.groups, resamples)


_BY_KIND: dict[str, Kind] = {
    "images": _images,
    "patients": _patients,
    "auc": _auc,
    "sensitivity": _sensitivity,
    "specificity": _specificity,
    "specificity at sensitivity": _at_sensitivity(_specificity),
    "sensitivity at sensitivity": _at_sensitivity(_sensitivity),
    "accuracy": _accuracy,
    "precision": _by_class(0, precision_score),
    "recall": _by_class(1, recall_score),
    "f1": _by_class(2, f1_score),
    "confusion": _confusion,
    "micro precision": _micro(of_predictions=True),
    "micro recall": _micro(of_predictions=False),
    "mean score": _mean_score,
    "loss": _loss,
}
