"""Everything that a study's page shows, from the ledger and, of its report, from the archive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from sqlalchemy import select

from dicom_node import predictions
from dicom_node.bundle import parse_manifest
from dicom_node.combination import AnswerError, results
from dicom_node.domain import NodeError, ObjectKind, State, TargetResult
from dicom_node.explain import explain
from dicom_node.explain_cli import lines as explained
from dicom_node.tables import InstanceRow, ObjectRow, ReleaseRow, ReportRow, ScreeningRow
from dicom_node.transitions import OWN
from dicom_node.worklist import listing
from dicom_node.worklist.tables import StudyRow

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydicom import Dataset
    from sqlalchemy.orm import Session

    from dicom_node.archive import Archive
    from dicom_node.database import Database
    from dicom_node.predictions import MapPlace
    from dicom_node.worklist.listing import Line

_MOST_PRIORS = 20
_DEEPEST = 12


class UnknownStudyError(NodeError):
    """No such study stands in the worklist."""

    reason = "unknown_study"
    status = 404


@dataclass(frozen=True, slots=True)
class Film:
    """One image of the study.

    Attributes
    ----------
    path
        Its file in the archive; None where its pixels are not kept.
    results
        The ensemble's answers, each with what every member would answer alone.
    maps
        The members' heatmaps, in the order of the file.
    """

    instance_id: int
    sop_instance_uid: str
    view: str
    path: str | None
    state: State
    reason: str | None
    detail: str | None
    release: str
    results: tuple[TargetResult, ...]
    maps: tuple[MapPlace, ...]
    remarks: tuple[str, ...]


class Item(NamedTuple):
    """A line of a Structured Report: how deep it stands, what is said, and its value."""

    depth: int
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Whole:
    """What the page shows."""

    line: Line
    films: tuple[Film, ...]
    priors: tuple[Line, ...]
    provenance: tuple[str, ...]


def whole(database: Database, study_instance_uid: str) -> Whole:
    """The study.

    Raises
    ------
    UnknownStudyError
    """
    with database.read() as session:
        study = session.scalar(select(StudyRow).filter_by(study_instance_uid=study_instance_uid))
        if study is None:
            raise UnknownStudyError("no such study stands in the worklist")
        (line,) = listing.lines_of(session, [study])
        films = tuple(_films(session, study_instance_uid))
        priors = tuple(listing.lines_of(session, _priors(session, study)))
    return Whole(line, films, priors, tuple(explained(explain(database, study_instance_uid))))


def film(database: Database, study_instance_uid: str, instance_id: int) -> Film | None:
    """One image of the study; None where it holds no such image."""
    with database.read() as session:
        return next((one for one in _films(session, study_instance_uid, instance_id)), None)


def _films(session: Session, study_instance_uid: str, instance_id: int | None = None) -> Iterator[Film]:
    query = (
        select(InstanceRow, ScreeningRow, ReleaseRow)
        .join(ScreeningRow, ScreeningRow.instance_id == InstanceRow.id)
        .join(ReleaseRow, ReleaseRow.id == ScreeningRow.release_id)
        .where(
            InstanceRow.study_instance_uid == study_instance_uid,
            ScreeningRow.purpose.in_(OWN),
            ScreeningRow.replaced_by.is_(None),
        )
        .order_by(InstanceRow.id)
    )
    if instance_id is not None:
        query = query.where(InstanceRow.id == instance_id)
    for instance, screening, release in session.execute(query).tuples():
        manifest = parse_manifest(release.manifest)
        answers: tuple[TargetResult, ...] = ()
        maps: tuple[MapPlace, ...] = ()
        try:
            stored = predictions.load(session, screening.id, manifest)
        except LookupError:
            pass  # not predicted yet, or never
        else:
            maps = stored.maps
            answers = stored.prediction.targets
            try:
                thresholds = {one.target: one.threshold for one in answers}
                alone = {one.target: one.members for one in results(manifest, stored.prediction.members, thresholds)}
            except (AnswerError, KeyError):  # of a release that said so in other terms
                alone = {}
            answers = tuple(
                TargetResult(
                    one.target,
                    one.probability,
                    one.threshold,
                    one.decision,
                    alone.get(one.target, {}),
                    one.operating_point,
                )
                for one in answers
            )
        yield Film(
            instance.id,
            instance.sop_instance_uid,
            instance.view,
            instance.path,
            State(screening.state),
            screening.reason,
            screening.detail,
            f"{release.bundle} {release.release}",
            answers,
            maps,
            tuple(str(one) for one in screening.remarks),
        )


def _priors(session: Session, study: StudyRow) -> Sequence[StudyRow]:
    """Earlier and later studies of the same patient ID, the newest first."""
    if not study.patient_id:
        return []
    query = select(StudyRow).where(StudyRow.patient_id == study.patient_id, StudyRow.id != study.id)
    return session.scalars(query.order_by(StudyRow.arrived_at.desc()).limit(_MOST_PRIORS)).all()


def report(database: Database, archive: Archive, study_instance_uid: str) -> tuple[Item, ...]:
    """The study's newest report as people read it; empty where there is none in the archive."""
    query = (
        select(ObjectRow.path)
        .join(ReportRow, ReportRow.id == ObjectRow.report_id)
        .where(
            ReportRow.study_instance_uid == study_instance_uid,
            ReportRow.replaced_by.is_(None),
            ObjectRow.kind == ObjectKind.REPORT,
            ObjectRow.retraction_id.is_(None),
        )
        .order_by(ObjectRow.id.desc())
    )
    with database.read() as session:
        path = session.scalar(query.limit(1))
    if path is None:
        return ()
    try:
        found = dcmread(archive.locate(path))
    except (OSError, InvalidDicomError):
        return ()
    return tuple(_items(found, 0))


def _items(content: Dataset, depth: int) -> Iterator[Item]:
    for item in content.get("ContentSequence", ()):
        names = item.get("ConceptNameCodeSequence") or ()
        value = _value(item)
        if names or value:
            yield Item(depth, str(names[0].get("CodeMeaning", "")) if names else "", value)
        if depth < _DEEPEST:
            yield from _items(item, depth + 1)


def _value(item: Dataset) -> str:
    kind = str(item.get("ValueType", ""))
    if kind == "CODE":
        return str(item.ConceptCodeSequence[0].get("CodeMeaning", ""))
    if kind == "NUM":
        measured = item.get("MeasuredValueSequence") or ()
        if not measured:
            return "not measured"
        units = measured[0].get("MeasurementUnitsCodeSequence") or ()
        unit = str(units[0].get("CodeValue", "")) if units else ""
        return f"{measured[0].get('NumericValue', '')} {'' if unit == '1' else unit}".strip()
    if kind == "IMAGE":
        return "image " + str(item.ReferencedSOPSequence[0].get("ReferencedSOPInstanceUID", ""))
    if kind == "PNAME":
        return str(item.get("PersonName", ""))
    for keyword in ("TextValue", "UID", "DateTime", "Date", "Time"):
        if keyword in item:
            return str(item.get(keyword))
    return "region" if kind in ("SCOORD", "SCOORD3D") else ""
