"""ChestX-ray14 (nihcc.app.box.com/v/ChestXray-NIHCC; Wang et al., CVPR 2017).

``Data_Entry_2017_v2020.csv`` (or the first edition, ``Data_Entry_2017.csv``), the images in ``images_001/images`` to
``images_012/images`` or all in ``images``, and perhaps the lists ``train_val_list.txt`` and ``test_list.txt``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.data.readers.common import Collected, Listed, age, collect, files_under, find, sex, table, view

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LICENCE = "NIH ChestX-ray14 terms (free use, cite)"
LISTS = {"train_val_list.txt": "train", "test_list.txt": "val"}
# Shadows that are the pneumonia itself. `Finding Labels` (joined by |) become
#   No Finding                                  normal
#   Pneumonia, alone or with these two          pneumonia
#   anything else, with or without Pneumonia    other_disease
WITH_PNEUMONIA = frozenset({"Pneumonia", "Infiltration", "Consolidation"})


def read(root: Path) -> Collected:
    """All images of the list; an image that is in no folder counts as missing."""
    file = find(root, "Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
    return collect(file.parent, _listed(file))


def _listed(file: Path) -> Iterator[Listed]:
    home = file.parent
    folders = sorted(path for path in home.glob("images*") if path.is_dir())
    places = {path.name: path for folder in folders for path in files_under(folder)}
    splits = {
        name: split
        for list_name, split in LISTS.items()
        if (home / list_name).is_file()
        for name in (home / list_name).read_text().split()
    }
    for row in table(file, "Image Index", "Finding Labels", "Patient ID", "Patient Age", "View Position"):
        name = row["Image Index"]
        yield Listed(
            file=places.get(name, home / "images" / name).relative_to(home).as_posix(),
            source="nih",
            patient=row["Patient ID"],
            finding=finding_of(row["Finding Labels"]),
            labels=row["Finding Labels"],
            split=splits.get(name, ""),
            view=view(row["View Position"]),
            sex=sex(row.get("Patient Gender") or row.get("Patient Sex", "")),
            age=age(row["Patient Age"]),
            licence=LICENCE,
        )


def finding_of(label: str) -> str:
    """Our finding for the owner's labels, or empty where there is none."""
    words = {word for word in label.split("|") if word}
    if words == {"No Finding"}:
        return "normal"
    if "Pneumonia" in words and words <= WITH_PNEUMONIA:
        return "pneumonia"
    return "other_disease" if words - {"No Finding"} else ""
