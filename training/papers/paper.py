"""The form of a paper's file: its citation, its data, its recipes, its published numbers, what differs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from training.data.manifest import Picture
    from training.recipe import Recipe


@dataclass(frozen=True, slots=True)
class DataSet:
    """Images with one label each: `labels` of shape (N,), indices into `classes`."""

    pictures: tuple[Picture, ...]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """One training of an experiment: which images of its data set are trained on and which are tested.

    Attributes
    ----------
    train, validation, test
        Indices into the data set; no patient and no cluster in two of them. `validation` may be empty.
    """

    name: str
    train: NDArray[np.int64]
    test: NDArray[np.int64]
    validation: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


_OF_DATA = ("images", "patients", "training images")


@dataclass(frozen=True, slots=True)
class Measure:
    """How a published number is computed from the scores of test images.

    Attributes
    ----------
    kind
        One of `KINDS`.
    score
        Score of the network; empty is the recipe's own `score`.
    positive
        The class that the number is about.
    at
        The threshold of `score`, or the target sensitivity, that `kind` needs.
    predicted
        Of ``confusion``: the predicted class, `positive` being the true one.
    variant
        The variant of the paper's network that the number is of; empty is the paper's first.
    """

    kind: str
    score: str = ""
    positive: str = "covid19"
    at: float | None = None
    predicted: str = ""
    variant: str = ""

    @property
    def of_data(self) -> bool:
        """Whether it counts the images, which are the same for every variant."""
        return self.kind in _OF_DATA and not self.variant


KINDS = (
    "images",  # test images of class `positive`
    "patients",  # of these images
    "training images",  # training images of class `positive`
    "auc",
    "sensitivity",  # of `score` >= `at`
    "specificity",
    "specificity at sensitivity",  # the best specificity at sensitivity `at` or more
    "sensitivity at sensitivity",  # the sensitivity reached at that threshold
    "accuracy",  # argmax over the classes
    "precision",  # argmax, of class `positive`; macro mean where `positive` is empty
    "recall",
    "f1",
    "confusion",  # count of class `positive` predicted as `predicted`, argmax, summed over the runs
    "micro precision",  # every class' probability >= `at` counts as a prediction (Keras); among images of `positive`,
    "micro recall",  # all images where `positive` is empty
    "mean score",  # mean of `score` over the test images of class `positive`
    "loss",  # mean cross-entropy of the test images of class `positive`, all where it is empty
)


@dataclass(frozen=True, slots=True)
class Published:
    """One number of a paper's table, in the unit that `Measure` gives (fractions, not percent).

    Attributes
    ----------
    deviation
        What the paper gives after its plus-minus, and in `deviation_is` what that means.
    """

    row: str
    column: str
    value: float
    measure: Measure | None
    deviation: float | None = None
    deviation_is: str = ""
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table (or the numbers of a figure or of the text), as published."""

    name: str
    caption: str
    numbers: tuple[Published, ...]


@dataclass(frozen=True, slots=True)
class Paper:
    """All that is particular to one paper.

    Attributes
    ----------
    variants
        The first is the paper's main network; the others are its ablations and backbones.
    robust_variants
        What profile `robust` takes in their place, where its networks are others.
    recipe
        Gives the recipe of a variant in a profile; ValueError names what is not known.
    data_set
        The paper's own data set out of whatever is in a manifest, by the paper's rules (`external` left out).
    splits
        The paper's own runs over that data set, with a seed.
    label
        The class of any frontal image, or None to leave it out: for the five folds over everything at hand.
    silent
        What the paper leaves open or contradicts, and what is taken here.
    differences
        By profile, what differs from the paper.
    """

    name: str
    title: str
    citation: str
    variants: tuple[str, ...]
    recipe: Callable[[str, str], Recipe]
    data_set: Callable[[Sequence[Picture]], DataSet]
    splits: Callable[[DataSet, int], list[Run]]
    label: Callable[[Picture], str | None]
    tables: tuple[Table, ...]
    silent: tuple[str, ...]
    differences: Mapping[str, tuple[str, ...]]
    robust_variants: tuple[str, ...] = ()

    def variants_of(self, profile: str) -> tuple[str, ...]:
        """What `recipe` takes in a profile, the main one first."""
        return self.robust_variants if self.robust_variants and profile == "robust" else self.variants
