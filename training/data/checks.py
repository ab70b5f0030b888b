"""What stands against training on a collection, in sentences."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from training.data.manifest import Picture

SPLITS = ("train", "val", "external")
VIEWS = ("PA", "AP", "LATERAL", "")
_NAMED = 5  # examples in a sentence


def check(pictures: Sequence[Picture], classes: Iterable[str] = (), *, files: bool = True) -> list[str]:
    """The refusals of a collection, one sentence for each kind of fault; none where it can be trained on.

    Parameters
    ----------
    classes
        Findings that need at least one frontal image.
    files
        Whether a missing file is a fault; a training leaves a few out, as it does those that cannot be read.
    """
    twice = [name for name, count in Counter(picture.image_id for picture in pictures).items() if count > 1]
    splits = sorted({picture.split for picture in pictures} - {*SPLITS, ""})
    slices = [f"{p.image_id} ({p.view})" for p in pictures if p.finding != "not_cxr" and p.view not in VIEWS]
    missing = [str(picture.path) for picture in pictures if files and not picture.path.is_file()]
    there = {picture.finding for picture in pictures if picture.frontal}
    found = {
        "no image is listed": [] if pictures else ["the manifest is empty"],
        "image_id is not unique": twice,
        f"the split is none of {', '.join(SPLITS)}": splits,
        "a patient stands in two splits": _in_two_splits((p.patient_id, p.split) for p in pictures),
        "a cluster of near duplicates stands in two splits": _in_two_splits((p.cluster, p.split) for p in pictures),
        "one file (by its sha256) stands in two splits": _in_two_splits((p.sha256, p.split) for p in pictures),
        "CT slices, or other images that are no X-rays, stand among the X-rays (the view says so)": slices,
        "a class has no frontal image": [name for name in classes if name not in there],
        "a file is missing": missing,
    }
    return [f"{fault}: {_first(names)}" for fault, names in found.items() if names]


def require(pictures: Sequence[Picture], labels: NDArray[np.int64], classes: Sequence[str]) -> None:
    """Refuse to train on these pictures where anything stands against it.

    Parameters
    ----------
    labels
        Index into `classes` of each picture, shape (N,).

    Raises
    ------
    ValueError
        With every refusal, in one line.
    """
    refusals = check(pictures, files=False)
    if slices := [picture.image_id for picture in pictures if picture.finding == "not_cxr"]:
        refusals.append(f"CT slices are to be used as X-rays: {_first(slices)}")
    if empty := [name for index, name in enumerate(classes) if not np.any(labels == index)]:
        refusals.append(f"a class has no image: {_first(empty)}")
    if refusals:
        raise ValueError("; ".join(refusals))


def _in_two_splits(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """The names that come with more than one split."""
    splits: dict[str, set[str]] = defaultdict(set)
    for name, split in pairs:
        if name and split:
            splits[name].add(split)
    return [f"{name} ({', '.join(sorted(found))})" for name, found in splits.items() if len(found) > 1]


def _first(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
