"""CheXpert (stanfordmlgroup.github.io/competitions/chexpert; Irvin et al., AAAI 2019), full size or small.

``train.csv`` and ``valid.csv`` in ``CheXpert-v1.0-small``, whose own name begins every ``Path``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.data.readers.common import Collected, Listed, age, collect, find, sex, table, view

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LICENCE = "Stanford University School of Medicine CheXpert Dataset Research Use Agreement"
LISTS = {"train.csv": "train", "valid.csv": "val"}
DISEASES = (
    *("Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation"),
    *("Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture"),
)
LABELS = ("No Finding", *DISEASES, "Support Devices")
# Shadows that are the pneumonia itself. Of the labels (1 positive, 0 negative, -1 uncertain, blank not mentioned)
#   Pneumonia uncertain                                    left out
#   Pneumonia positive, alone or with these two            pneumonia
#   any other disease positive, with or without Pneumonia  other_disease
#   No Finding positive (Support Devices may be)           normal
#   nothing positive                                       left out
WITH_PNEUMONIA = frozenset({"Pneumonia", "Lung Opacity", "Consolidation"})


def read(root: Path) -> Collected:
    """Both lists; `labels` are the positive ones, and the uncertain ones with a question mark."""
    home = find(root, *LISTS).parent
    lists = [(home / name, split) for name, split in LISTS.items() if (home / name).is_file()]
    return collect(home, (row for file, split in lists for row in _listed(file, split)))


def _listed(file: Path, split: str) -> Iterator[Listed]:
    for row in table(file, "Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *LABELS):
        place = row["Path"].partition("/")[2]
        values = {label: float(row[label] or 0) for label in LABELS}
        finding, why = _finding(values)
        yield Listed(
            file=place,
            source="chexpert",
            patient=place.split("/")[1] if place.count("/") > 1 else place,
            finding=finding,
            labels="|".join(label + "?" * (value < 0) for label, value in values.items() if value),
            split=split,
            view="LATERAL" if row["Frontal/Lateral"] == "Lateral" else view(row["AP/PA"]),
            sex=sex(row["Sex"]),
            age=age(row["Age"]),
            licence=LICENCE,
            why=why,
        )


def _finding(values: dict[str, float]) -> tuple[str, str]:
    """Our finding, or empty and why there is none."""
    diseases = {label for label in DISEASES if values[label] > 0}
    if values["Pneumonia"] < 0:
        return "", "pneumonia is uncertain"
    if "Pneumonia" in diseases and diseases <= WITH_PNEUMONIA:
        return "pneumonia", ""
    if diseases:
        return "other_disease", ""
    return ("normal", "") if values["No Finding"] > 0 else ("", "no finding is positive")
