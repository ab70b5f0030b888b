"""The one form in which a collection is described, and its reader."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

NAMES = ("manifest.csv", "index.csv")
FINDINGS = ("covid19", "pneumonia", "normal", "other_disease", "not_cxr")
REQUIRED = ("image_id", "path", "split", "source", "patient_id", "finding", "view")
COLUMNS = (*REQUIRED, "labels", "sex", "age", "licence", "sha256", "cluster")


@dataclass(frozen=True, slots=True)
class Picture:
    """One row of a manifest.

    Attributes
    ----------
    image_id
        Unique in the manifest; the same in every manifest built from the same file.
    split
        ``train``, ``val``, ``external`` (never trained or tuned on), or empty.
    finding
        One of `FINDINGS`; `labels` keeps what the owner of the collection wrote, separated by ``|``.
    view
        ``PA``, ``AP``, ``LATERAL``, or empty where the owner does not say.
    sex, age
        ``M``, ``F`` or empty; years or empty.
    sha256
        Of the file, or empty.
    cluster
        Same text for near duplicates, or empty; a cluster is split like a patient.
    """

    image_id: str
    path: Path
    split: str
    source: str
    patient_id: str
    finding: str
    view: str = ""
    labels: str = ""
    sex: str = ""
    age: str = ""
    licence: str = "not stated"
    sha256: str = ""
    cluster: str = ""

    @property
    def frontal(self) -> bool:
        """Whether the image is a frontal chest X-ray, as far as its row says."""
        return self.finding != "not_cxr" and self.view != "LATERAL"


def manifest_file(path: Path) -> Path:
    """The manifest: the file itself, or the first of `NAMES` in a folder.

    Raises
    ------
    ValueError
        Where the folder holds none.
    """
    if not path.is_dir():
        return path
    file = next((path / name for name in NAMES if (path / name).is_file()), None)
    if file is None:
        raise ValueError(f"{path} holds neither {' nor '.join(NAMES)}; build one: python -m training data build")
    return file


def manifest_sha256(path: Path) -> str:
    """SHA-256 of the manifest that is read there."""
    return hashlib.sha256(manifest_file(path).read_bytes()).hexdigest()


def read_manifest(path: Path) -> tuple[Picture, ...]:
    """All rows of a manifest: a file, or a folder that holds one of `NAMES`; paths are relative to its folder.

    Raises
    ------
    ValueError
        Naming the file, and the missing column or the row that is wrong.
    """
    file = manifest_file(path)
    with file.open(newline="", encoding="utf-8") as text:
        reader = csv.DictReader(text)
        if missing := [name for name in REQUIRED if name not in (reader.fieldnames or ())]:
            raise ValueError(f"{file}: column {missing[0]} is missing; required are {', '.join(REQUIRED)}")
        return tuple(_picture(file, number, row) for number, row in enumerate(reader, 2))


def _picture(file: Path, line: int, row: dict[str, str | None]) -> Picture:
    given = {name: (row.get(name) or "").strip() for name in COLUMNS}
    for name in ("image_id", "path", "source", "patient_id"):
        if not given[name]:
            raise ValueError(f"{file}, line {line}: {name} is empty")
    if given["finding"] not in FINDINGS:
        raise ValueError(f"{file}, line {line}: finding {given['finding']!r} is none of {', '.join(FINDINGS)}")
    given["licence"] = given["licence"] or "not stated"
    return Picture(path=file.parent / given.pop("path"), **given)


def write_manifest(pictures: Iterable[Picture], file: Path) -> None:
    """Write a manifest; paths become relative to its folder where they lie under it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    root = file.parent.resolve()
    with file.open("w", newline="", encoding="utf-8") as text:
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        for picture in pictures:
            row = {name: getattr(picture, name) for name in COLUMNS}
            place = picture.path.resolve()
            row["path"] = place.relative_to(root) if place.is_relative_to(root) else place
            writer.writerow(row)
