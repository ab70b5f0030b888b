"""Zhong 2020, DCNN at 80 x 80: ``python -m training train zhong --data DIR --workdir DIR``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from training.papers import robust
from training.papers.assembly import check_known, data_set, held_out, pick_first, usable
from training.papers.paper import DataSet, Measure, Paper, Published, Run, Table
from training.recipe import Augmentation, Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.data.manifest import Picture

CLASSES = ("covid19", "normal", "pneumonia")
IMAGES = 6354
TESTED = {"covid19": 100, "normal": 242, "pneumonia": 398}
CHILDREN, ADULTS = "kermany", ("cohen", "figure1", "actualmed")

AUGMENTATION = Augmentation(random_crop=True, flip=0.5, brightness=0.1, contrast=(0.9, 1.1))
# What differs from the first by variant; epochs are counted from 0.
VARIANTS: dict[str, dict[str, Any]] = {
    "adam": {},
    # The text's three stages, a smaller rate, a larger one, a smaller one; its values are ours.
    "warmup": {"schedule_options": {"factors": [[0, 0.25], [2, 1.0], [6, 0.25]]}},
    "nadam": {"optimiser": "nadam"},
    "sgd": {"optimiser": "sgd", "learning_rate": 1e-2},
    "paper-contrast": {
        "augmentation": Augmentation(random_crop=True, flip=0.5, brightness=0.1, contrast=(0.1, 0.2)),
    },
}


def recipe(variant: str, profile: str) -> Recipe:
    """Sections 3.2, 3.4 and 3.5, and what only the author's code says."""
    check_known(variant, tuple(VARIANTS), profile)
    paper = Recipe(
        paper="zhong",
        variant=variant,
        profile=profile,
        architecture="Zhong2020",
        options={"classes": list(CLASSES)},
        classes=CLASSES,
        loss="cross_entropy",
        loss_options={"class_weights": [10.0, 3.0, 1.0], "smoothing": 0.12, "smoothing_form": "paper"},
        score="logit_covid19",
        resize=96,
        crop=80,
        standardise="none",
        epochs=10,
        learning_rate=4e-4,
        batch=64,
        optimiser="adam",
        schedule="steps",
        schedule_options={"factors": [[0, 1.0], [3, 0.5], [6, 0.25]]},
        augmentation=AUGMENTATION,
    ).but(**VARIANTS[variant])
    if profile == robust.PROFILE:
        return robust.zhong(paper)
    return paper if profile == "paper" else paper.but(images_per_epoch=2500)


def label(picture: Picture) -> str | None:
    """The finding where the paper has a class for it."""
    return picture.finding if picture.finding in CLASSES else None


def assemble(pictures: Sequence[Picture]) -> DataSet:
    """Section 3.1: the four collections that make COVID-19-CXR-Dataset, frontal images only, at most 6,354.

    Kermany's 5,856 images fit in whole; the others fill up.
    """
    frontal = [p for p in usable(pictures) if p.finding in CLASSES]
    at_hand = [p for p in frontal if p.source in (CHILDREN, *ADULTS)] or frontal
    children = [p for p in at_hand if p.source == CHILDREN]
    chosen = pick_first(children, [p for p in at_hand if p.source != CHILDREN], IMAGES)
    return data_set({name: [p for p in chosen if p.finding == name] for name in CLASSES})


def splits(data: DataSet, seed: int) -> list[Run]:
    """One run: 100, 242 and 398 images are tested, or of fewer images the same parts.

    242 and 398 are as many as Kermany's own test and validation folders hold together (234 + 8 and 390 + 8).
    """
    strata = [data.classes[i] for i in data.labels]
    part = min(1.0, len(strata) / IMAGES)
    wanted = {name: max(1, round(count * part)) for name, count in TESTED.items()}
    test = held_out(data.pictures, strata, wanted, seed)
    return [Run("holdout", np.flatnonzero(~test), np.flatnonzero(test))]


_NAMES = {"covid19": "COVID-19", "normal": "Normal", "pneumonia": "Pneumonia"}
_TRAINING = "of training images, which are not scored here"
_SMOOTHED = "the paper's may hold its label smoothing; ours is the plain cross-entropy"
_KERAS = "as Keras counts: every class with a probability of 0.5 or more is a prediction"
_INTERVAL = "ours is the interval of the mean"
_CONFUSED = {"covid19": (98, 0, 2), "normal": (9, 197, 36), "pneumonia": (5, 42, 351)}
_CONFIDENCE = {
    "covid19": (0.8445, 0.8185, 0.8705), "normal": (0.6763, 0.6462, 0.7063), "pneumonia": (0.7761, 0.7541, 0.7981),
}  # fmt: skip


def _of_set(row: str, positive: str, accuracy: Measure, values: tuple[float, float, float, float]) -> list[Published]:
    loss, right, precision, recall = values
    return [
        Published(row, "Cross Entropy Loss", loss, Measure("loss", positive=positive), remark=_SMOOTHED),
        Published(row, "Accuracy", right, accuracy),
        Published(row, "Precision", precision, Measure("micro precision", positive=positive, at=0.5), remark=_KERAS),
        Published(row, "Recall", recall, Measure("micro recall", positive=positive, at=0.5), remark=_KERAS),
    ]


def _confidence(name: str) -> list[Published]:
    mean, low, high = _CONFIDENCE[name]
    return [
        Published(_NAMES[name], "Mean", mean, Measure("mean score", f"p_{name}", name)),
        Published(_NAMES[name], "Lower Limit", low, None, remark=_INTERVAL),
        Published(_NAMES[name], "Upper Limit", high, None, remark=_INTERVAL),
    ]


def _confused(name: str) -> list[Published]:
    counts = zip(CLASSES, _CONFUSED[name], strict=True)
    return [
        *(
            Published(_NAMES[name], _NAMES[other], n, Measure("confusion", positive=name, predicted=other))
            for other, n in counts
        ),
        Published(_NAMES[name], "Sum", sum(_CONFUSED[name]), Measure("images", positive=name)),
    ]


TABLES = (
    Table(
        "Section 3.1",
        "COVID-19-CXR-Dataset; Table 1 shows the classes as a chart without numbers",
        (Published("all", "Images", IMAGES, None, remark="training and test images are counted in the record"),),
    ),
    Table(
        "Table 3",
        "Metrics of the training set, the test set, and the test set's COVID-19 images",
        (
            *(
                Published("Train", column, value, None, remark=_TRAINING)
                for column, value in (
                    ("Cross Entropy Loss", 0.986), ("Accuracy", 0.9325), ("Precision", 0.9463), ("Recall", 0.9133),
                )
            ),
            *_of_set("Test", "", Measure("accuracy"), (0.5632, 0.873, 0.8967, 0.8446)),
            *_of_set("COVID-19 (from test)", "covid19", Measure("recall"), (0.4304, 0.98, 0.9798, 0.97)),
        ),
    ),
    Table(
        "Table 4",
        "Mean predicted probability of the images of each class, with the limits of its 95 % interval",
        tuple(number for name in CLASSES for number in _confidence(name)),
    ),
    Table(
        "Table 5",
        "Confusion matrix of the test set: rows the true class, columns the predicted one",
        (
            *(number for name in CLASSES for number in _confused(name)),
            *(
                Published("Sum", _NAMES[name], sum(row[i] for row in _CONFUSED.values()), None,
                          remark="sum of the column")
                for i, name in enumerate(CLASSES)
            ),
            Published("Sum", "Sum", 740, Measure("images", positive="")),
        ),
    ),
)  # fmt: skip

SILENT = (
    (
        "Eq. 3 is misprinted: it has the labels of eq. 2 inside the logarithm. The cross-entropy with those labels is "
        "taken; Keras and torch spread the smoothing over all classes (loss_options: smoothing_form library)."
    ),
    (
        "Only the author's code gives the smoothing (0.12), the class weights (10, 3, 1), Adam's learning rate (4e-4, "
        "2e-4 from the fourth epoch, 1e-4 from the seventh) and the ranges of the augmentation."
    ),
    (
        "The text's three stages (a small, a larger, a smaller learning rate) have no values and are not what the code "
        "does: the variant warmup has 1e-4 for two epochs, 4e-4 for four, 1e-4 for four."
    ),
    "Learning rates of Nadam and SGD are not given: that of Adam, and Keras' own 0.01, with the same steps.",
    "Batch: 64 by the author's log, 32 by the code; 64 is taken.",
    (
        "The contrast factor in the code is 0.1 to 0.2 on training images and none on test images, which looks like a "
        "slip: 0.9 to 1.1 is taken; theirs is the variant paper-contrast."
    ),
    "Random saturation has no effect on grey images and is left out.",
    "How test images come to 80 pixels is not said: the centre of 96, so that both sets have one scale.",
    "Pooling of whole maps is by the mean in the text and by the maximum in the code, which is taken.",
    (
        "The split is not said to be by patient; ours is, and near duplicates stay together. The normal and pneumonia "
        "images tested are as many as Kermany's own test and validation folders hold: those are taken first."
    ),
    (
        "Table 3 counts predictions of a probability of 0.5 or more (625 of 697 are right, of 740 images; 97 of 99 "
        "COVID-19), Table 5 the likeliest class (646 of 740; 98 of 100 COVID-19)."
    ),
)
_DATA = (
    "Images are those at hand of the paper's four collections, without Figure 1 where it is kept external; annotated "
    "ones, which the paper removed by eye, are not known and stay. Of fewer than 6,354 the same parts are tested."
)
PAPER = Paper(
    name="zhong",
    title="Zhong 2020: Using Deep Convolutional Neural Networks to Diagnose COVID-19 From Chest X-Ray Images",
    citation="Zhong Y. arXiv:2007.09695 (2020)",
    variants=tuple(VARIANTS),
    recipe=recipe,
    data_set=assemble,
    splits=splits,
    label=label,
    tables=TABLES,
    silent=SILENT,
    differences={
        robust.PROFILE: robust.DIFFERENCES["zhong"],
        "paper": (_DATA,),
        "small": (_DATA, "2,500 of the training images, drawn anew, in each of the 10 epochs."),
    },
)
