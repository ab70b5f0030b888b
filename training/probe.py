"""What a linear layer on frozen features tells, by the folds of trainings: for the tries of docs/experiments.md.

Each image and its mirror image go through the frozen part of a `minaee` recipe once and are kept in the working folder.
A logistic regression is fitted on four folds, weighted as the recipe's `balance` says, and asked about the fifth.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from dicom_node.evaluation.bootstrap import RESAMPLES
from training.data.splits import groups_of
from training.evaluation.baselines import NoLungForests
from training.evaluation.rows import Rows
from training.evaluation.tasks import COVID19, PNEUMONIA, pneumonia_tasks, scored, within_sources
from training.experiment import FOLDS, folds, labelled
from training.finishing import balanced, regression
from training.fit import Images
from training.frozen import kept_features, shared_features
from training.localise import Localiser
from training.models.classifier import class_scores
from training.papers import robust
from training.papers.paper import DataSet

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from dicom_node.evaluation.shape import Task
    from training.data.manifest import Picture
    from training.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Choice:
    """Which images a probe takes and learns from.

    Attributes
    ----------
    most
        Images of a collection at most, drawn by the recipe's seed; the folds are those of all. 0: all of them, by the
        features that trainings keep.
    without
        Collections that are not learnt from.
    share
        Share of the patients of cohen that is learnt from.
    """

    most: int = 1000
    without: tuple[str, ...] = ()
    share: float = 1.0


def probe(
    recipe: Recipe,
    pictures: Sequence[Picture],
    manifest: Path,
    workdir: Path,
    choice: Choice,
    resamples: int = RESAMPLES,
) -> dict[str, Task]:
    """The questions within one source, as `training.evaluation.tasks` has them, by their names.

    Parameters
    ----------
    pictures, manifest
        Of a manifest, and the manifest or its folder.
    """
    data = labelled(pictures, partial(robust.label, classes=recipe.classes), recipe.classes)
    fold = np.full(len(data.labels), -1)
    for index, run in enumerate(folds(data, recipe.seed)[:FOLDS]):
        fold[run.test] = index
    kept = np.flatnonzero((fold >= 0) & _at_most(data, choice.most, recipe.seed))
    data = DataSet(tuple(data.pictures[i] for i in kept), data.labels[kept], data.classes)
    localiser = Localiser(pictures, manifest, workdir)
    if choice.most:
        features = kept_features(recipe, data.pictures, workdir, localiser)
    else:
        features = shared_features(recipe, data.pictures, pictures, workdir, localiser)
    logits = _out_of_fold(features, data, fold[kept], recipe, _learnt_from(data, choice, recipe))
    groups = groups_of(data.pictures)
    rows = Rows(
        runs=np.char.add("fold", fold[kept].astype(np.str_)),
        images=np.array([picture.image_id for picture in data.pictures]),
        patients=np.array([picture.patient_id for picture in data.pictures]),
        groups=groups,
        labels=data.labels,
        classes=data.classes,
        scores={name: found.numpy() for name, found in class_scores(torch.from_numpy(logits), data.classes).items()},
    )
    by_id = {picture.image_id: picture for picture in data.pictures}
    forests = NoLungForests()
    given = scored(rows, recipe, COVID19, by_id, COVID19, PNEUMONIA)
    found = dict(within_sources(given, COVID19, PNEUMONIA, forests, resamples)) if given else {}
    pneumonia = scored(rows, recipe, COVID19, by_id, PNEUMONIA)
    return found | (pneumonia_tasks(pneumonia, forests, resamples) if pneumonia else {})


def _at_most(data: DataSet, most: int, seed: int) -> NDArray[np.bool_]:
    """Which images are taken."""
    source = np.array([picture.source for picture in data.pictures])
    place = np.random.default_rng(seed).permutation(len(source))
    taken = np.zeros(len(source), dtype=bool)
    for name in np.unique(source):
        members = np.flatnonzero(source == name)
        taken[members[np.argsort(place[members])][: most or None]] = True
    return taken


def _learnt_from(data: DataSet, choice: Choice, recipe: Recipe) -> NDArray[np.bool_]:
    """Which images are learnt from, in the folds that do not test them."""
    groups = groups_of(data.pictures)
    order = np.random.default_rng(recipe.seed).permutation(groups.max() + 1)
    source = np.array([picture.source for picture in data.pictures])
    some = order[groups] < choice.share * len(order)
    return np.asarray(~np.isin(source, choice.without) & (some | (source != "cohen")))


def _out_of_fold(
    features: NDArray[np.float32],
    data: DataSet,
    fold: NDArray[np.int64],
    recipe: Recipe,
    learnt_from: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Logits of shape (N, classes), each by a regression on other folds."""
    logits = np.full((len(fold), len(data.classes)), -np.inf)
    strata = [f"{p.source}/{label}" for p, label in zip(data.pictures, data.labels, strict=True)]
    images = Images(np.zeros((len(fold), 0, 0), dtype=np.uint8), data.labels, strata)
    for test in range(FOLDS):
        chosen = np.flatnonzero((fold != test) & learnt_from)
        weights = balanced(images.chosen(chosen), recipe.balance)
        strength = recipe.finish_options["strength"]
        scaler, fitted = regression(features[chosen], data.labels[chosen], weights, strength)
        found = fitted.decision_function(scaler.transform(features[fold == test, 0]))
        found = np.stack([-found / 2, found / 2], axis=1) if found.ndim == 1 else found
        logits[np.ix_(fold == test, fitted.classes_)] = found
    return logits
