"""Everything behind a result, read from the ledger alone: by the UID of an object, image, study or transaction.

One read transaction; what grows with every image is looked up by an index.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from dicom_node import object_history, screening_history
from dicom_node.domain import NodeError
from dicom_node.explanation import (
    Explanation,
    Image,
    Kind,
    ReportName,
    ReportSource,
    Resend,
    Retraction,
    StudyReport,
)
from dicom_node.object_history import grouped
from dicom_node.tables import (
    CommitmentRow,
    InstanceRow,
    ObjectRow,
    ReleaseRow,
    ReportRow,
    ReportSourceRow,
    ResendRow,
    RetractionRow,
    ScreeningRow,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from sqlalchemy.orm import Session

    from dicom_node.database import Database
    from dicom_node.explanation import Made, Screening


class UnknownUidError(NodeError):
    """The ledger has never met the UID."""

    reason = "unknown_uid"


@dataclass(frozen=True, slots=True)
class _Scope:
    """Of what is told: rows by their ids."""

    kind: Kind
    instances: frozenset[int] = frozenset()
    screenings: frozenset[int] = frozenset()
    reports: frozenset[int] = frozenset()


def explain(database: Database, uid: str) -> Explanation:
    """What the ledger holds behind the UID.

    Of a heatmap, its image and the reports that tell of it; of a report, its images; of a rejection note, what it took
    back; of an image or a study, all that was ever made of it; of a storage commitment, the objects that it was for.

    Raises
    ------
    UnknownUidError
        Where the ledger does not know the UID.
    """
    with database.read() as session:
        scope = _scope(session, uid)
        if scope is not None:
            return _explained(session, uid, scope)
        commitment = session.scalar(select(CommitmentRow).filter_by(transaction_uid=uid))
        if commitment is None:
            raise UnknownUidError(
                f"the ledger knows no image, study, result or transaction {uid!r}: is the UID right, and this its node?"
            )
        return Explanation(uid, Kind.TRANSACTION, transaction=object_history.transaction(session, commitment))


def _scope(session: Session, uid: str) -> _Scope | None:
    objects = session.scalars(select(ObjectRow).filter_by(sop_instance_uid=uid)).all()
    if objects:
        return _scope_of_objects(session, objects)
    instances = _ids(session, select(InstanceRow.id).filter_by(sop_instance_uid=uid))
    if instances:
        return _scope_of_instances(session, Kind.IMAGE, instances)
    instances = _ids(session, select(InstanceRow.id).filter_by(study_instance_uid=uid))
    return _scope_of_instances(session, Kind.STUDY, instances) if instances else None


def _scope_of_objects(session: Session, objects: Sequence[ObjectRow]) -> _Scope:
    kind = Kind(objects[0].kind)
    if kind is Kind.NOTE:
        return _scope_of_retractions(session, {row.retraction_id or 0 for row in objects})
    screenings = frozenset(row.screening_id for row in objects if row.screening_id is not None)
    reports = frozenset(row.report_id for row in objects if row.report_id is not None)
    screenings |= _ids(session, select(ReportSourceRow.screening_id).where(ReportSourceRow.report_id.in_(reports)))
    if kind is Kind.HEATMAP:
        reports = _told(session, screenings)
    return _Scope(kind, _instances(session, screenings), screenings, reports)


def _scope_of_retractions(session: Session, retractions: Collection[int]) -> _Scope:
    """The screenings and reports of which objects were taken back, found by their study."""
    studies = session.scalars(select(RetractionRow.study_instance_uid).where(RetractionRow.id.in_(retractions))).all()
    of_study = select(ScreeningRow.id).join(InstanceRow, InstanceRow.id == ScreeningRow.instance_id)
    screened = _ids(session, of_study.where(InstanceRow.study_instance_uid.in_(studies)))
    reported = _ids(session, select(ReportRow.id).where(ReportRow.study_instance_uid.in_(studies)))
    taken = ObjectRow.retraction_id.in_(retractions)
    screenings = _ids(session, select(ObjectRow.screening_id).where(ObjectRow.screening_id.in_(screened), taken))
    reports = _ids(session, select(ObjectRow.report_id).where(ObjectRow.report_id.in_(reported), taken))
    return _Scope(Kind.NOTE, _instances(session, screenings), screenings, reports)


def _scope_of_instances(session: Session, kind: Kind, instances: frozenset[int]) -> _Scope:
    screenings = _ids(session, select(ScreeningRow.id).where(ScreeningRow.instance_id.in_(instances)))
    return _Scope(kind, instances, screenings, _told(session, screenings))


def _told(session: Session, screenings: Collection[int]) -> frozenset[int]:
    """The reports that tell of these screenings."""
    return _ids(session, select(ReportSourceRow.report_id).where(ReportSourceRow.screening_id.in_(screenings)))


def _instances(session: Session, screenings: Collection[int]) -> frozenset[int]:
    return _ids(session, select(ScreeningRow.instance_id).where(ScreeningRow.id.in_(screenings)))


def _ids(session: Session, query: Any) -> frozenset[int]:
    return frozenset(session.scalars(query))


def _explained(session: Session, uid: str, scope: _Scope) -> Explanation:
    screened = screening_history.screenings(session, scope.screenings)
    images = _images(session, scope.instances, screened)
    reports = _reports(session, scope.reports)
    made = [one for found in screened.values() for screening in found for one in screening.objects]
    made += [one for report in reports for one in report.objects]
    named = {(one.bundle, one.release) for found in screened.values() for one in found}
    return Explanation(
        uid,
        scope.kind,
        images=images,
        reports=reports,
        retractions=_retractions(session, made),
        releases=screening_history.releases(session, named | {(one.bundle, one.release) for one in reports}),
    )


def _images(
    session: Session, instances: Collection[int], screened: Mapping[int, tuple[Screening, ...]]
) -> tuple[Image, ...]:
    rows = session.scalars(select(InstanceRow).where(InstanceRow.id.in_(instances)).order_by(InstanceRow.id)).all()
    resends = grouped(
        (row.instance_id, Resend(row.kind, row.sha256, row.path, row.calling_ae_title, row.received_at))
        for row in session.scalars(select(ResendRow).where(ResendRow.instance_id.in_(instances)).order_by(ResendRow.id))
    )
    return tuple(
        Image(
            sop_instance_uid=row.sop_instance_uid,
            sop_class_uid=row.sop_class_uid,
            study_instance_uid=row.study_instance_uid,
            series_instance_uid=row.series_instance_uid,
            transfer_syntax_uid=row.transfer_syntax_uid,
            modality=row.modality,
            sha256=row.sha256,
            size_bytes=row.size_bytes,
            path=row.path,
            calling_ae_title=row.calling_ae_title,
            received_at=row.received_at,
            view=row.view,
            body_part=row.body_part,
            evidence=tuple(row.evidence),
            notes=tuple(row.notes),
            resends=resends.get(row.id, ()),
            screenings=screened.get(row.id, ()),
        )
        for row in rows
    )


def _reports(session: Session, report_ids: Collection[int]) -> tuple[StudyReport, ...]:
    rows = _with_releases(session, ReportRow.id.in_(report_ids))
    studies = {row.study_instance_uid for row, _ in rows}
    replaced = _with_releases(
        session, ReportRow.study_instance_uid.in_(studies) & ReportRow.replaced_by.in_(report_ids)
    )
    later = _with_releases(session, ReportRow.id.in_([row.replaced_by for row, _ in rows if row.replaced_by]))
    objects = object_history.of_reports(session, {row.id for row, _ in (*rows, *replaced, *later)})
    sources = grouped(
        (report_id, ReportSource(sop_instance_uid, number))
        for report_id, sop_instance_uid, number in session.execute(
            select(ReportSourceRow.report_id, InstanceRow.sop_instance_uid, ScreeningRow.round)
            .join(ScreeningRow, ScreeningRow.id == ReportSourceRow.screening_id)
            .join(InstanceRow, InstanceRow.id == ScreeningRow.instance_id)
            .where(ReportSourceRow.report_id.in_(report_ids))
            .order_by(InstanceRow.sop_instance_uid)
        ).tuples()
    )
    names = {row.id: _name(row, release, objects.get(row.id, ())) for row, release in (*replaced, *later)}
    replaces = grouped((row.replaced_by or 0, names[row.id]) for row, _ in replaced)
    return tuple(
        StudyReport(
            study_instance_uid=row.study_instance_uid,
            bundle=release.bundle,
            release=release.release,
            purpose=row.purpose,
            version=row.version,
            issued_at=row.issued_at,
            sources=sources.get(row.id, ()),
            replaces=replaces.get(row.id, ()),
            replaced_by=names.get(row.replaced_by or 0),
            objects=objects.get(row.id, ()),
        )
        for row, release in rows
    )


def _with_releases(session: Session, condition: Any) -> Sequence[tuple[ReportRow, ReleaseRow]]:
    query = select(ReportRow, ReleaseRow).join(ReleaseRow, ReleaseRow.id == ReportRow.release_id)
    return session.execute(query.where(condition).order_by(ReportRow.id)).tuples().all()


def _name(row: ReportRow, release: ReleaseRow, objects: Iterable[Made]) -> ReportName:
    uids = tuple(one.sop_instance_uid for one in objects)
    return ReportName(release.bundle, release.release, row.purpose, row.version, row.issued_at, uids)


def _retractions(session: Session, made: Iterable[Made]) -> tuple[Retraction, ...]:
    numbers = {one.retraction for one in made if one.retraction is not None}
    notes = object_history.notes_of(session, numbers)
    rows = session.scalars(select(RetractionRow).where(RetractionRow.id.in_(numbers)).order_by(RetractionRow.id))
    return tuple(
        Retraction(
            number=row.id,
            study_instance_uid=row.study_instance_uid,
            reason=row.reason,
            comment=row.comment,
            asked_by=row.asked_by,
            at=row.at,
            notes=notes.get(row.id, ()),
        )
        for row in rows
    )
