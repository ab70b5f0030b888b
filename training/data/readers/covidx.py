"""COVIDx, the data set of COVID-Net (github.com/lindawangg/COVID-Net, docs/COVIDx.md; Wang et al., arXiv 2003.09871).

The folders ``train`` and ``test`` (and ``val``), and beside each its list: ``train.txt``, or ``train_COVIDx8A.txt``.
A line is ``patient file class source``; the first versions have no source, and some patients a blank in their name.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from training.data.readers.chung import patient_of
from training.data.readers.common import Collected, Listed, collect, find

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SPLITS = {"train": "train", "val": "val", "test": "val"}
# Lists of two classes (B) say `positive` and `negative`; a negative may be normal or pneumonia, and is left out: the
# list of three classes (A) tells. Grades of severity (COVIDxSev) are no findings.
FINDINGS = {"COVID-19": "covid19", "positive": "covid19", "pneumonia": "pneumonia", "normal": "normal", "negative": ""}
# COVIDx takes its images from others, and an image keeps the source it comes from: only so is one hospital one source,
# and a patient of one collection the same in both. `rsna` are images of ChestX-ray14 under new names; their lines have
# no source in the tests of versions 3 to 7, but no other patient is named by a UUID.
SOURCES = {"fig1": "figure1", "actmed": "actualmed", "rnsa": "rsna"}
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def read(root: Path) -> Collected:
    """All lists beside the folders.

    Raises
    ------
    ValueError
        Where a folder has no list or several (one for each version), or where a line is none.
    """
    home = find(root, "train", "test").parent
    lists = {folder: _list_of(home, folder) for folder in SPLITS if (home / folder).is_dir()}
    return collect(home, (row for folder, file in lists.items() for row in _listed(file, folder)))


def _list_of(home: Path, folder: str) -> Path:
    found = sorted(home.glob(f"{folder}*.txt"))
    if len(found) != 1:
        raise ValueError(
            f"{home}: one list {folder}*.txt is needed, found {', '.join(f.name for f in found) or 'none'}"
        )
    return found[0]


def _listed(file: Path, folder: str) -> Iterator[Listed]:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        at = next((at for at in (len(words) - 2, len(words) - 1) if at >= 2 and words[at] in FINDINGS), -1)
        if at < 0:
            raise ValueError(f"{file}, line {number}: no class among {', '.join(FINDINGS)} after a patient and a file")
        patient, source = " ".join(words[: at - 1]), "".join(words[at + 1 :])
        source = source or ("rsna" if _UUID.fullmatch(patient) else "covidx")
        yield Listed(
            file=f"{folder}/{words[at - 1]}",
            source=SOURCES.get(source, source),
            patient=patient_of(patient) if source == "fig1" else patient,
            finding=FINDINGS[words[at]],
            labels=words[at],
            split=SPLITS[folder],
            licence="see source",
            why="" if FINDINGS[words[at]] else "negative may be normal or pneumonia; the list of three classes tells",
        )
