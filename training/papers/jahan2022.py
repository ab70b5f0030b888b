"""Jahan and Hasan 2022, autoencoder: ``python -m training train jahan --data DIR --workdir DIR``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from training.papers import robust
from training.papers.assembly import check_known, data_set, held_out, of_sources, pick, pick_first, usable
from training.papers.paper import DataSet, Measure, Paper, Published, Run, Table
from training.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.data.manifest import Picture

VARIANTS = ("paper",)
CLASSES = ("normal", "anomalous")
TRAINED, VALIDATED, TESTED = 11041, 4732, 200  # Table I
CHILDREN, NOT_IN_COVIDX = "kermany", "hannover"


def recipe(variant: str, profile: str) -> Recipe:
    """Section III.C."""
    check_known(variant, VARIANTS, profile)
    paper = Recipe(
        paper="jahan",
        variant=variant,
        profile=profile,
        architecture="Jahan2022",
        classes=CLASSES,
        loss="reconstruction",
        score="reconstruction_error",
        resize=128,
        crop=128,
        standardise="none",
        epochs=70,
        learning_rate=1e-3,
        batch=32,
        optimiser="adam",
        train_on=("normal",),
        finish="kernel_density",
    )
    if profile == robust.PROFILE:
        return robust.jahan(paper)
    return paper if profile == "paper" else paper.but(epochs=25, images_per_epoch=2000)


def label(picture: Picture) -> str | None:
    """Normal or not: the autoencoder knows no diseases apart."""
    return "normal" if picture.finding == "normal" else "anomalous"


def assemble(pictures: Sequence[Picture]) -> DataSet:
    """Section III.A: normal images of COVIDx (which has them of RSNA) and of Kermany, COVID-19 images of COVIDx.

    ChestX-ray14, of which RSNA's are a part, stands in for COVIDx' normal images, the collections that COVIDx is made
    of for its COVID-19 images.
    """
    frontal = usable(pictures)
    normal = of_sources(
        [picture for picture in frontal if picture.finding == "normal"],
        ("rsna", "covidx", CHILDREN),
        ("covidx", CHILDREN),
        ("nih", CHILDREN),
    )
    covid19 = [picture for picture in frontal if picture.finding == "covid19" and picture.source != NOT_IN_COVIDX]
    tested = [picture for picture in covid19 if picture.split == "val"]
    return data_set(
        {
            "normal": pick(normal, TRAINED + VALIDATED + TESTED),
            "anomalous": pick_first(tested, [picture for picture in covid19 if picture.split != "val"], TESTED),
        }
    )


def splits(data: DataSet, seed: int) -> list[Run]:
    """One run: 200 normal and 200 COVID-19 images are tested, normal ones by COVIDx only, as in the paper.

    Of fewer normal images than the paper's, at most half are tested.
    """
    strata = [
        data.classes[i] if i or picture.source != CHILDREN else "children"
        for i, picture in zip(data.labels, data.pictures, strict=True)
    ]
    tested = min(TESTED, strata.count("normal") // 2)
    test = held_out(data.pictures, strata, {"normal": tested, "anomalous": TESTED}, seed)
    train = np.flatnonzero(~test & (data.labels == 0))[:TRAINED]
    return [Run("holdout", train, np.flatnonzero(test))]


_ERROR, _DENSITY = "reconstruction_error", "log_density"
_HALFWAY = (0.0024 + 0.0059) / 2
_NOT_TESTED = "the paper's validation draws curves only; here those images are not used"
_ALL_ANOMALOUS = "the paper does not say what these images are for; here COVID-19 images are tested only"
_WHICH = "the paper does not say which score gave it; "
_THRESHOLD = "and gives no threshold: ours is halfway between the means of Table II; read it beside the AUC"
_SCALE = "the paper's density has no unit and, as a logarithm, no bandwidth that would give it; ours is the logarithm"


def _mean(row: str, positive: str, error: float, density: float) -> tuple[Published, ...]:
    return (
        Published(row, "Reconstruction Error", error, Measure("mean score", _ERROR, positive)),
        Published(row, "KDE", density, Measure("mean score", _DENSITY, positive), remark=_SCALE),
    )


TABLES = (
    Table(
        "Table I",
        "Images",
        (
            Published("Training data", "Normal", 11041, Measure("training images", positive="normal")),
            Published("Training data", "COVID-positive", 0, Measure("training images", positive="anomalous")),
            Published("Validation data", "Normal", 4732, None, remark=_NOT_TESTED),
            Published("Validation data", "COVID-positive", 0, None, remark=_NOT_TESTED),
            Published("Covid-19 data", "Normal", 0, None, remark=_ALL_ANOMALOUS),
            Published("Covid-19 data", "COVID-positive", 4732, None, remark=_ALL_ANOMALOUS),
            Published("Test data", "Normal", 200, Measure("images", positive="normal")),
            Published("Test data", "COVID-positive", 200, Measure("images", positive="anomalous")),
        ),
    ),
    Table(
        "Table II",
        "Mean error and density, of images that the paper does not name; ours of the test images",
        (*_mean("Normal", "normal", 0.0024, 6845.03), *_mean("COVID-positive", "anomalous", 0.0059, 5555.91)),
    ),
    Table(
        "Table III",
        "200 normal and 200 COVID-19 test images",
        (
            Published(
                "Test data, reconstruction error", "Recall", 0.66,
                Measure("sensitivity", _ERROR, "anomalous", _HALFWAY), remark=_WHICH + _THRESHOLD,
            ),
            Published(
                "Test data, reconstruction error", "ROC-AUC", 0.672, Measure("auc", _ERROR, "anomalous"),
                remark=_WHICH + "here the reconstruction error",
            ),
            Published(
                "Test data, kernel density", "ROC-AUC", 0.672, Measure("auc", f"-{_DENSITY}", "anomalous"),
                remark=_WHICH + "here the density of the latent, turned",
            ),
            Published(
                "Test data, density of 16 components", "ROC-AUC", 0.672,
                Measure("auc", f"-{_DENSITY}_pca", "anomalous"),
                remark=_WHICH + "here the density of the latent's standardised principal components, turned",
            ),
        ),
    ),
    Table(
        "Table IV",
        "Beside other works",
        (
            *(
                Published(work, column, value, None, remark="another work")
                for work, images, auc in (
                    ("Tang et al.", 4479, 0.662), ("Khan et al.", 8851, 0.69), ("Nakao et al.", 6853, 0.630),
                )
                for column, value in (("Normal images in training", images), ("AUC", auc))
            ),
            Published(
                "Proposed work", "Normal images in training", 11041, Measure("training images", positive="normal")
            ),
            Published(
                "Proposed work", "Reconstruction error of COVID-19", 0.0059, Measure("mean score", _ERROR, "anomalous")
            ),
            Published(
                "Proposed work", "KDE of COVID-19", 5555.91, Measure("mean score", _DENSITY, "anomalous"),
                remark=_SCALE,
            ),
            Published("Proposed work", "AUC", 0.672, Measure("auc", _ERROR, "anomalous"), remark=_WHICH.strip("; ")),
            Published(
                "Proposed work", "Recall", 0.66, Measure("sensitivity", _ERROR, "anomalous", _HALFWAY),
                remark=_WHICH + _THRESHOLD,
            ),
        ),
    ),
)  # fmt: skip

SILENT = (
    "Keras starts layers by Glorot and has 1e-7 as Adam's epsilon; here both are torch's own.",
    (
        "The text (a latent of 256 values, a flattened layer of 16,384, LeakyReLU after both dense layers) contradicts "
        "Figs. 3 and 4 (128, 8,192, one); the figures win."
    ),
    "The output's activation and the batch are not given: none, and 32 images.",
    "Input values are said to be normalised, not how: 0 to 1.",
    (
        "Neither the kernel density's bandwidth nor either threshold is given, nor which of the two scores made the "
        "recall and the AUC."
    ),
    (
        "The printed densities (6845.03 and 5555.91) cannot be natural logarithms of a Gaussian kernel density of 128 "
        "values: one is at most -128 (0.919 + ln h), so that the bandwidth h would be below e to the power of -54."
    ),
    "Table II names no images, and the 4,732 of its 'Covid-19 data' are as many as those of the validation.",
    "The means of Table II are far apart (0.0024 and 0.0059), which sits ill with an AUC of 0.672.",
)
_ANOMALOUS = (
    "With --protocol folds any disease is anomalous, not COVID-19 alone: the network is trained on normal images only."
)
_STAND_IN = (
    "Where COVIDx is not at hand, normal adults of ChestX-ray14 (of which COVIDx took its own) and COVID-19 images of "
    "Cohen et al. stand in; fewer normal images than 11,041 are all trained on, and none is kept for validation."
)
PAPER = Paper(
    name="jahan",
    title=(
        "Jahan and Hasan 2022: Autoencoder-based Unsupervised Anomaly Detection for Covid-19 Screening on Chest X-Ray "
        "Images"
    ),
    citation="Jahan N, Hasan MAM. Rajshahi University of Engineering and Technology (2022)",
    variants=VARIANTS,
    recipe=recipe,
    data_set=assemble,
    splits=splits,
    label=label,
    tables=TABLES,
    silent=SILENT,
    differences={
        robust.PROFILE: robust.DIFFERENCES["jahan"],
        "paper": (_STAND_IN, _ANOMALOUS),
        "small": (_STAND_IN, _ANOMALOUS, "25 epochs of at most 2,000 images, the paper has 70 of 11,041."),
    },
)
