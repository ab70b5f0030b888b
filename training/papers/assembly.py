"""How the papers' data sets are put together out of a manifest: what is left out, picked, and held out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from training.papers.paper import DataSet, Run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from training.data.manifest import Picture

REPRODUCING = ("paper", "small")
PROFILES = (*REPRODUCING, "robust")
# Picks belong to the data set, not to a training: they do not change with the training's seed.
PICK = 20


def usable(pictures: Sequence[Picture]) -> list[Picture]:
    """The frontal pictures that are not `external`, in an order that is not the manifest's."""
    return sorted((p for p in pictures if p.frontal and p.split != "external"), key=lambda p: p.image_id)


def of_sources(pictures: Sequence[Picture], *preferred: tuple[str, ...]) -> list[Picture]:
    """The pictures of the first of the preferences whose first source is at hand; all where none is."""
    at_hand = {picture.source for picture in pictures}
    sources = next((names for names in preferred if names[0] in at_hand), tuple(at_hand))
    return [picture for picture in pictures if picture.source in sources]


def carries(picture: Picture, label: str) -> bool:
    """Whether the collection's owner gave the picture that label, among others."""
    return label in picture.labels.split("|")


def pick(pictures: Sequence[Picture], count: int) -> list[Picture]:
    """At most `count` pictures at random, patient by patient."""
    from training.data.splits import groups_of  # scikit-learn: not for whoever only reads a recipe

    groups = groups_of(pictures)
    place = np.random.default_rng(PICK).permutation(groups.max(initial=-1) + 1)
    return [pictures[i] for i in np.argsort(place[groups], kind="stable")[:count]]


def pick_first(preferred: Sequence[Picture], others: Sequence[Picture], count: int) -> list[Picture]:
    """At most `count` pictures at random, of the others only as many as the preferred ones leave open."""
    chosen = pick(preferred, count)
    return chosen + pick(others, count - len(chosen))


def data_set(parts: Mapping[str, Sequence[Picture]]) -> DataSet:
    """The pictures of each class, in the order of the classes."""
    pictures = [picture for chosen in parts.values() for picture in chosen]
    labels = np.repeat(np.arange(len(parts)), [len(chosen) for chosen in parts.values()])
    return DataSet(tuple(pictures), labels.astype(np.int64), tuple(parts))


def cross_validation(data: DataSet, folds: int, seed: int, name: str) -> list[Run]:
    """Each group is tested once; every class is spread over all folds."""
    from training.data.splits import fold_of

    fold = fold_of(data.pictures, [data.classes[i] for i in data.labels], folds, seed)
    return [Run(f"{name}{k}", np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(folds)]


def held_out(
    pictures: Sequence[Picture], strata: Sequence[str], wanted: Mapping[str, int], seed: int
) -> NDArray[np.bool_]:
    """Which pictures are tested: whole groups at random, at most `wanted` of each stratum, none of other strata.

    Groups of `val` come first: what a collection's owner tests is tested here too, as in the papers.
    """
    from training.data.splits import groups_of

    names = list(wanted)
    groups = groups_of(pictures)
    count = groups.max(initial=-1) + 1
    held = np.zeros((count, len(names) + 1), dtype=np.int64)
    column = np.array([names.index(name) if name in wanted else len(names) for name in strata], dtype=np.int64)
    np.add.at(held, (groups, column), 1)
    trained = np.zeros(count, dtype=bool)
    trained[groups[[picture.split != "val" for picture in pictures]]] = True
    order = np.random.default_rng(seed).permutation(count)
    left = np.array([*wanted.values(), 0])
    chosen = np.zeros(count, dtype=bool)
    for group in order[np.argsort(trained[order], kind="stable")]:
        if (held[group] <= left).all():
            chosen[group] = True
            left -= held[group]
    return np.asarray(chosen[groups])


def check_known(variant: str, variants: Sequence[str], profile: str) -> None:
    """Refuse a variant or a profile that is not known."""
    for what, given, known in (("variant", variant, variants), ("profile", profile, PROFILES)):
        if given not in known:
            raise ValueError(f"{what} {given!r} is not known; known: {', '.join(known)}")
