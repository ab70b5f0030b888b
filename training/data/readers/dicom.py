"""Folders of DICOM objects: one folder for each finding, as in `folders`, files of any name at any depth in it.

What stands in the manifest of a patient is a hash, sex and age. Who has a list of Patient IDs can find them by the hash
again: such a manifest is pseudonymous, not anonymous, and the names of files stand in it as they are.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import defaultdict
from typing import TYPE_CHECKING

from pydicom import dcmread

from training.data.readers.common import Collected, Listed, age, collect, sex, tracked, view
from training.data.readers.folders import by_finding

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RADIOGRAPHS = ("CR", "DX", "RG")  # PS3.3 C.7.3.1.1.1
CHEST = ("CHEST", "THORAX", "LUNG")  # in BodyPartExamined (PS3.16 Annex L), CHESTABDOMEN and the like too
_ELEMENTS = (
    *("Modality", "BodyPartExamined", "ViewPosition", "PatientID", "IssuerOfPatientID", "PatientSex", "PatientAge"),
)


def read(root: Path) -> Collected:
    """Chest radiographs; in the folder ``not_cxr`` anything, with the modality for its view.

    A file is left out where a data element says that it shows no chest, is no radiograph, or is neither frontal nor
    lateral; where it names no patient; and where it is no DICOM file. An absent element is no refusal.
    """
    return collect(root, _listed(root))


def _listed(root: Path) -> Iterator[Listed]:
    source = root.resolve().name
    files = by_finding(root)
    for finding, path in tracked(files, "Reading headers", len(files)):
        place = path.relative_to(root)
        said = _header(path)
        why = _refusal(said, finding) if finding else "the folder is no finding"
        yield Listed(
            file=place.as_posix(),
            source=source,
            patient=hashlib.sha256(f"{said['IssuerOfPatientID']}\n{said['PatientID']}".encode()).hexdigest()[:12],
            finding="" if why else finding,
            labels=place.parts[0],
            view=said["Modality"] if finding == "not_cxr" else view(said["ViewPosition"]),
            sex=sex(said["PatientSex"]),
            age=age(said["PatientAge"]),
            why=why,
        )


def _header(path: Path) -> dict[str, str]:
    """The elements as text; none where it is no DICOM file, else an absent one is empty."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of odd values with the values in the text
            header = dcmread(path, stop_before_pixels=True, specific_tags=list(_ELEMENTS))
            return defaultdict(str, {name: str(header.get(name) or "").strip() for name in _ELEMENTS})
    except Exception:  # pydicom raises many kinds on broken input
        return defaultdict(str)


def _refusal(said: dict[str, str], finding: str) -> str:
    """Why the file is left out, or empty; identifiers are not told."""
    if not said:
        return "no DICOM file (PS3.10)"
    if not said["PatientID"]:
        return "(0010,0020) PatientID is empty"
    if finding == "not_cxr":
        return ""
    if said["Modality"] not in ("", *RADIOGRAPHS):
        return f"(0008,0060) Modality is {said['Modality']}"
    part = said["BodyPartExamined"].upper()
    if part and not any(word in part for word in CHEST):
        return f"(0018,0015) BodyPartExamined is {part}"
    if said["ViewPosition"] and not view(said["ViewPosition"]):
        return f"(0018,5101) ViewPosition is {said['ViewPosition']}"
    return ""
