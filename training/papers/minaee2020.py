"""Minaee et al. 2020, Deep-COVID: ``python -m training train minaee --data DIR --workdir DIR``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from training.papers import robust
from training.papers.assembly import check_known, data_set, held_out, of_sources, pick, pick_first, usable
from training.papers.basu2020 import first_stage
from training.papers.paper import DataSet, Measure, Paper, Published, Run, Table
from training.recipe import Augmentation, Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.data.manifest import Picture

# By variant, torchvision's name of the backbone and the prefix of its last layer's parameters.
BACKBONES = {
    "resnet18": ("resnet18", "backbone.fc"),
    "resnet50": ("resnet50", "backbone.fc"),
    "squeezenet": ("squeezenet1_0", "backbone.classifier"),
    "densenet121": ("densenet121", "backbone.classifier"),
}
VARIANTS = tuple(BACKBONES)
ROBUST = {name: (name, "backbone.classifier") for name in robust.LEVELS}
CLASSES = ("other", "covid19")
# Section 2 and Table 1: images for training and for the test.
COVID19 = (84, 100)
NO_FINDING = (700, 1700)
DISEASED = (1300, 1300)
OTHER = (2000, 3000)
PER_DISEASE = 200  # of each of CheXpert's 13 other labels, half of them for the test
CHILDREN = "kermany"


def recipe(variant: str, profile: str) -> Recipe:
    """Sections 3.1 and 4.1."""
    known = ROBUST if profile == robust.PROFILE else BACKBONES
    check_known(variant, tuple(known), profile)
    backbone, last_layer = known[variant]
    pretraining = first_stage("Minaee2020", backbone, profile)
    paper = Recipe(
        paper="minaee",
        variant=variant,
        profile=profile,
        architecture="Minaee2020",
        options={"backbone": backbone, "classes": list(CLASSES)},
        classes=CLASSES,
        loss="cross_entropy",
        score="logit_covid19",
        resize=224,
        crop=224,
        standardise="imagenet",
        epochs=100,
        learning_rate=1e-4,
        batch=20,
        optimiser="adam",
        copies={"covid19": 5},
        trainable=(last_layer,),
        augmentation=Augmentation(flip=0.5, rotation_deg=10.0, shear_deg=5.0, zoom=(0.95, 1.05)),
        weights="imagenet",
        pretraining=pretraining.but(standardise="imagenet"),
        cache_features=True,
    )
    if profile == "paper":
        return paper
    if profile == robust.PROFILE:
        return robust.minaee(paper, backbone)
    return paper.but(
        resize=160,
        crop=160,
        standardise="per image",
        learning_rate=1e-3,
        weights="pretraining",
        pretraining=pretraining,
    )


def label(picture: Picture) -> str | None:
    """COVID-19 or anything else."""
    return "covid19" if picture.finding == "covid19" else "other"


def assemble(pictures: Sequence[Picture]) -> DataSet:
    """Section 2: COVID-Xray-5k, or what it is made of: COVID-19 of Cohen et al. and others of CheXpert.

    ChestX-ray14 stands in for CheXpert, with normal images of Kermany where it has too few; of fewer images than the
    paper's, its proportion of normal to diseased ones is kept.
    """
    frontal = usable(pictures)
    if whole := [picture for picture in frontal if _of_5k(picture)]:
        other = [picture for picture in whole if picture.finding != "covid19"]
        return data_set({"other": other, "covid19": [picture for picture in whole if picture.finding == "covid19"]})
    covid19 = of_sources([picture for picture in frontal if picture.finding == "covid19"], ("cohen",))
    other = of_sources(
        [picture for picture in frontal if picture.finding != "covid19"], ("chexpert",), ("nih", CHILDREN)
    )
    return data_set({"other": _others(other), "covid19": pick(covid19, sum(COVID19))})


def _of_5k(picture: Picture) -> bool:
    """Whether the labels are those of COVID-Xray-5k: the names of its folders."""
    return picture.labels.split("|")[0] in ("covid", "non")


def _others(pictures: Sequence[Picture]) -> list[Picture]:
    """Normal and diseased images in the paper's proportion, those first that CheXpert's owner gave one label only."""
    children = [p for p in pictures if p.source == CHILDREN and p.finding == "normal"]
    adults = [p for p in pictures if p.source != CHILDREN]
    normal = [p for p in adults if p.finding == "normal"]
    diseased = [p for p in adults if p.finding != "normal"]
    part = min(1.0, len(normal + children) / sum(NO_FINDING), len(diseased) / sum(DISEASED))
    alone = [p for name in sorted({p.labels for p in diseased}) for p in _of_label(diseased, name)]
    taken = {p.image_id for p in alone}
    more = [p for p in diseased if p.image_id not in taken]
    return [
        *pick_first(normal, children, round(part * sum(NO_FINDING))),
        *pick_first(alone, more, round(part * sum(DISEASED))),
    ]


def _of_label(pictures: Sequence[Picture], label: str) -> list[Picture]:
    """The paper's number of images that have this one label; none where it is several."""
    return [] if "|" in label else pick([p for p in pictures if p.labels == label], PER_DISEASE)


def splits(data: DataSet, seed: int) -> list[Run]:
    """One run with the paper's parts of each kind of image; COVID-Xray-5k comes with its own."""
    kinds = {"covid19": COVID19, "normal": NO_FINDING, "diseased": DISEASED}
    if any(map(_of_5k, data.pictures)):
        kinds = {"covid19": COVID19, "other": OTHER}
    strata = [p.finding if p.finding in kinds else list(kinds)[-1] for p in data.pictures]
    wanted = {
        name: max(1, round(strata.count(name) * tested / (trained + tested)))
        for name, (trained, tested) in kinds.items()
    }
    test = held_out(data.pictures, strata, wanted, seed)
    return [Run("holdout", np.flatnonzero(~test), np.flatnonzero(test))]


_AT = {
    "resnet18": ((0.1, 1.0, 0.724), (0.17, 0.98, 0.907), (0.2, 0.95, 0.924), (0.25, 0.91, 0.958), (0.35, 0.85, 0.983)),
    "resnet50": ((0.15, 1.0, 0.782), (0.205, 0.98, 0.896), (0.25, 0.93, 0.942), (0.3, 0.90, 0.973),
                 (0.35, 0.85, 0.984)),
    "squeezenet": ((0.1, 1.0, 0.899), (0.15, 0.98, 0.929), (0.2, 0.96, 0.946), (0.4, 0.92, 0.976), (0.5, 0.87, 0.983)),
    "densenet121": ((0.19, 0.98, 0.751), (0.25, 0.95, 0.889), (0.3, 0.90, 0.946), (0.4, 0.79, 0.989)),
}  # fmt: skip
_NAMES = {
    "resnet18": "ResNet18",
    "resnet50": "ResNet50",
    "squeezenet": "SqueezeNet",
    "densenet121": "DenseNet-121",
}
_SENSITIVITY = 0.98
_TABLE_6 = {"resnet18": (0.907, 0.011), "resnet50": (0.896, 0.011), "squeezenet": (0.929, 0.009),
            "densenet121": (0.751, 0.015)}  # fmt: skip
_EQ_3 = "95 %, normal approximation, eq. 3"
_CHOSEN = "at a threshold chosen on the test images, there and here, which no interval counts"
_CELLS = "counted at a threshold that the paper does not give; the row below has ours"


def _thresholds(number: int, variant: str) -> Table:
    return Table(
        f"Table {number}",
        f"{_NAMES[variant]} at different thresholds of the probability of COVID-19",
        tuple(
            Published(f"{at:g}", column, value, Measure(kind, "p_covid19", at=at, variant=variant))
            for at, *values in _AT[variant]
            for column, kind, value in zip(
                ("Sensitivity", "Specificity"), ("sensitivity", "specificity"), values, strict=True
            )
        ),
    )


def _compared(variant: str) -> tuple[Published, ...]:
    specificity, deviation = _TABLE_6[variant]
    row = _NAMES[variant]
    return (
        Published(row, "Sensitivity", _SENSITIVITY,
                  Measure("sensitivity at sensitivity", at=_SENSITIVITY, variant=variant), 0.027, _EQ_3, _CHOSEN),
        Published(row, "Specificity", specificity,
                  Measure("specificity at sensitivity", at=_SENSITIVITY, variant=variant), deviation, _EQ_3, _CHOSEN),
    )  # fmt: skip


def _confusion(figure: int, variant: str, right: int, wrong: int, specificity: float, table_6: str) -> Table:
    cells = (
        ("Non-COVID", "as Non-COVID", right),
        ("Non-COVID", "as COVID-19", wrong),
        ("COVID-19", "as Non-COVID", 2),
        ("COVID-19", "as COVID-19", 98),
    )
    measure = Measure("specificity at sensitivity", at=_SENSITIVITY, variant=variant)
    remark = f"of the counts above; Table 6 has {table_6} %"
    return Table(
        f"Fig. {figure}",
        f"Confusion matrix of {_NAMES[variant]} on the 3,100 test images",
        (
            *(Published(row, column, n, None, remark=_CELLS) for row, column, n in cells),
            Published("Non-COVID", "Specificity", specificity, measure, remark=remark),
        ),
    )


_KINDS = "one class of the network: counted together in Table 1"
TABLES = (
    Table(
        "Section 2",
        "What the images without COVID-19 are",
        (
            Published("Training set", "no finding", NO_FINDING[0], None, remark=_KINDS),
            Published("Training set", "each of 13 diseases", 100, None, remark=_KINDS),
            Published("Test set", "no finding", NO_FINDING[1], None, remark=_KINDS),
            Published("Test set", "each of 13 diseases", 100, None, remark=_KINDS),
        ),
    ),
    Table(
        "Table 1",
        "Images of COVID-Xray-5k",
        (
            Published("Training set", "COVID-19", 84, Measure("training images")),
            Published("Training set", "COVID-19 after augmentation", 420, None, remark="five of each in an epoch"),
            Published("Training set", "Non-COVID", 2000, Measure("training images", positive="other")),
            Published("Test set", "COVID-19", 100, Measure("images")),
            Published("Test set", "Non-COVID", 3000, Measure("images", positive="other")),
        ),
    ),
    *(_thresholds(number, variant) for number, variant in enumerate(VARIANTS, 2)),
    Table(
        "Table 6",
        "The four networks at a sensitivity of 98 %",
        tuple(number for variant in VARIANTS for number in _compared(variant)),
    ),
    _confusion(12, "resnet18", 2679, 321, 0.893, "90.7"),
    _confusion(13, "squeezenet", 2763, 237, 0.921, "92.9"),
)

SILENT = (
    (
        "Ranges of the five-fold augmentation (flips, small rotation, small distortions) are not given: 10 degrees, a "
        "shear of 5 degrees and 95 to 105 % are ours, drawn once for each of the four further copies."
    ),
    "The text has Adam at 1e-4 and 100 epochs, the authors' code SGD with a stepped rate; the text is taken.",
    "The authors' code keeps the epoch that is best on the test images; here the last one is kept.",
    "The frozen BatchNorms keep the statistics of the weights that they came with; the code lets them drift.",
    (
        "Side and stride of the occluder are not given: a quarter and an eighth of the image's side, and its grey is "
        "the image's mean. The paper marks a region where the occluder turns the decision; our map is how much the "
        "probability falls under it, since on an image far from the threshold no region turns anything."
    ),
    "Figs. 12 and 13 give specificities of 89.3 and 92.1 % where Table 6 has 90.7 and 92.9 % at the same sensitivity.",
    "DenseNet is the 161 in section 1 and the figures and the 121 elsewhere; the 121 is taken.",
    "'Anterior-posterior' is understood as frontal, AP and PA.",
    (
        "The curves (Figs. 10 and 11) and histograms (Figs. 6 to 9) are printed as pictures: ours stand in the "
        "evaluation."
    ),
)
_DATA = (
    "Where COVID-Xray-5k and CheXpert are not at hand, ChestX-ray14 stands in (its images here are labelled no finding "
    "or pneumonia, most of these with another disease), in the paper's proportion of normal to diseased ones and as "
    "many as that allows; no radiologist removed COVID-19 images without signs."
)
PAPER = Paper(
    name="minaee",
    title="Minaee et al. 2020: Deep-COVID: Predicting COVID-19 From Chest X-Ray Images Using Deep Transfer Learning",
    citation="Minaee S, Kafieh R, Sonka M, Yazdani S, Jamalipour Soufi G. Medical Image Analysis 65:101794 (2020)",
    variants=VARIANTS,
    robust_variants=tuple(ROBUST),
    recipe=recipe,
    data_set=assemble,
    splits=splits,
    label=label,
    tables=TABLES,
    silent=SILENT,
    differences={
        robust.PROFILE: robust.DIFFERENCES["minaee"],
        "paper": (_DATA,),
        "small": (
            _DATA,
            (
                "The frozen backbone comes from Basu's first stage (chest X-rays, normal against diseased; Adam at "
                "1e-3, SqueezeNet, which has no BatchNorm, at 1e-4), not from ImageNet."
            ),
            "160 pixels, the paper has 224; each image is standardised by itself.",
            (
                "Adam at 1e-3, not 1e-4: with the images at hand an epoch of the paper's protocol has less than a "
                "third of the paper's steps."
            ),
        ),
    },
)
