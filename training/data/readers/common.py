"""What all readers share: what they return, how lists are read, how files are opened."""

from __future__ import annotations

import csv
import hashlib
import os
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import StringIO
from typing import TYPE_CHECKING, Protocol, TypeVar

from rich.console import Console
from rich.progress import track

from dicom_node.domain import NodeError
from training.data.manifest import Picture
from training.data.squares import pixels_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

T = TypeVar("T")

LARGEST_AGE = 120  # years; ChestX-ray14 has a few of 400
_VIEWS = {"PA": "PA", "AP": "AP", "APS": "AP"} | dict.fromkeys(("L", "LL", "RL", "LAT", "LATERAL"), "LATERAL")
_YEARS = {"Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}  # of the units of an Age String (PS3.5 6.2)
_NAMED = 5  # files in a sentence


@dataclass(frozen=True, slots=True)
class Collected:
    """What a reader found.

    Attributes
    ----------
    problems
        One line for each reason to leave files out, which counts and names them, then one for each file that is listed
        but missing or unreadable.
    """

    pictures: tuple[Picture, ...]
    problems: tuple[str, ...]


class Reader(Protocol):
    """Reads a collection as its owner ships it."""

    def __call__(self, root: Path) -> Collected:
        """All pictures below `root`; ValueError names what is missing: a folder, a list, a column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """What the owner says of one file, in the manifest's words.

    Attributes
    ----------
    file
        Below the collection's folder, with slashes.
    patient
        Unique in its source.
    finding
        One of `manifest.FINDINGS`; empty where the owner's label has no place among them, and then `why` tells.
    split
        Of the owner: what he trains on is ``train``, what he validates or tests on is ``val``; empty without lists.
    """

    file: str
    source: str
    patient: str
    finding: str
    labels: str
    split: str = ""
    view: str = ""
    sex: str = ""
    age: str = ""
    licence: str = "not stated"
    why: str = ""


def collect(home: Path, listed: Iterable[Listed]) -> Collected:
    """The pictures of a collection in the folder `home`; what has no finding or is listed again is left out."""
    pictures: dict[str, Picture] = {}
    left_out: dict[str, list[str]] = {}
    for row in listed:
        if not row.finding:
            left_out.setdefault(row.why or f"the label {row.labels!r} is none of our findings", []).append(row.file)
        elif (picture := _picture(home, row)).image_id in pictures:
            left_out.setdefault("listed more than once", []).append(row.file)
        else:
            pictures[picture.image_id] = picture
    found = opened(tuple(pictures.values()))
    return Collected(found.pictures, (*(_sentence(*item) for item in left_out.items()), *found.problems))


def _picture(home: Path, row: Listed) -> Picture:
    return Picture(
        image_id=hashlib.sha256(f"{row.source}/{row.file}".encode()).hexdigest()[:12],
        path=home / row.file,
        split=row.split,
        source=row.source,
        patient_id=f"{row.source}-{row.patient}",
        finding=row.finding,
        view=row.view,
        labels=row.labels,
        sex=row.sex,
        age=row.age,
        licence=row.licence or "not stated",
    )


def _sentence(why: str, files: list[str]) -> str:
    more = len(files) - _NAMED
    named = ", ".join(files[:_NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"{len(files)} {'image' if len(files) == 1 else 'images'}: {why}: {named}"


def opened(pictures: tuple[Picture, ...]) -> Collected:
    """The pictures that can be read as training and service read them, with the SHA-256 of their files."""
    # Readers silence warnings each for itself, and threads would restore each other's filters: silence them here.
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")
        found = list(tracked(pool.map(_opened, pictures), "Opening images", len(pictures)))
    return Collected(
        tuple(one for one in found if isinstance(one, Picture)), tuple(one for one in found if isinstance(one, str))
    )


def _opened(picture: Picture) -> Picture | str:
    """The picture with its hash, or what stands against it."""
    try:
        with picture.path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        pixels_of(picture)
    except OSError as error:
        return f"{picture.path}: {error.strerror}"
    except NodeError as error:
        return f"{picture.path}: {error}"
    if picture.sha256 not in ("", sha256):
        return f"{picture.path}: its sha256 is not the listed one: the file was changed"
    return replace(picture, sha256=sha256)


def tracked(items: Iterable[T], text: str, total: int) -> Iterable[T]:
    """The items, with a progress bar where somebody watches."""
    console = Console(stderr=True)
    return track(items, text, total, console=console, disable=not console.is_terminal)


def find(root: Path, *names: str) -> Path:
    """The first of the names that lies in `root`, or else in a folder of it.

    Raises
    ------
    ValueError
        Where there is none.
    """
    for folder in (root, *folders_of(root)):
        for name in names:
            if (folder / name).exists():
                return folder / name
    raise ValueError(f"{root}: holds no {' and no '.join(names)}")


def folders_of(folder: Path) -> list[Path]:
    """The folders in a folder, without hidden ones, by name.

    Raises
    ------
    ValueError
        Where `folder` is none.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no folder")
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__MACOSX")))


def files_under(folder: Path) -> Iterator[Path]:
    """The files below a folder, at any depth, without hidden ones, by name."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(part.startswith((".", "__MACOSX")) for part in path.relative_to(folder).parts):
            yield path


def table(file: Path, *required: str) -> list[dict[str, str]]:
    """The rows of a list with commas, stripped of blanks; text is UTF-8, or else Windows-1252.

    Raises
    ------
    ValueError
        Naming the file, and the column that it lacks.
    """
    content = file.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")
    reader = csv.reader(StringIO(text, newline=""))
    header = [name.strip() for name in next(reader, [])]
    for name in required:
        if name not in header:
            raise ValueError(f"{file}: column {name} is missing")
    blank = dict.fromkeys(header, "")
    return [blank | dict(zip(header, map(str.strip, row), strict=False)) for row in reader if row]


def view(text: str) -> str:
    """``PA``, ``AP`` (supine and erect ones too), ``LATERAL``, or empty where the text says none of them."""
    return _VIEWS.get(text.upper().partition(" ")[0], "")


def sex(text: str) -> str:
    """``M``, ``F`` (also for ``w``, German) or empty."""
    return {"M": "M", "F": "F", "W": "F"}.get(text[:1].upper(), "")


def age(text: str) -> str:
    """Full years, from years or a DICOM Age String such as ``058Y``; empty where it is no number (``50+``)."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?)([YMWD]?)", text.strip().upper())
    if found is None:
        return ""
    years = float(found[1]) / _YEARS[found[2] or "Y"]
    return str(int(years)) if years <= LARGEST_AGE else ""
