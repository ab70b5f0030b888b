"""The run as tables: a row a study and a row an image, as CSV and as Parquet, written as they are read."""

from __future__ import annotations

import csv
import os
from contextlib import ExitStack, contextmanager
from typing import IO, TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from dicom_node.retrospective.report.answers import ImageAnswer, StudyAnswer

_ROWS_AT_ONCE = 5000
_STUDY = (
    ("study_instance_uid", str),
    ("study_date", str),
    ("accession_number", str),
    ("patient_id", str),
    ("state", str),
    ("reason", str),
    ("images", int),
    ("declined", int),
    ("failed", int),
    ("missing", int),
    ("view", str),
    ("sex", str),
    ("age", int),
    ("scanner", str),
    ("label", int),
)
_IMAGE = (
    ("study_instance_uid", str),
    ("sop_instance_uid", str),
    ("modality", str),
    ("view", str),
    ("sex", str),
    ("age", int),
    ("scanner", str),
    ("state", str),
    ("reason", str),
    ("release", str),
)


class Tables:
    """`studies` and `images` in a folder, in both forms; a context manager that completes the files."""

    def __init__(self, folder: Path, targets: Sequence[str]) -> None:
        self._targets = targets
        answers = [
            (f"{target}_{name}", kind)
            for target in targets
            for name, kind in (("probability", float), ("threshold", float), ("decision", str))
        ]
        self._columns = {"studies": (*_STUDY, *answers), "images": (*_IMAGE, *answers)}
        self._held = ExitStack()
        self._folder = folder
        self._writers: dict[str, _Both] = {}

    def __enter__(self) -> Self:
        """The files are begun."""
        for name, columns in self._columns.items():
            self._writers[name] = self._held.enter_context(_both(self._folder / name, columns))
        return self

    def __exit__(self, *given: Any) -> None:
        """The files are complete."""
        self._held.__exit__(*given)

    def add(self, study: StudyAnswer, label: bool | None) -> None:
        """A row of the study, and one of each of its images."""
        self._writers["studies"].add(self._study(study, label))
        for image in study.images:
            self._writers["images"].add(self._image(study, image))

    def _study(self, study: StudyAnswer, label: bool | None) -> dict[str, Any]:
        states = [image.state for image in study.images]
        first = next((found[0] for target in self._targets if (found := study.strongest(target)) is not None), None)
        shown = first or next(iter(study.images), None)
        row: dict[str, Any] = {
            "study_instance_uid": study.study_instance_uid,
            "study_date": study.study_date,
            "accession_number": study.accession_number,
            "patient_id": study.patient_id,
            "state": str(study.state),
            "reason": study.reason,
            "images": len(states),
            "declined": states.count("declined"),
            "failed": states.count("failed"),
            "missing": study.missing,
            "view": shown.view if shown else None,
            "sex": shown.sex if shown else None,
            "age": shown.age if shown else None,
            "scanner": shown.scanner if shown else None,
            "label": None if label is None else int(label),
        }
        for target in self._targets:
            strongest = study.strongest(target)
            told = strongest[1] if strongest else None
            row[f"{target}_probability"] = told.probability if told else None
            row[f"{target}_threshold"] = told.threshold if told else None
            row[f"{target}_decision"] = study.decision(target)
        return row

    def _image(self, study: StudyAnswer, image: ImageAnswer) -> dict[str, Any]:
        row: dict[str, Any] = {"study_instance_uid": study.study_instance_uid}
        row |= {name: getattr(image, name) for name, _ in _IMAGE[1:]}
        for target in self._targets:
            told = image.targets.get(target)
            row[f"{target}_probability"] = told.probability if told else None
            row[f"{target}_threshold"] = told.threshold if told else None
            row[f"{target}_decision"] = told.decision if told else None
        return row


class _Both:
    """One table as CSV and as Parquet."""

    def __init__(self, text: IO[str], writer: Any, schema: Any, names: Sequence[str]) -> None:
        self._csv = csv.DictWriter(text, names)
        self._csv.writeheader()
        self._writer = writer
        self._schema = schema
        self._rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        """One more row; an empty cell of the CSV is what is not known."""
        self._csv.writerow(row)
        self._rows.append(row)
        if len(self._rows) == _ROWS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """The rows at hand are in the Parquet file."""
        import pyarrow as pa

        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []


@contextmanager
def _both(place: Path, columns: Sequence[tuple[str, type]]) -> Iterator[_Both]:
    """The table of that name; its files, which may name patients, are for their owner alone."""
    import pyarrow as pa
    from pyarrow import parquet

    kinds = {str: pa.string(), int: pa.int32(), float: pa.float64()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in columns])
    with ExitStack() as held:
        text = held.enter_context(os.fdopen(_private(place.with_suffix(".csv")), "w", encoding="utf-8", newline=""))
        binary = held.enter_context(os.fdopen(_private(place.with_suffix(".parquet")), "wb"))
        writer = held.enter_context(parquet.ParquetWriter(binary, schema))
        made = _Both(text, writer, schema, [name for name, _ in columns])
        yield made
        made.flush()


def _private(place: Path) -> int:
    """A descriptor of a new file there."""
    place.unlink(missing_ok=True)
    return os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
