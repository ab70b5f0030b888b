"""Collections of images that do not exist, and what networks of several kinds would say of each."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dicom_node.combination import sigmoid
from training.data.manifest import Picture

if TYPE_CHECKING:
    from collections.abc import Sequence

# What `training.targets.readings_of` gives of a network with four classes, of Zhang's two heads, of one that was
# trained on normal images only, and of one that knows COVID-19 and the rest.
FOUR = {
    "covid19": {"output": "p_covid19", "over": "p_pneumonia"},
    "pneumonia": {"output": "p_covid19 + p_pneumonia", "over": "rest"},
    "abnormal": {"output": "logit_normal"},
}
HEADS = {
    "covid19": {"output": "p_cls", "over": "rest"},
    "pneumonia": {"output": "p_ano"},
    "abnormal": {"output": "p_ano"},
}
ONE_CLASS = {"pneumonia": {"output": "error"}, "abnormal": {"output": "error"}}
TWO = {"covid19": {"output": "logit_covid19"}}
# cohen holds COVID-19 and pneumonia, nih and kermany (of children) pneumonia and normal images.
COLLECTIONS = (
    ("cohen", "covid19", 60), ("cohen", "pneumonia", 50), ("nih", "normal", 70), ("nih", "pneumonia", 60),
    ("kermany", "normal", 40), ("kermany", "pneumonia", 45),
)  # fmt: skip


def pictures(collections: Sequence[tuple[str, str, int]] = COLLECTIONS, split: str = "train") -> list[Picture]:
    """Each of a patient of its own; every other is PA."""
    return [
        Picture(name, Path("a.png"), split, source, f"patient {name}", finding, "PA" if number % 2 else "AP")
        for source, finding, images in collections
        for number in range(images)
        for name in (f"{source}-{finding}-{split}-{number}",)
    ]


def four_classes(abnormal: float, covid19: float) -> dict[str, float]:
    """Scores by the log-odds of being abnormal, and of COVID-19 if it is."""
    sick, given = sigmoid(abnormal), sigmoid(covid19)
    return {
        "p_normal": 1 - sick,
        "p_covid19": 0.9 * sick * given,
        "p_pneumonia": 0.9 * sick * (1 - given),
        "p_other_disease": 0.1 * sick,
        "logit_normal": -abnormal,
    }


def two_heads(abnormal: float, covid19: float) -> dict[str, float]:
    return {"p_cls": sigmoid(covid19), "p_ano": abnormal}


def one_class(abnormal: float, covid19: float) -> dict[str, float]:
    return {"error": 2 + abnormal}


def two_classes(abnormal: float, covid19: float) -> dict[str, float]:
    return {"logit_covid19": covid19 if abnormal > 0 else min(covid19, -1.0), "p_covid19": sigmoid(covid19)}


def said(shown: Sequence[Picture], seed: int, kind=four_classes, skill: float = 1.5) -> list[dict[str, float]]:
    """What a network says that is `skill` deviations right of both questions."""
    rng = np.random.default_rng(seed)
    found = []
    for picture in shown:
        abnormal, covid19 = (math.copysign(skill / 2, truth) for truth in truths(picture))
        found.append(kind(abnormal + rng.normal(), covid19 + rng.normal()))
    return found


def truths(picture: Picture) -> tuple[int, int]:
    """1 or -1: abnormal, COVID-19."""
    return 1 if picture.finding != "normal" else -1, 1 if picture.finding == "covid19" else -1


def together(**members: list[dict[str, float]]) -> list[dict[str, dict[str, float]]]:
    """The members' scores, image by image."""
    return [dict(zip(members, each, strict=True)) for each in zip(*members.values(), strict=True)]
