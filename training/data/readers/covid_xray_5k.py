"""COVID-Xray-5k (github.com/shervinmin/DeepCovid; Minaee et al., Medical Image Analysis 65, 2020).

``data_upload_v3/{train,test}/{covid,non}/``; ``test/non`` has one folder for each label of CheXpert.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from training.data.readers.common import Collected, Listed, collect, files_under, find

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SPLITS = {"train": "train", "test": "val"}
# Images of `non` have one label each, by folder or before the patient in the file's name. Where neither names one (700
# of the 2,000 in `train` are normal, says the paper, not which), other_disease stands for: no COVID-19.
FINDINGS = {"no finding": "normal", "pneumonia": "pneumonia"}
_NAME = re.compile(r"(?:(?P<label>.+)-)?(?P<patient>patient\d+)[-_]")


def read(root: Path) -> Collected:
    """`covid` comes from the COVID-19 image data collection, `non` from CheXpert, and each keeps that source.

    The patients of `covid` are not told: each image counts as one. The owner's split, or one by duplicates and by the
    collection's own list, is the only one that can be trusted there.
    """
    home = find(root, "train", "test").parent
    return collect(home, _listed(home))


def _listed(home: Path) -> Iterator[Listed]:
    for folder, split in SPLITS.items():
        for path in files_under(home / folder / "covid"):
            place = path.relative_to(home).as_posix()
            yield Listed(file=place, source="cohen", patient=path.stem, finding="covid19", labels="covid", split=split)
        for path in files_under(home / folder / "non"):
            place = path.relative_to(home).as_posix()
            name = _NAME.match(path.name)
            label = (path.parent.name if path.parent.name != "non" else (name and name["label"]) or "").replace(
                "_", " "
            )
            yield Listed(
                file=place,
                source="chexpert",
                patient=name["patient"] if name else "",
                finding=FINDINGS.get(label.lower(), "other_disease") if name else "",
                labels=f"non|{label}" if label else "non",
                split=split,
                why="" if name else "the name of the file tells no patient",
            )
