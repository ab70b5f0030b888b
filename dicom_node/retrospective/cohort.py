"""Which studies are wanted: by days, modalities and body part, or by lists of accession numbers or patients."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from dicom_node.domain import NodeError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODALITIES = ("CR", "DX")
# PS3.5 6.2: SH and LO; a backslash would be two values, * and ? match others (PS3.4 C.2.2.2.4).
_LONGEST = {"accession_number": 16, "patient_id": 64}
_ILLEGAL = re.compile(r"[\\*?\x00-\x1f]")
_MODALITY = re.compile(r"[A-Z0-9_ ]{1,16}")
_MOST_DAYS = 36_600


class CohortError(NodeError):
    """What was asked for cannot be a cohort; the message says what is wrong, and where."""

    reason = "cohort"


class Asked(NamedTuple):
    """One value of a file, and the line on which it stands."""

    line: int
    value: str


@dataclass(frozen=True, slots=True)
class Criteria:
    """A cohort: all studies of the days, both included, or those of the accession numbers or patients.

    With either list, days without which it is asked are None.
    """

    first_day: date | None = None
    last_day: date | None = None
    modalities: tuple[str, ...] = MODALITIES
    body_part: str | None = None
    accessions: tuple[Asked, ...] = ()
    patients: tuple[Asked, ...] = ()
    repeated: int = 0  # lines of the list that name what an earlier one does

    def days(self) -> Iterator[date]:
        """Each day, where the cohort is asked for by days alone."""
        if self.accessions or self.patients or self.first_day is None or self.last_day is None:
            return
        for number in range((self.last_day - self.first_day).days + 1):
            yield self.first_day + timedelta(days=number)

    def holds(self, study_date: str) -> bool:
        """Whether a study of that date (DA) belongs to it; one without a date does."""
        if not study_date:
            return True
        first, last = self.first_day, self.last_day
        return (first is None or f"{first:%Y%m%d}" <= study_date) and (last is None or study_date <= f"{last:%Y%m%d}")

    def as_json(self, *, identity: bool = True) -> dict[str, Any]:
        """The criteria as the ledger keeps them.

        Without `identity`, of the lists only how long they are, and a mark that tells another list of that length (but
        for one in 4,096) and names nobody.
        """
        told: dict[str, Any] = {
            "first_day": self.first_day.isoformat() if self.first_day else None,
            "last_day": self.last_day.isoformat() if self.last_day else None,
            "modalities": list(self.modalities),
            "body_part": self.body_part,
        }
        for name, asked in (("accessions", self.accessions), ("patients", self.patients)):
            if asked:
                told[name] = [list(one) for one in asked] if identity else {"count": len(asked), "mark": _mark(asked)}
        return told

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Criteria:
        """What `as_json` told.

        Raises
        ------
        CohortError
            Where the lists were not kept.
        """
        lists = {name: told.get(name, []) for name in ("accessions", "patients")}
        if not all(isinstance(asked, list) for asked in lists.values()):
            raise CohortError("the ledger keeps no identities, so the lists of this cohort have to be given once more")
        first, last = told.get("first_day"), told.get("last_day")
        return cls(
            first_day=date.fromisoformat(first) if first else None,
            last_day=date.fromisoformat(last) if last else None,
            modalities=tuple(told["modalities"]),
            body_part=told.get("body_part"),
            accessions=tuple(Asked(*one) for one in lists["accessions"]),
            patients=tuple(Asked(*one) for one in lists["patients"]),
        )


def criteria(
    first: str | None,
    last: str | None,
    *,
    today: date,
    modalities: tuple[str, ...] = (),
    body_part: str | None = None,
    accessions: Path | None = None,
    patients: Path | None = None,
) -> Criteria:
    """The cohort of the command line.

    Raises
    ------
    CohortError
        Where the days are none, the wrong way round or to come, or a file cannot be used.
    """
    first_day, last_day = _day("--from", first), _day("--to", last)
    if accessions is None and patients is None and first_day is None:
        raise CohortError("say which studies: --from and --to, --accessions FILE or --patients FILE")
    if accessions is not None and patients is not None:
        raise CohortError("--accessions and --patients are two cohorts: plan a run for each")
    if first_day is not None and last_day is None:
        last_day = today
    if first_day is not None and last_day is not None:
        if last_day < first_day:
            raise CohortError(f"--from {first_day} is after --to {last_day}: the other way round?")
        if (last_day - first_day).days > _MOST_DAYS:
            raise CohortError(f"--from {first_day} is more than a century before --to {last_day}")
    for option, day in (("--from", first_day), ("--to", last_day)):
        if day is not None and day > today:  # it would count as asked for, and hold nothing yet
            raise CohortError(f"{option} {day} is to come: today is {today}")
    for modality in modalities:
        if not _MODALITY.fullmatch(modality):
            raise CohortError(f"--modality {modality!r} is no DICOM modality, such as CR or DX")
    by_accession, repeated = read_values(accessions, "accession_number") if accessions else ((), 0)
    by_patient, repeated = read_values(patients, "patient_id") if patients else ((), repeated)
    return Criteria(
        first_day,
        last_day,
        modalities or MODALITIES,
        body_part.strip().upper() if body_part else None,
        by_accession,
        by_patient,
        repeated,
    )


def _mark(asked: tuple[Asked, ...]) -> str:
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:3]


def read_values(file: Path, column: str) -> tuple[tuple[Asked, ...], int]:
    """The values of a file, one a line or the column of that name of a CSV file, each once; and how many came again.

    Raises
    ------
    CohortError
        Where it cannot be read, holds none, or holds one that cannot be asked for; it names the line, not the value.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CohortError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CohortError(f"{file} is not UTF-8 text, at byte {error.start}") from error
    if "\0" in text:
        raise CohortError(f"{file} is no text: it holds a NUL")
    found: dict[str, Asked] = {}
    repeated = 0
    for line, value in _values(file, text, column):
        if len(value) > _LONGEST[column] or _ILLEGAL.search(value):
            raise CohortError(
                f"{file}, line {line}: no {column} has more than {_LONGEST[column]} characters, or one of \\ * ?"
            )
        repeated += value in found
        found.setdefault(value, Asked(line, value))
    if not found:
        raise CohortError(f"{file} holds no {column}")
    return tuple(found.values()), repeated


def _values(file: Path, text: str, column: str) -> Iterator[tuple[int, str]]:
    lines = text.splitlines()
    header = next((line for line in lines if line.strip() and not line.startswith("#")), "")
    delimiter = next((one for one in ",;\t" if one in header), ",")
    names = [name.strip().lower() for name in header.split(delimiter)]
    if len(names) > 1 and column not in names:
        raise CohortError(f"{file} has columns, and none of them is called {column}")
    place = names.index(column) if column in names else None
    for number, line in enumerate(lines, start=1):
        try:  # each by itself: a quote that nobody closes shall not swallow the lines after it
            cells = next(csv.reader([line], delimiter=delimiter, strict=True), [])
        except csv.Error as error:
            raise CohortError(f"{file}, line {number} is no line of CSV: {error}") from error
        if not cells or cells[0].startswith("#") or (place is not None and [c.strip().lower() for c in cells] == names):
            continue
        value = cells[place or 0].strip() if len(cells) > (place or 0) else ""
        if value:
            yield number, value


def _day(option: str, text: str | None) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise CohortError(f"{option} {text!r} is no day, such as 2026-01-31") from error
