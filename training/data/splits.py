"""Parts of a collection that share no patient and no near duplicate."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from training.data.manifest import Picture


def groups_of(pictures: Sequence[Picture]) -> NDArray[np.int64]:
    """The group of each picture: pictures of one patient, or of one cluster of near duplicates, are in one group."""
    count = len(pictures)
    names = [f"patient {p.patient_id}" for p in pictures] + [f"cluster {p.cluster}" for p in pictures if p.cluster]
    owners = [*range(count), *(i for i, p in enumerate(pictures) if p.cluster)]
    _, nodes = np.unique(names, return_inverse=True)
    size = count + (int(nodes.max()) + 1 if len(nodes) else 0)
    edges = coo_array((np.ones(len(owners)), (owners, count + nodes)), shape=(size, size))
    labels: NDArray[np.int64] = connected_components(edges, directed=False)[1][:count].astype(np.int64)
    return labels


def fold_of(pictures: Sequence[Picture], strata: Sequence[str], folds: int, seed: int) -> NDArray[np.int64]:
    """The fold that holds each picture back: a group stands in one fold, strata are spread over all."""
    assigned = np.full(len(pictures), -1, dtype=np.int64)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")  # it cannot be in every fold
        for fold, (_, held_back) in enumerate(splitter.split(strata, strata, groups_of(pictures))):
            assigned[held_back] = fold
    return assigned


def assign_splits(pictures: Sequence[Picture], parts: Mapping[str, float], seed: int) -> tuple[Picture, ...]:
    """The pictures with a split each: those that have one keep it, and draw all of their group after them.

    Parameters
    ----------
    parts
        The share of the other pictures that each split gets, of every source and finding as nearly as groups allow.

    Raises
    ------
    ValueError
        The shares are not positive, or not 1 together.
    """
    if not parts or min(parts.values()) <= 0 or abs(sum(parts.values()) - 1) > 1e-6:
        shares = ", ".join(f"{name}={share:g}" for name, share in parts.items())
        raise ValueError(f"the splits' shares have to be positive and 1 together, not {shares or 'none'}")
    groups = groups_of(pictures)
    settled: dict[int, str] = {}
    for picture, group in zip(pictures, groups, strict=True):
        if picture.split:
            settled.setdefault(group, picture.split)
    free = [i for i, group in enumerate(groups) if group not in settled]
    settled |= _drawn(groups[free], [f"{pictures[i].source}/{pictures[i].finding}" for i in free], parts, seed)
    return tuple(
        replace(picture, split=picture.split or settled[group]) for picture, group in zip(pictures, groups, strict=True)
    )


def held_out_together(pictures: Sequence[Picture]) -> tuple[Picture, ...]:
    """The pictures with their own splits, but a group that straddles them moves to the one furthest from training."""
    groups = groups_of(pictures)
    furthest: dict[int, str] = {}
    for picture, group in zip(pictures, groups, strict=True):
        furthest[group] = max(furthest.get(group, ""), picture.split, key=("", "train", "val", "external").index)
    return tuple(
        replace(picture, split=furthest[group] if picture.split else "")
        for picture, group in zip(pictures, groups, strict=True)
    )


def _drawn(groups: NDArray[np.int64], strata: Sequence[str], parts: Mapping[str, float], seed: int) -> dict[int, str]:
    """The split of each group: the largest groups first, each goes where its strata are wanted most."""
    names, members = np.unique(groups, return_inverse=True)
    kinds, kind = np.unique(strata, return_inverse=True)
    counts = np.zeros((len(names), len(kinds)))
    np.add.at(counts, (members, kind), 1)
    share = counts / counts.sum(axis=0)
    wanted = np.outer(list(parts.values()), np.ones(len(kinds)))
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-counts.sum(axis=1)[order], kind="stable")]
    chosen: dict[int, str] = {}
    for group in order:
        part = int(np.argmax(wanted @ share[group]))
        wanted[part] -= share[group]
        chosen[int(names[group])] = list(parts)[part]
    return chosen
