"""The scored test images of an experiment as arrays."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit, log_expit

from training.data.splits import groups_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from training.data.manifest import Picture


_BETWEEN = re.compile(r"p_(\w+) / \(p_\1 \+ p_(\w+)\)")


@dataclass(frozen=True, slots=True)
class Rows:
    """One row for each run and image that the run tested.

    Attributes
    ----------
    runs, images, patients
        Names, shape (N,).
    groups
        What the bootstrap draws: the patient, patients of near duplicates together; shape (N,).
    labels
        Index into `classes`, -1 where the experiment gives the image no class; shape (N,).
    scores
        By score name, shape (N,).
    """

    runs: NDArray[np.str_]
    images: NDArray[np.str_]
    patients: NDArray[np.str_]
    groups: NDArray[np.int64]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    scores: Mapping[str, NDArray[np.float64]]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.labels)

    def chosen(self, which: NDArray[np.bool_]) -> Rows:
        """Some of the rows."""
        scores = {name: column[which] for name, column in self.scores.items()}
        return replace(
            self,
            runs=self.runs[which],
            images=self.images[which],
            patients=self.patients[which],
            groups=self.groups[which],
            labels=self.labels[which],
            scores=scores,
        )

    def column(self, name: str) -> NDArray[np.float64]:
        """`answer` of the rows' scores."""
        return np.asarray(answer(self.scores, name))

    def is_class(self, name: str) -> NDArray[np.bool_]:
        """Whether each row is of the class; none is of a class that the experiment has not."""
        index = self.classes.index(name) if name in self.classes else len(self.classes)
        return np.asarray(self.labels == index)

    @property
    def run_names(self) -> list[str]:
        """The runs in the order of their first rows."""
        return list(dict.fromkeys(self.runs.tolist()))

    @property
    def probabilities(self) -> NDArray[np.float64] | None:
        """Shape (N, classes); None where the network does not give one for each class."""
        names = [f"p_{name}" for name in self.classes]
        if any(name not in self.scores for name in names):
            return None
        return np.stack([self.scores[name] for name in names], axis=1)


def answer(scores: Mapping[str, Any], name: str) -> Any:
    """A score of a network, or what is made of its scores.

    ``-name`` is the score turned, for one that is larger where nothing is wrong. ``p_a / (p_a + p_b)`` is the
    probability of a where it is one of the two.

    Raises
    ------
    ValueError
        Where the network gives no such score.
    """
    named = _BETWEEN.fullmatch(name)
    wanted = [f"logit_{part}" for part in named.groups()] if named else [name.removeprefix("-")]
    if unknown := [one for one in wanted if one not in scores]:
        raise ValueError(f"there is no score {unknown[0]!r}; the scores are {', '.join(scores)}")
    if named:
        return expit(log_expit(scores[wanted[0]]) - log_expit(scores[wanted[1]]))
    return -scores[wanted[0]] if name.startswith("-") else scores[wanted[0]]


def rows_of(
    record: Mapping[str, Any],
    scores: Mapping[str, Mapping[str, Mapping[str, float]]],
    labels: Mapping[str, Mapping[str, str]],
    pictures: Sequence[Picture],
) -> Rows:
    """Rows from what `training.records.read_scores` and `read_labels` give, and the manifest.

    Raises
    ------
    ValueError
        Where a scored image is not in the manifest: figures would be of other patients than they say.
    """
    patient_of = {picture.image_id: picture.patient_id for picture in pictures}
    group_of = {picture.image_id: group for picture, group in zip(pictures, groups_of(pictures), strict=True)}
    classes = tuple(record["recipe"]["classes"])
    found = [(run, image, values) for run, by_image in scores.items() for image, values in by_image.items()]
    if unknown := [image for _, image, _ in found if image not in patient_of]:
        raise ValueError(f"image {unknown[0]} was scored but is not in the manifest; give the one it was trained with")
    names = list(found[0][2]) if found else []
    index = {name: i for i, name in enumerate(classes)}
    return Rows(
        runs=np.array([run for run, _, _ in found], dtype=np.str_),
        images=np.array([image for _, image, _ in found], dtype=np.str_),
        patients=np.array([patient_of[image] for _, image, _ in found], dtype=np.str_),
        groups=np.array([group_of[image] for _, image, _ in found], dtype=np.int64),
        labels=np.array([index.get(labels[run][image], -1) for run, image, _ in found], dtype=np.int64),
        classes=classes,
        scores={name: np.array([values[name] for _, _, values in found]) for name in names},
    )
