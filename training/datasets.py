"""The images by `index.csv`: which are used, how they are split, and their pixels."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.model_selection import StratifiedGroupKFold

from dicom_node.pixels import read_picture
from training.models.preprocess import square

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

MAX_PIXELS = 64_000_000


@dataclass(frozen=True, slots=True)
class Picture:
    """One row of the index; `positive` is COVID-19, everything else is negative."""

    image_id: str
    path: Path
    split: str
    source: str
    patient_id: str
    finding: str
    view: str
    licence: str

    @property
    def positive(self) -> bool:
        """Whether the image is one of COVID-19."""
        return self.finding == "covid19"

    @property
    def stratum(self) -> str:
        """Source and class."""
        return f"{self.source}/{'positive' if self.positive else 'negative'}"


def read_index(folder: Path, split: str | None = None) -> tuple[Picture, ...]:
    """The frontal chest X-rays of `folder`/index.csv, all of them or those of one split.

    Raises
    ------
    ValueError
        Where a patient stands in two splits.
    """
    with (folder / "index.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    split_of: dict[str, str] = {}
    for row in rows:
        if split_of.setdefault(row["patient_id"], row["split"]) != row["split"]:
            raise ValueError(f"patient {row['patient_id']} stands in two splits of {folder / 'index.csv'}")
    return tuple(
        Picture(
            image_id=row["image_id"],
            path=folder / row["path"],
            split=row["split"],
            source=row["source"],
            patient_id=row["patient_id"],
            finding=row["finding"],
            view=row["view"],
            licence=row["licence"].strip() or "not stated",
        )
        for row in rows
        if row["finding"] != "not_cxr" and row["view"] != "LATERAL" and split in (None, row["split"])
    )


def fold_of(pictures: Sequence[Picture], folds: int, seed: int) -> NDArray[np.int64]:
    """The fold that holds each picture back: a patient stands in one fold, strata are spread over all."""
    assigned = np.full(len(pictures), -1, dtype=np.int64)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    strata = [picture.stratum for picture in pictures]
    patients = [picture.patient_id for picture in pictures]
    for fold, (_, held_back) in enumerate(splitter.split(strata, strata, patients)):
        assigned[held_back] = fold
    return assigned


def pixels_of(picture: Picture) -> NDArray[np.float32]:
    """The picture as service would read it: float32, shape (H, W), in [0, 1]."""
    return read_picture(picture.path, max_pixels=MAX_PIXELS)


def load_squares(pictures: Sequence[Picture], side: int) -> Tensor:
    """All pictures at once for training: uint8, shape (N, side, side)."""
    squares = torch.empty((len(pictures), side, side), dtype=torch.uint8)
    for index, picture in enumerate(pictures):
        squares[index] = (square(pixels_of(picture), side)[0] * 255).round().clamp(0, 255).to(torch.uint8)
    return squares
