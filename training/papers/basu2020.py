"""Basu et al. 2020, domain extension transfer learning: ``python -m training train basu --data DIR --workdir DIR``.

Its first stage, a network trained on normal and diseased chest X-rays, also gives the other papers' backbones a start
where ImageNet weights cannot be had.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.papers import robust
from training.papers.assembly import (
    carries,
    check_known,
    cross_validation,
    data_set,
    of_sources,
    pick,
    pick_first,
    usable,
)
from training.papers.paper import DataSet, Measure, Paper, Published, Run, Table
from training.recipe import Augmentation, Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.data.manifest import Picture

# "The last convolution block and the fully-connected layers" (section III.B) of each variant, by torchvision's names.
TRAINABLE = {
    "vgg16": ("backbone.features.24", "backbone.features.26", "backbone.features.28", "backbone.classifier"),
    "resnet50": ("backbone.layer4", "backbone.fc"),
    "alexnet": ("backbone.features.10", "backbone.classifier"),
}
VARIANTS = tuple(TRAINABLE)
ROBUST_VARIANTS = ("efficientnet_lite0",)
CLASSES = ("normal", "pneumonia", "other_disease", "covid19")
# Data-B (Table I) and the six diseases, 50 images each, of its class other_disease.
IMAGES = {"normal": 350, "pneumonia": 322, "other_disease": 300, "covid19": 305}
DISEASES = ("Atelectasis", "Cardiomegaly", "Infiltration", "Effusion", "Nodule", "Mass")
PER_DISEASE = 50

AUGMENTATION = Augmentation(flip=0.5, zoom=(0.9, 1.1), rotation_deg=10.0)
# Without BatchNorm a network does not come out of the constant answer at the paper's learning rate.
WITHOUT_BATCHNORM = ("vgg16", "alexnet", "squeezenet1_0")
SLOW = ("vgg16", "resnet50", "densenet121")


def first_stage(architecture: str, backbone: str, profile: str) -> Recipe:
    """The training from scratch on normal and diseased images (section IV), for any backbone."""
    paper = Recipe(
        paper="basu",
        variant=f"first stage, {backbone}",
        profile=profile,
        architecture=architecture,
        options={"backbone": backbone, "classes": ["normal", "diseased"]},
        classes=("normal", "diseased"),
        loss="cross_entropy",
        score="logit_diseased",
        resize=224,
        crop=224,
        epochs=100,
        learning_rate=1e-3,
        batch=64,
        optimiser="adam",
        schedule="cosine",
        augmentation=AUGMENTATION,
        keep="best validation accuracy",
    )
    if profile == "paper":
        return paper
    return paper.but(
        resize=160,
        crop=160,
        epochs=4 if backbone in SLOW else 6,
        images_per_epoch=2000,
        balance="class",
        batch=32,
        learning_rate=1e-4 if backbone in WITHOUT_BATCHNORM else 1e-3,
        schedule_options={"warmup_epochs": 0.5},
    )


def recipe(variant: str, profile: str) -> Recipe:
    """The second stage, which holds the first."""
    check_known(variant, ROBUST_VARIANTS if profile == robust.PROFILE else VARIANTS, profile)
    paper = Recipe(
        paper="basu",
        variant=variant,
        profile=profile,
        architecture="Basu2020",
        options={"backbone": variant, "classes": list(CLASSES)},
        classes=CLASSES,
        loss="cross_entropy",
        score="logit_covid19",
        resize=224,
        crop=224,
        epochs=50,
        learning_rate=1e-4,
        batch=32,
        optimiser="sgd",
        optimiser_options={"momentum": 0.9},
        trainable=TRAINABLE.get(variant, ()),
        augmentation=AUGMENTATION,
        weights="pretraining",
        pretraining=first_stage("Basu2020", variant, profile),
    )
    if profile == robust.PROFILE:
        return robust.basu(paper)
    if profile == "paper":
        return paper
    return paper.but(
        resize=160,
        crop=160,
        epochs=10,
        images_per_epoch=sum(IMAGES.values()),
        batch=16,
        learning_rate=1e-3,
        schedule="cosine",
    )


def label(picture: Picture) -> str | None:
    """The finding, which is one of the paper's classes."""
    return picture.finding if picture.finding in CLASSES else None


def assemble(pictures: Sequence[Picture]) -> DataSet:
    """Data-B (section III.A, Table I): three classes of ChestX-ray14 and COVID-19 of the COVID-19 image collection.

    322 is how many images of ChestX-ray14 have pneumonia as their only label: those come first.
    """
    frontal = usable(pictures)
    of = {name: [picture for picture in frontal if picture.finding == name] for name in CLASSES}
    nih = {name: of_sources(of[name], ("nih",)) for name in ("normal", "pneumonia", "other_disease")}
    alone = [picture for picture in nih["pneumonia"] if picture.labels == "Pneumonia"]
    not_alone = [picture for picture in nih["pneumonia"] if picture.labels != "Pneumonia"]
    return data_set(
        {
            "normal": pick(nih["normal"], IMAGES["normal"]),
            "pneumonia": pick_first(alone, not_alone, IMAGES["pneumonia"]),
            "other_disease": _other_disease(nih["other_disease"]),
            "covid19": pick(of_sources(of["covid19"], ("cohen",)), IMAGES["covid19"]),
        }
    )


def _other_disease(pictures: Sequence[Picture]) -> list[Picture]:
    """50 images of each of the six diseases, and any others in the place of those that are not at hand."""
    chosen: dict[str, Picture] = {}
    for disease in DISEASES:
        left = [picture for picture in pictures if picture.image_id not in chosen]
        chosen |= {p.image_id: p for p in pick([p for p in left if carries(p, disease)], PER_DISEASE)}
    left = [picture for picture in pictures if picture.image_id not in chosen]
    return [*chosen.values(), *pick(left, IMAGES["other_disease"] - len(chosen))]


def splits(data: DataSet, seed: int) -> list[Run]:
    """Five folds (section IV)."""
    return cross_validation(data, 5, seed, "fold")


def _accuracy(row: str, variant: str, value: float, deviation: float) -> Published:
    measure = Measure("accuracy", variant=variant)
    return Published(row, "Accuracy", value, measure, deviation, "of the five folds, as printed")


def _of_class(name: str, value: float) -> Published:
    measure = Measure("recall", positive=name, variant="vgg16")
    return Published(name, "Recall", value, measure, remark="the paper: in most of the folds; ours over all five")


_STAGE_ONE = "the images of our first stage stand in the record: they are those at hand, tested patients left out"
TABLES = (
    Table(
        "Section III.A",
        "COVID-19 images by where they came from",
        tuple(
            Published(source, "COVID-19 images", count, None, remark="the manifest does not tell these apart")
            for source, count in (
                ("Italian Society of Medical Radiology", 25),
                ("Radiopaedia", 20),
                ("Cohen et al.", 180),
                ("a hospital in Spain", 80),
            )
        ),
    ),
    Table(
        "Table I",
        "Images of Data-A (the first stage) and of Data-B",
        (
            *(
                Published(f"Data-A, {part}", name, count, None, remark=_STAGE_ONE)
                for part, name, count in (
                    ("training", "normal", 47560),
                    ("training", "diseased", 40819),
                    ("validation", "normal", 10000),
                    ("validation", "diseased", 10000),
                )
            ),
            *(Published("Data-B", name, count, Measure("images", positive=name)) for name, count in IMAGES.items()),
        ),
    ),
    Table(
        "Section IV, accuracy",
        "5-fold cross-validation on Data-B",
        (
            _accuracy("AlexNet", "alexnet", 0.8298, 0.0002),
            _accuracy("VGGNet", "vgg16", 0.9013, 0.0014),
            _accuracy("ResNet", "resnet50", 0.8598, 0.0007),
        ),
    ),
    Table(
        "Section IV, classes",
        "Rightly classified by VGGNet on Data-B",
        (_of_class("covid19", 0.99), _of_class("normal", 1.0)),
    ),
)

SILENT = (
    "Keras starts layers by Glorot and has 1e-7 as Adam's epsilon; here both are torch's own.",
    (
        "Input size, batch, the epochs of the second stage and the ranges of the augmentation are not given: 224 "
        "pixels, 64 and 32 images, 50 epochs, 10 degrees, 90 to 110 % and mirroring are ours; the second stage is "
        "augmented too."
    ),
    "Standardisation is not given: each image is brought to zero mean and unit deviation.",
    "Which layers the 3 x 3 kernels replace is not said: here ResNet-50's first convolution and AlexNet's first two.",
    "The folds are not said to be by patient; ours are, and near duplicates stay together.",
    "Whether lateral COVID-19 images were used is not said; here only frontal ones are.",
    (
        "What ± means beside the accuracies is not said, nor whether it is in percent: then all three are smaller than "
        "what one image changes in a fold of 255 (0.4 %)."
    ),
    "The confusion matrices of Fig. 3 are printed as a picture only: ours stand in the evaluation.",
)
_DATA = (
    (
        "First stage: whatever normal and diseased images the manifest holds of ChestX-ray14, CheXpert and Kermany, "
        "without the patients and near duplicates that are tested; a tenth of them, by patient, is its validation. "
        "Pneumonia is not taken out of the diseased ones, as the paper does: where ChestX-ray14 is not at hand whole, "
        "all of them name it, so that the stand-in overlaps the second stage's classes."
    ),
    (
        "COVID-19 images come from the COVID-19 image data collection alone, which has taken in most of the Italian, "
        "Spanish and Radiopaedia images since."
    ),
    (
        "Where ChestX-ray14 is not at hand whole, images with another label beside pneumonia fill up the class "
        "pneumonia, and other_disease is what is at hand of the six diseases, then of others."
    ),
)

PAPER = Paper(
    name="basu",
    title="Basu et al. 2020: Deep Learning for Screening COVID-19 using Chest X-Ray Images",
    citation="Basu S, Mitra S, Saha N. IEEE Symposium Series on Computational Intelligence (2020). arXiv:2004.10507",
    variants=VARIANTS,
    robust_variants=ROBUST_VARIANTS,
    recipe=recipe,
    data_set=assemble,
    splits=splits,
    label=label,
    tables=TABLES,
    silent=SILENT,
    differences={
        robust.PROFILE: robust.DIFFERENCES["basu"],
        "paper": _DATA,
        "small": (
            *_DATA,
            "160 pixels, not the 224 taken for the paper: trained on two CPU cores.",
            (
                "First stage: 4 epochs (AlexNet 6) of 2,000 images, as many of either class, with half an epoch of "
                "warm-up; the paper has 100 epochs of 88,379."
            ),
            (
                "First stage of VGG-16 and AlexNet: Adam at 1e-4, not 1e-3, at which a network without BatchNorm does "
                "not come out of the constant answer."
            ),
            (
                "Second stage: SGD at 1e-3 with cosine decay, 10 epochs, batch 16; at the paper's 1e-4 so few steps "
                "would hardly move the new last layer."
            ),
        ),
    },
)
