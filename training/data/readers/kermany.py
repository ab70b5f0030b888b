"""Paediatric chest X-rays (Kermany et al., Cell 2018; Mendeley Data, doi 10.17632/rscbjbr9sj).

``chest_xray/{train,val,test}/{NORMAL,PNEUMONIA}/``; Mendeley's copies have no ``val``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from training.data.readers.common import Collected, Listed, collect, files_under, find, folders_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FINDINGS = {"NORMAL": "normal", "PNEUMONIA": "pneumonia"}
SPLITS = {"train": "train", "val": "val", "test": "val"}
# person123_bacteria_4, IM-0115-0001, NORMAL2-IM-1427-0001-0002; in Mendeley's third version BACTERIA-1135262-0001.
_PATIENT = re.compile(r"person\d+|(?:NORMAL2-)?IM-\d+|(?:NORMAL|BACTERIA|VIRUS)-\d+")
_CAUSE = re.compile("bacteria|virus", re.IGNORECASE)


def read(root: Path) -> Collected:
    """Folders are labels, and the file's name tells the patient and the cause; ages (one to five) are not given.

    Numbers seem to count the children of each cause: person100 has bacteria in ``test`` and a virus in ``train``. The
    patients of ``test`` are therefore named apart; elsewhere one number is one child, which at worst joins two.
    """
    home = find(root, "train", "test").parent
    return collect(home, _listed(home))


def _listed(home: Path) -> Iterator[Listed]:
    for folder in folders_of(home):
        for path in files_under(folder) if folder.name in SPLITS else ():
            label = path.parent.name
            patient, cause = _PATIENT.match(path.name), _CAUSE.search(path.name)
            yield Listed(
                file=path.relative_to(home).as_posix(),
                source="kermany",
                patient=("test-" if folder.name == "test" else "") + (patient[0] if patient else ""),
                finding=FINDINGS.get(label, "") if patient else "",
                labels="|".join([label, cause[0].lower()] if cause else [label]),
                split=SPLITS[folder.name],
                view="AP",
                licence="CC BY 4.0",
                why="" if patient else "the name of the file tells no patient",
            )
