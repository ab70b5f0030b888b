"""From a manifest to the runs of an experiment: which images each trains on, and which it is tested on."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from training.data.splits import fold_of, groups_of
from training.papers import robust
from training.papers.paper import DataSet, Run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from training.data.manifest import Picture
    from training.papers.paper import Paper
    from training.recipe import Recipe

FOLDS = 5
FINAL = "final"
# Collections that hold both normal images and diseased ones, taken in one way: Basu's Data-A and what stands in for it.
NORMAL_AND_DISEASED = ("nih", "chexpert", "kermany")
VALIDATION_PART = 10  # one part in ten of a pretraining's images


def plan(
    paper: Paper, recipe: Recipe, pictures: Sequence[Picture], protocol: str, task: str
) -> tuple[DataSet, list[Run]]:
    """The data set of an experiment and its runs.

    Protocol ``paper`` is the paper's own. ``folds`` takes every frontal image of `train` and `val` that has a class:
    five runs grouped by patient and cluster, each testing a fifth, and one run `final` on `train` that tests `val` and
    `external`. The task ``pneumonia`` asks pneumonia or normal, within the collections that hold both.

    Raises
    ------
    ValueError
        Where a class of the recipe has no image, or the paper's own protocol is asked for another task.
    """
    if protocol == "paper" and task != "covid19":
        raise ValueError(f"task {task} is asked of folds: give --protocol folds")
    if protocol == "paper" and recipe.profile == robust.PROFILE:
        raise ValueError(f"profile {robust.PROFILE} is trained on all images at hand: give --protocol folds")
    if protocol == "paper":
        data = paper.data_set(pictures)
        runs = paper.splits(data, recipe.seed)
    else:
        label = paper.label
        if recipe.profile == robust.PROFILE:
            label = partial(robust.label, classes=recipe.classes)
        elif task != "covid19":
            label = pneumonia_or_normal
        data = labelled(pictures, label, recipe.classes)
        runs = folds(data, recipe.seed)
    for index, name in enumerate(data.classes):
        if not (data.labels == index).any():
            raise ValueError(f"no image of class {name} among {len(data.labels)} images; see: python -m training data")
    return data, runs


def labelled(pictures: Sequence[Picture], label: Callable[[Picture], str | None], classes: tuple[str, ...]) -> DataSet:
    """The frontal pictures that have a class."""
    found = [(picture, label(picture)) for picture in pictures if picture.frontal]
    kept = [(picture, name) for picture, name in found if name is not None]
    return DataSet(tuple(p for p, _ in kept), np.array([classes.index(n) for _, n in kept], dtype=np.int64), classes)


def pneumonia_or_normal(picture: Picture) -> str | None:
    """The class of the task ``pneumonia``."""
    fits = picture.source in NORMAL_AND_DISEASED and picture.finding in ("pneumonia", "normal")
    return picture.finding if fits else None


def for_task(recipe: Recipe, task: str) -> Recipe:
    """The recipe of a network with two classes, asked for pneumonia against normal instead.

    Raises
    ------
    ValueError
        Where the network tells more than two classes apart: it has that answer already.
    """
    if task == "covid19":
        return recipe
    if len(recipe.classes) != 2:
        raise ValueError(f"{recipe.paper} has the classes {', '.join(recipe.classes)}: task {task} is for two")
    classes = ("normal", "pneumonia")
    options = dict(recipe.options) | ({"classes": classes} if "classes" in recipe.options else {})
    score = recipe.score.replace("covid19", "pneumonia")
    # Copies make up for how few images of COVID-19 there are; of pneumonia there are many.
    return recipe.but(classes=classes, options=options, copies={}, score=score)


def folds(data: DataSet, seed: int) -> list[Run]:
    """Five runs over `train` and `val`, and the run `final`."""
    split = np.array([picture.split for picture in data.pictures])
    inside = np.flatnonzero(split != "external")
    chosen = [data.pictures[i] for i in inside]
    fold = fold_of(chosen, [f"{p.source}/{data.labels[i]}" for i, p in zip(inside, chosen, strict=True)], FOLDS, seed)
    runs = [Run(f"fold{k}", inside[fold != k], inside[fold == k]) for k in range(FOLDS)]
    trained = np.flatnonzero((split != "val") & (split != "external"))
    return [*runs, Run(FINAL, trained, np.flatnonzero((split == "val") | (split == "external")))]


def pretraining_set(pictures: Sequence[Picture], tested: Sequence[Picture]) -> DataSet:
    """Normal and diseased images (Basu 2020, Data-A) of no patient and no cluster that is tested."""
    shut_out = {picture.patient_id for picture in tested} | {p.cluster for p in tested if p.cluster}

    def label(picture: Picture) -> str | None:
        fits = picture.source in NORMAL_AND_DISEASED and picture.split != "external"
        if not fits or picture.patient_id in shut_out or picture.cluster in shut_out:
            return None
        return {"normal": "normal", "pneumonia": "diseased", "other_disease": "diseased"}.get(picture.finding)

    return labelled(pictures, label, ("normal", "diseased"))


def validation_part(data: DataSet, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices for training and for validation, grouped by patient and cluster."""
    strata = [f"{p.source}/{label}" for p, label in zip(data.pictures, data.labels, strict=True)]
    fold = fold_of(data.pictures, strata, VALIDATION_PART, seed)
    return np.flatnonzero(fold != 0), np.flatnonzero(fold == 0)


def check_apart(data: DataSet, run: Run) -> None:
    """Refuse a run that tests a patient or a near duplicate that it trains on."""
    groups = groups_of(data.pictures)
    for first, second in ((run.train, run.test), (run.train, run.validation), (run.validation, run.test)):
        if both := set(groups[first]) & set(groups[second]):
            picture = next(data.pictures[i] for i in first if groups[i] in both)
            raise ValueError(f"run {run.name}: patient {picture.patient_id}, or a near duplicate, stands in two parts")
