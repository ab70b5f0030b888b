"""The collections of A. Chung's for COVID-Net, both with a ``metadata.csv`` in one form, and ``images``.

github.com/agchung/Figure1-COVID-chestxray-dataset and github.com/agchung/Actualmed-COVID-chestxray-dataset.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from training.data.readers.common import Collected, Listed, age, collect, find, sex, table, view

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LICENCE = "research use"
# The column `finding`; empty are images that nobody judged (Figure 1) or whose judgement is open (Actualmed): they are
# left out. Actualmed's `No finding` are patients in whom COVID-19 was excluded; its notes say no more of the films.
FINDINGS = {"COVID-19": "covid19", "Pneumonia": "pneumonia", "No finding": "normal"}
_COLUMNS = ("patientid", "sex", "age", "finding", "view", "modality")


def read_figure1(root: Path) -> Collected:
    """Figure 1: the file is named after ``patientid``; kept for tests alone (``external``)."""
    file = find(root, "metadata.csv")
    suffixes = {path.stem: path.suffix for path in (file.parent / "images").glob("*.*")}
    rows = table(file, *_COLUMNS)
    names = [row["patientid"] + suffixes.get(row["patientid"], ".jpg") for row in rows]
    return collect(file.parent, _listed("figure1", rows, names, "external"))


def read_actualmed(root: Path) -> Collected:
    """Actualmed: the file is ``imagename``."""
    file = find(root, "metadata.csv")
    rows = table(file, *_COLUMNS, "imagename")
    return collect(file.parent, _listed("actualmed", rows, [row["imagename"] for row in rows], ""))


def _listed(source: str, rows: list[dict[str, str]], names: list[str], split: str) -> Iterator[Listed]:
    for row, name in zip(rows, names, strict=True):
        yield Listed(
            file=f"images/{name}",
            source=source,
            patient=patient_of(row["patientid"]),
            finding=FINDINGS.get(row["finding"], "") if row["modality"] == "X-ray" else "not_cxr",
            labels=row["finding"],
            split=split,
            view=view(row["view"]) if row["modality"] == "X-ray" else row["modality"],
            sex=sex(row["sex"]),
            age=age(row["age"]),
            licence=LICENCE,
            why="" if row["finding"] else "the finding is empty",
        )


def patient_of(name: str) -> str:
    """The patient of a ``patientid``: Figure 1 adds a letter for each of several images (COVID-00003a, b)."""
    return re.sub(r"(?<=\d)[a-z]$", "", name)
