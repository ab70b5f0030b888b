"""The truth of studies as a site knows it: a CSV file, by Study Instance UID or accession number."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dicom_node.domain import NodeError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dicom_node.retrospective.report.answers import StudyAnswer

_KEYS = ("study_instance_uid", "accession_number")
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
    """

    key: str
    truth: Mapping[str, bool]
    patients: Mapping[str, str]

    def of(self, study: StudyAnswer) -> bool | None:
        """The study's truth; None where the file does not say."""
        return self.truth.get(self._named(study))

    def patient_of(self, study: StudyAnswer) -> str | None:
        """Who the study's patient is, by the file, else by the ledger."""
        return self.patients.get(self._named(study)) or study.patient_id

    def _named(self, study: StudyAnswer) -> str:
        if self.key == "study_instance_uid":
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
    lines = text.splitlines()
    delimiter = next((one for one in ",;\t" if lines and one in lines[0]), ",")
    table = csv.reader(lines, delimiter=delimiter)
    head = [name.strip().lower() for name in next(table, [])]
    key = next((name for name in _KEYS if name in head), None)
    if key is None:
        raise LabelError(f"{file} has no column study_instance_uid or accession_number in its first line")
    if key == "accession_number" and not identity:
        raise LabelError(
            f"{file} names studies by accession number, and store_patient_identity = false keeps none in the ledger: "
            "name them by study_instance_uid"
        )
    column = next((name for name in (target.lower(), _TRUTH) if name in head), None)
    if column is None:
        raise LabelError(f"{file} has no column {target} or label")
    return _read(file, table, head, key, column)


def _read(file: Path, table: object, head: list[str], key: str, column: str) -> Labels:
    truth: dict[str, bool] = {}
    lines: dict[str, int] = {}
    patients: dict[str, str] = {}
    places = head.index(key), head.index(column)
    patient_at = head.index(_PATIENT) if _PATIENT in head else None
    for number, cells in enumerate(table, start=2):  # type: ignore[arg-type,var-annotated]
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) <= max(places):
            raise LabelError(f"{file}, line {number}: it has {len(cells)} columns, the first line has {len(head)}")
        name, said = (cells[place].strip() for place in places)
        if not name:
            raise LabelError(f"{file}, line {number}: {key} is empty")
        if not said:  # not known
            continue
        if said.lower() not in _TRUE | _FALSE:
            raise LabelError(f"{file}, line {number}: {column} is neither 1 nor 0 (nor true/false, yes/no)")
        is_positive = said.lower() in _TRUE
        if truth.setdefault(name, is_positive) != is_positive:
            raise LabelError(f"{file}, line {number}: the same study as in line {lines[name]}, with the other label")
        lines.setdefault(name, number)
        if patient_at is not None and len(cells) > patient_at and cells[patient_at].strip():
            patients[name] = cells[patient_at].strip()
    if not truth:
        raise LabelError(f"{file} holds no label")
    return Labels(key, truth, patients)
