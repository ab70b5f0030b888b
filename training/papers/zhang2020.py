"""Zhang et al. 2020, anomaly detection: ``python -m training train zhang --data DIR --workdir DIR``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.papers import robust
from training.papers.assembly import carries, check_known, cross_validation, data_set, of_sources, pick, usable
from training.papers.basu2020 import first_stage
from training.papers.paper import DataSet, Measure, Paper, Published, Run, Table
from training.recipe import Augmentation, Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.data.manifest import Picture

# The network of the paper, and the two single-task networks of Fig. 3.
SCORES = {"both": "p_avg", "classification": "p_cls", "anomaly": "p_ano"}
VARIANTS = tuple(SCORES)
CLASSES = ("other", "covid19")
COVID19_IMAGES, PNEUMONIA_IMAGES = 100, 1431


def recipe(variant: str, profile: str) -> Recipe:
    """Section 2, "Training algorithm"."""
    check_known(variant, VARIANTS, profile)
    backbone = first_stage("Minaee2020", "resnet18", profile)
    paper = Recipe(
        paper="zhang",
        variant=variant,
        profile=profile,
        architecture="Zhang2020",
        options={"heads": variant},
        classes=CLASSES,
        loss="zhang",
        score=SCORES[variant],
        resize=512,
        crop=448,
        standardise="imagenet",
        epochs=500,
        learning_rate=1e-4,
        batch=32,
        accumulate=4,
        optimiser="sgd",
        optimiser_options={"momentum": 0.9},
        schedule="linear",
        augmentation=Augmentation(random_crop=True, flip=0.5, zoom=(0.9, 1.1)),
        weights="imagenet",
        pretraining=backbone.but(resize=448, crop=448, standardise="imagenet"),
    )
    if profile == "paper":
        return paper
    if profile == robust.PROFILE:
        return robust.zhang(paper)
    return paper.but(
        resize=176,
        crop=160,
        standardise="per image",
        epochs=16,
        images_per_epoch=1500,
        balance="source and class",
        learning_rate=5e-4,
        accumulate=1,
        optimiser="adamw",
        optimiser_options={"weight_decay": 0.05},
        schedule="cosine",
        schedule_options={"warmup_epochs": 1.0},
        augmentation=Augmentation(
            random_crop=True,
            flip=0.5,
            zoom=(0.9, 1.1),
            rotation_deg=8.0,
            gamma=0.4,
            jitter=0.2,
            blur_px=1.2,
            noise=0.1,
            erase=0.5,
        ),
        weights="pretraining",
        pretraining=backbone,
    )


def label(picture: Picture) -> str | None:
    """COVID-19 or anything else."""
    return "covid19" if picture.finding == "covid19" else "other"


def assemble(pictures: Sequence[Picture]) -> DataSet:
    """Section 3.1: COVID-19 of the COVID-19 image collection, and all of ChestX-ray14 that is labelled pneumonia."""
    frontal = usable(pictures)
    covid19 = of_sources([p for p in frontal if p.finding == "covid19"], ("cohen",))
    pneumonia = of_sources([p for p in frontal if p.finding == "pneumonia" or carries(p, "Pneumonia")], ("nih",))
    return data_set({"other": pick(pneumonia, PNEUMONIA_IMAGES), "covid19": pick(covid19, COVID19_IMAGES)})


def splits(data: DataSet, seed: int) -> list[Run]:
    """Section 3.2: the patients of the paper's two test sets add up to all; hence two halves, each tested once."""
    return cross_validation(data, 2, seed, "split")


_TABLE_1 = (
    (0.50, 0.7200, 0.9797),
    (0.40, 0.7700, 0.9546),
    (0.30, 0.8100, 0.9071),
    (0.25, 0.9000, 0.8784),
    (0.20, 0.9300, 0.8141),
    (0.15, 0.9600, 0.7065),
)
_AUC = 0.9518


def _at(threshold: float, sensitivity: float, specificity: float) -> tuple[Published, ...]:
    row = f"T = {threshold:.2f}"
    return (
        Published(row, "Sensitivity", sensitivity, Measure("sensitivity", at=threshold)),
        Published(row, "Specificity", specificity, Measure("specificity", at=threshold)),
        Published(row, "AUC", _AUC, Measure("auc")),
    )


def _split(row: str, *counts: int) -> tuple[Published, ...]:
    columns = ("COVID-19 images", "COVID-19 patients", "pneumonia images", "pneumonia patients")
    remark = "test set of one run; the images of both are counted above"
    return tuple(Published(row, column, n, None, remark=remark) for column, n in zip(columns, counts, strict=True))


_OTHER_WORK = "another work, on CT"
TABLES = (
    Table(
        "Sections 3.1 and 3.2",
        "Images and patients, and those of the two test sets",
        (
            Published("both splits", "COVID-19 images", 100, Measure("images")),
            Published("both splits", "COVID-19 patients", 70, Measure("patients")),
            Published("both splits", "pneumonia images", 1431, Measure("images", positive="other")),
            Published("both splits", "pneumonia patients", 1008, Measure("patients", positive="other")),
            *_split("first split", 50, 33, 714, 492),
            *_split("second split", 50, 37, 717, 516),
        ),
    ),
    Table(
        "Table 1",
        "The network at different thresholds of p_avg, mean of the two splits",
        tuple(number for row in _TABLE_1 for number in _at(*row)),
    ),
    Table(
        "Section 4",
        "Shi et al., beside whom the paper sets itself (1,658 patients with COVID-19 and 1,027 with other pneumonia)",
        (
            Published("Shi et al.", "Sensitivity", 0.907, None, remark=_OTHER_WORK),
            Published("Shi et al.", "Specificity", 0.833, None, remark=_OTHER_WORK),
        ),
    ),
)

SILENT = (
    "Eq. 1 is printed without its minus; here it has one.",
    (
        "Channels and kernel of the heads' convolution, and what lies between it and the perceptron, are not given: "
        "3 x 3, 512 channels and a mean over the map are ours."
    ),
    "The test crop is not named: the centre of the resized image.",
    "SGD's momentum and weight decay are not given: 0.9 and none.",
    "Standardisation is not named: ImageNet's, as its weights expect.",
    "Sampling of the two classes is not named: in profile paper every image comes once in an epoch.",
    (
        "The reference scores are said to be those of random normal images, and then to be drawn from a standard "
        "normal; here, as in the deviation network that the paper follows, 5,000 draws made once."
    ),
    "An output stride of 5 is printed; ResNet-18 has 32, which is 2 to the power of 5.",
    "p_avg is not confined to [0, 1], though thresholds from 0.15 to 0.50 read as if it were.",
    (
        "Fig. 3 (ROC curves of each head against its single-task network, which each is said to outperform) prints no "
        "numbers: ours are the AUC of p_cls and p_ano of the variant both, and of the variants classification and "
        "anomaly."
    ),
)
_DATA = (
    (
        "Where ChestX-ray14 is not at hand whole, fewer other pneumonias than 1,431: all of its images whose labels "
        "name pneumonia."
    ),
    "100 COVID-19 images are picked at random, by patient, from a later state of the same collection; frontal only.",
)

PAPER = Paper(
    name="zhang",
    title="Zhang et al. 2020: COVID-19 Screening on Chest X-ray Images Using Deep Learning based Anomaly Detection",
    citation="Zhang J, Xie Y, Li Y, Shen C, Xia Y. arXiv:2003.12338 (2020)",
    variants=VARIANTS,
    recipe=recipe,
    data_set=assemble,
    splits=splits,
    label=label,
    tables=TABLES,
    silent=SILENT,
    differences={
        robust.PROFILE: robust.DIFFERENCES["zhang"],
        "paper": (*_DATA, "The batch of 128 is four of 32: BatchNorm sees 32 images at a time."),
        "small": (
            *_DATA,
            "The backbone starts from Basu's first stage (chest X-rays, normal against diseased), not from ImageNet.",
            "160 pixels cropped from 176, the paper has 448 from 512: trained on two CPU cores.",
            (
                "AdamW at 5e-4 with warm-up and cosine decay, 16 epochs of 1,500 images, batch 32: in that time the "
                "paper's SGD at 1e-4, made for 500 epochs, would not move the network."
            ),
            "Each image is standardised by itself: a network that never saw ImageNet needs none of its statistics.",
            "Sampling balanced by source and class.",
            (
                "Further augmentation (rotation, gamma, blur, noise, erased patches and frames, jittered contrast) "
                "against what tells sources apart without a lung."
            ),
        ),
    },
)
