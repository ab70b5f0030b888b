"""The truth of studies as a site knows it: a CSV file, by Study Instance UID or accession number."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dicom_node.domain import NodeError

if TYPE_CHECKING:
    from _csv import Reader
    from collections.abc import Mapping
    from pathlib import Path

    from dicom_node.retrospective.report.answers import StudyAnswer

_UID = "study_instance_uid"
_KEYS = (_UID, "accession_number")
_TRUTH = "label"
_PATIENT = "patient_id"
_TRUE = frozenset({"1", "true", "yes", "positive", "pos"})
_FALSE = frozenset({"0", "false", "no", "negative", "neg"})


class LabelError(NodeError):
    """The file of labels cannot be used; the message names the line, never a value."""

    reason = "labels"


@dataclass(frozen=True, slots=True)
class Labels:
    """The truth by key.

    Attributes
    ----------
    key
        The column that names a study.
    patients
        By the same key, who the patient is; empty where the file does not say.
    blank
        Lines that name a study and say nothing of it.
    """

    key: str
    truth: Mapping[str, bool]
    patients: Mapping[str, str]
    blank: int = 0

    def of(self, study: StudyAnswer) -> bool | None:
        """The study's truth; None where the file does not say."""
        return self.truth.get(self.named(study))

    def patient_of(self, study: StudyAnswer) -> str | None:
        """Who the study's patient is, by the file, else by the ledger."""
        return self.patients.get(self.named(study)) or study.patient_id

    def named(self, study: StudyAnswer) -> str:
        """The study's key."""
        if self.key == _UID:
            return study.study_instance_uid
        return study.accession_number or ""


def read_labels(file: Path, target: str, *, identity: bool) -> Labels:
    """The truth of question `target`: of the column of its name, else of the column ``label``.

    Raises
    ------
    LabelError
        Where the file cannot be read, a column is missing, a label is none, or two lines contradict each other.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LabelError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise LabelError(f"{file} is not UTF-8 text, at byte {error.start}") from error
    first = text.partition("\n")[0]
    table = csv.reader(io.StringIO(text, newline=""), delimiter=next((one for one in ",;\t" if one in first), ","))
    try:
        head = [name.strip().lower() for name in next(table, [])]
        columns = _columns(file, head, target.lower(), identity=identity)
        return _read(file, table, head, columns)
    except csv.Error as error:
        raise LabelError(f"{file}, line {table.line_num}: it is no CSV") from error


def _columns(file: Path, head: list[str], target: str, *, identity: bool) -> tuple[str, str]:
    """The columns that name a study, and say the truth of it."""
    key = next((name for name in _KEYS if name in head), None)
    if key is None:
        raise LabelError(f"{file} has no column study_instance_uid or accession_number in its first line")
    if key != _UID and not identity:
        raise LabelError(
            f"{file} names studies by accession number, and store_patient_identity = false keeps none in the ledger: "
            "name them by study_instance_uid"
        )
    column = next((name for name in (target, _TRUTH) if name in head), None)
    if column is None:
        raise LabelError(f"{file} has no column {target} or {_TRUTH} in its first line")
    for name in (key, column, _PATIENT):
        if head.count(name) > 1:
            raise LabelError(f"{file} has {head.count(name)} columns {name}; keep one")
    return key, column


def _read(file: Path, table: Reader, head: list[str], columns: tuple[str, str]) -> Labels:
    key, column = columns
    key_at, truth_at, patient_at = (head.index(name) if name in head else None for name in (key, column, _PATIENT))
    assert key_at is not None  # noqa: S101 - found there
    assert truth_at is not None  # noqa: S101
    truth: dict[str, bool] = {}
    lines: dict[str, int] = {}
    patients: dict[str, str] = {}
    blank = 0
    for cells in table:
        where = f"{file}, line {table.line_num}"
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(head):
            raise LabelError(f"{where}: it has {len(cells)} columns, the first line has {len(head)}")
        name, said = cells[key_at].strip(), cells[truth_at].strip().lower()
        if not name:
            raise LabelError(f"{where}: {key} is empty")
        if not said:
            blank += 1
            continue
        if said not in _TRUE | _FALSE:
            raise LabelError(f"{where}: {column} is neither 1 nor 0 (nor true/false, yes/no, positive/negative)")
        lines.setdefault(name, table.line_num)
        if truth.setdefault(name, said in _TRUE) != (said in _TRUE):
            raise LabelError(f"{where}: the same study as in line {lines[name]}, with the other label")
        patient = cells[patient_at].strip() if patient_at is not None else ""
        if patient and patients.setdefault(name, patient) != patient:
            raise LabelError(f"{where}: the same study as in line {lines[name]}, with another patient_id")
    if not truth:
        raise LabelError(f"{file} holds no label")
    return Labels(key, truth, patients, blank)
