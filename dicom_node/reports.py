"""Reports of studies in the ledger: which are due, what they are made of, and what they replace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import exists, func, or_, select, update
from sqlalchemy.orm import aliased

from dicom_node import predictions
from dicom_node.bundle import parse_manifest
from dicom_node.domain import DeliveryState, LostLeaseError, ObjectKind, Purpose, State
from dicom_node.outbox import REJECTED, changes, enqueue, settle_screening
from dicom_node.tables import (
    DeliveryRow,
    InstanceRow,
    ObjectRow,
    ReleaseRow,
    ReportRow,
    ReportSourceRow,
    ScreeningRow,
    db_now,
)
from dicom_node.transitions import change_state

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session

    from dicom_node.archive import Product
    from dicom_node.database import Database
    from dicom_node.domain import NodeError
    from dicom_node.predictions import StoredPrediction

_UNDER_WAY = (State.WAITING, State.CLAIMED, State.PREDICTED)
# Of all that delivers: a study's report tells of its images alike, came they live or were they fetched.
_PURPOSE = Purpose.LIVE
_TOLD = (State.REPORTED, State.DELIVERED, State.WITHHELD)


@dataclass(frozen=True, slots=True)
class DueStudy:
    """A study of which a report is to be made."""

    study_instance_uid: str
    release_id: int


@dataclass(frozen=True, slots=True)
class Source:
    """A screening of which a report tells.

    Attributes
    ----------
    path
        Of the screened image in the archive, or of its header where its pixels were purged.
    report_id
        The newest report that tells of it; None where none does yet.
    """

    screening_id: int
    instance_id: int
    path: str
    sop_instance_uid: str
    calling_ae_title: str
    heatmap_sop_class_uid: str
    heatmap_sop_instance_uid: str
    stored: StoredPrediction
    report_id: int | None

    @property
    def flagged(self) -> bool:
        """Whether any question was."""
        return any(result.flagged for result in self.stored.prediction.targets)


@dataclass(frozen=True, slots=True)
class Predecessor:
    """A report that another one replaces: the SOP Instance UIDs of its objects by SOP Class, the first made first."""

    report_id: int
    objects: Mapping[str, str]
    destinations: tuple[str, ...]

    def object_in(self, sop_class_uid: str) -> tuple[str, str]:
        """SOP Class and Instance UID of the object that one of this class replaces."""
        if sop_class_uid in self.objects:
            return sop_class_uid, self.objects[sop_class_uid]
        return next(iter(self.objects.items()))


@dataclass(frozen=True, slots=True)
class Form:
    """A report as an object of one SOP Class."""

    sop_class_uid: str
    sop_instance_uid: str
    path: str


@dataclass(frozen=True, slots=True)
class Draft:
    """Everything that a report is made of."""

    due: DueStudy
    manifest_json: str
    sources: tuple[Source, ...]
    predecessors: tuple[Predecessor, ...]

    @property
    def untold(self) -> tuple[Source, ...]:
        """Those of which no report tells yet."""
        return tuple(source for source in self.sources if source.report_id is None)


class Reports:
    """Queries and transitions of the studies' reports."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def due(self, quiet_s: float, limit: int) -> list[DueStudy]:
        """Studies with an image of which no report tells, in which nothing new has come for `quiet_s` seconds.

        Unless that is 0, what is being screened, or waits for it and has not failed yet, is waited for.
        """
        other = aliased(InstanceRow)
        sibling = aliased(ScreeningRow)
        conditions = [
            ScreeningRow.state == State.REPORTED,
            ScreeningRow.report_id.is_(None),
            ScreeningRow.replaced_by.is_(None),
            or_(*_not_put_off()),
        ]
        if quiet_s > 0:
            same = other.study_instance_uid == InstanceRow.study_instance_uid
            conditions += [
                # What came "later than now" came before the clock was set back: it keeps nobody waiting.
                ~exists().where(same, other.received_at > db_now(-quiet_s), other.received_at <= db_now()),
                ~exists().where(
                    same,
                    sibling.instance_id == other.id,
                    sibling.delivers,
                    sibling.state.in_(_UNDER_WAY),
                    sibling.failures == 0,
                    sibling.not_before.is_(None),
                ),
            ]
        query = (
            select(InstanceRow.study_instance_uid, ScreeningRow.release_id)
            .join(InstanceRow, InstanceRow.id == ScreeningRow.instance_id)
            .where(*conditions)
            .group_by(InstanceRow.study_instance_uid, ScreeningRow.release_id)
            .order_by(func.min(ScreeningRow.id))
            .limit(limit)
        )
        with self._database.read() as session:
            return [DueStudy(*row) for row in session.execute(query).tuples()]

    def draft(self, due: DueStudy) -> Draft:
        """What the study's next report is made of: every image that was screened, not withdrawn and not put off."""
        rejected = (ScreeningRow.state == State.FAILED) & (ScreeningRow.reason == REJECTED)
        told = (
            _sources()
            .where(
                InstanceRow.study_instance_uid == due.study_instance_uid,
                ScreeningRow.release_id == due.release_id,
                ScreeningRow.delivers,
                ScreeningRow.replaced_by.is_(None),
                or_(ScreeningRow.state.in_(_TOLD), rejected),
                or_(ScreeningRow.report_id.is_not(None), *_not_put_off()),
                ObjectRow.retraction_id.is_(None),
            )
            .order_by(InstanceRow.sop_instance_uid)
        )
        with self._database.read() as session:
            manifest_json = session.scalars(select(ReleaseRow.manifest).filter_by(id=due.release_id)).one()
            sources = _load(session, told, manifest_json)
            instances = {source.instance_id for source in sources}
            replaced = [
                row.id
                for row in session.scalars(
                    select(ReportRow)
                    .filter_by(study_instance_uid=due.study_instance_uid, purpose=_PURPOSE, replaced_by=None)
                    .order_by(ReportRow.id)
                )
                if _instances(session, row.id) <= instances
            ]
            return Draft(due, manifest_json, sources, _predecessors(session, replaced))

    def draft_of(self, report_id: int) -> Draft:
        """What a report that was issued is made of."""
        with self._database.read() as session:
            report = session.get_one(ReportRow, report_id)
            manifest_json = session.scalars(select(ReleaseRow.manifest).filter_by(id=report.release_id)).one()
            told = (
                _sources()
                .join(ReportSourceRow, ReportSourceRow.screening_id == ScreeningRow.id)
                .where(ReportSourceRow.report_id == report_id)
                .order_by(InstanceRow.sop_instance_uid)
            )
            replaced = session.scalars(select(ReportRow.id).filter_by(replaced_by=report_id).order_by(ReportRow.id))
            return Draft(
                DueStudy(report.study_instance_uid, report.release_id),
                manifest_json,
                _load(session, told, manifest_json),
                _predecessors(session, replaced.all()),
            )

    def issue(self, draft: Draft, made: Product, destinations: Sequence[str]) -> int | None:
        """The report is in the ledger, due at the destinations and wherever those are that it replaces; its id.

        None where another process was faster, or the study has changed since the draft was made: nothing was written.
        """
        due = draft.due
        with self._database.write(alone="outbox") as session:  # nothing is taken back meanwhile
            # Before anything refers to them: to refer is to lock, and others lock them in this order.
            screenings = session.scalars(
                select(ScreeningRow)
                .where(ScreeningRow.id.in_([source.screening_id for source in draft.sources]))
                .order_by(ScreeningRow.id)
                .with_for_update()
            ).all()
            if not self._is_as_drafted(session, draft):
                return None
            version = select(func.max(ReportRow.version)).filter_by(
                study_instance_uid=due.study_instance_uid, release_id=due.release_id, purpose=_PURPOSE
            )
            report = ReportRow(
                study_instance_uid=due.study_instance_uid,
                release_id=due.release_id,
                purpose=_PURPOSE,
                version=(session.scalar(version) or 0) + 1,
                issued_at=db_now(),
            )
            session.add(report)
            session.flush()
            for source in draft.sources:
                session.add(ReportSourceRow(report_id=report.id, screening_id=source.screening_id))
            wanted = dict.fromkeys(destinations)
            for predecessor in draft.predecessors:
                wanted |= dict.fromkeys(predecessor.destinations)
            enqueue(session, made, list(wanted), report_id=report.id)
            session.execute(
                update(ReportRow)
                .where(ReportRow.id.in_([predecessor.report_id for predecessor in draft.predecessors]))
                .values(replaced_by=report.id)
            )
            for screening in screenings:
                screening.report_id = report.id
            session.flush()
            for screening in screenings:
                settle_screening(session, screening)
            return report.id

    def turn(self, delivery_id: int, report_id: int, sop_class_uid: str) -> Form | None:
        """The delivery is of the report's object of that SOP Class from now on; None where it has none yet.

        Raises
        ------
        LostLeaseError
            Where the object is not to be sent any more.
        """
        with self._database.write(alone="outbox") as session:
            known = _form(session, report_id, sop_class_uid)
            return None if known is None else _turned(session, delivery_id, known)

    def add_form(self, report_id: int, made: Product, delivery_id: int) -> Form:
        """The report has one object of that SOP Class, the first that was made, and the delivery is of it from now on.

        Raises
        ------
        LostLeaseError
            Where the object is not to be sent any more; nothing was written.
        """
        with self._database.write(alone="outbox") as session:
            row = _form(session, report_id, made.sop_class_uid) or enqueue(session, made, (), report_id=report_id)
            return _turned(session, delivery_id, row)

    def fail(self, screening_id: int, error: NodeError) -> None:
        """No report can tell of this screening: it is `failed`, where it still was to be told of."""
        with self._database.write() as session:
            self._fail(session, _untold(session, screening_id), error)

    def give_up(self, due: DueStudy, error: NodeError) -> None:
        """No report can tell of those images of the study of which none tells yet: they are `failed`."""
        untold = (
            select(ScreeningRow.id)
            .join(InstanceRow, InstanceRow.id == ScreeningRow.instance_id)
            .where(
                InstanceRow.study_instance_uid == due.study_instance_uid,
                ScreeningRow.release_id == due.release_id,
                ScreeningRow.delivers,
                ScreeningRow.state == State.REPORTED,
                ScreeningRow.report_id.is_(None),
            )
            .order_by(ScreeningRow.id)
        )
        with self._database.read() as session:
            keys = session.scalars(untold).all()
        for key in keys:
            self.fail(key, error)

    def put_off(self, screening_id: int, error: NodeError, *, pause_s: float, counted: bool, max_failures: int) -> None:
        """Its report is made after a pause; where the fault counts, it is `failed` after `max_failures` of them."""
        with self._database.write() as session:
            screening = _untold(session, screening_id)
            if screening is None:
                return
            screening.failures += counted
            if counted and screening.failures >= max_failures:
                self._fail(session, screening, error)
                return
            screening.not_before = db_now(pause_s)
            screening.detail = str(error)[:400]

    @staticmethod
    def _fail(session: Session, screening: ScreeningRow | None, error: NodeError) -> None:
        if screening is not None:
            session.flush()
            told = {"reason": error.reason[:64], "detail": str(error)[:400]}
            change_state(session, screening.id, screening.attempt, State.REPORTED, State.FAILED, **told)

    @staticmethod
    def _is_as_drafted(session: Session, draft: Draft) -> bool:
        """Whether no other report was issued meanwhile, and nothing was withdrawn."""
        for source in draft.sources:
            row = session.execute(
                select(ScreeningRow.report_id, ObjectRow.retraction_id)
                .join(ObjectRow, ObjectRow.screening_id == ScreeningRow.id)
                .where(ScreeningRow.id == source.screening_id, ObjectRow.kind == ObjectKind.HEATMAP)
            ).one_or_none()
            if row is None or tuple(row) != (source.report_id, None):
                return False
        replaced = [predecessor.report_id for predecessor in draft.predecessors]
        current = select(func.count(ReportRow.id)).where(ReportRow.id.in_(replaced), ReportRow.replaced_by.is_(None))
        return session.scalar(current) == len(replaced)


def _sources() -> Any:
    return (
        select(ScreeningRow, InstanceRow, ObjectRow)
        .join(InstanceRow, InstanceRow.id == ScreeningRow.instance_id)
        .join(ObjectRow, ObjectRow.screening_id == ScreeningRow.id)
        .where(ObjectRow.kind == ObjectKind.HEATMAP)
    )


def _load(session: Session, query: Any, manifest_json: str) -> tuple[Source, ...]:
    manifest = parse_manifest(manifest_json)
    return tuple(
        Source(
            screening_id=screening.id,
            instance_id=instance.id,
            path=instance.path or instance.header_path or "",
            sop_instance_uid=instance.sop_instance_uid,
            calling_ae_title=instance.calling_ae_title,
            heatmap_sop_class_uid=heatmap.sop_class_uid or "",
            heatmap_sop_instance_uid=heatmap.sop_instance_uid or "",
            stored=predictions.load(session, screening.id, manifest),
            report_id=screening.report_id,
        )
        for screening, instance, heatmap in session.execute(query).tuples().all()
    )


def _not_put_off() -> tuple[ColumnElement[bool], ...]:
    return ScreeningRow.not_before.is_(None), ScreeningRow.not_before <= db_now()


def _form(session: Session, report_id: int, sop_class_uid: str) -> ObjectRow | None:
    """The report's object of that SOP Class.

    Made again, after an upgrade or with other settings, it would be another one under another UID.
    """
    return session.scalars(select(ObjectRow).filter_by(report_id=report_id, name=sop_class_uid)).one_or_none()


def _turned(session: Session, delivery_id: int, row: ObjectRow) -> Form:
    waiting = update(DeliveryRow).where(DeliveryRow.id == delivery_id, DeliveryRow.state == DeliveryState.PENDING)
    if not changes(session, waiting.values(object_id=row.id)):
        raise LostLeaseError(f"delivery {delivery_id} is not to be made any more")
    return Form(row.sop_class_uid or "", row.sop_instance_uid or "", row.path)


def _untold(session: Session, screening_id: int) -> ScreeningRow | None:
    """The screening, locked, where a report is still to tell of it."""
    return session.scalars(
        select(ScreeningRow).filter_by(id=screening_id, state=State.REPORTED, report_id=None).with_for_update()
    ).one_or_none()


def _instances(session: Session, report_id: int) -> set[int]:
    told = select(ScreeningRow.instance_id).join(ReportSourceRow, ReportSourceRow.screening_id == ScreeningRow.id)
    return set(session.scalars(told.where(ReportSourceRow.report_id == report_id)))


def _predecessors(session: Session, report_ids: Sequence[int]) -> tuple[Predecessor, ...]:
    """Those of which an object was made that was not withdrawn."""
    found = []
    for report_id in report_ids:
        objects = session.scalars(
            select(ObjectRow).filter_by(report_id=report_id, retraction_id=None).order_by(ObjectRow.id)
        ).all()
        if not objects:
            continue
        destinations = session.scalars(
            select(DeliveryRow.destination)
            .where(DeliveryRow.object_id.in_([row.id for row in objects]))
            .order_by(DeliveryRow.id)
        )
        found.append(
            Predecessor(
                report_id,
                {row.sop_class_uid or "": row.sop_instance_uid or "" for row in objects},
                tuple(dict.fromkeys(destinations)),
            )
        )
    return tuple(found)
