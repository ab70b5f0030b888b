"""Studies that were retrieved come to their end: screened, delivered where they are to be, their files purged."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pydicom import dcmread
from sqlalchemy import delete, exists, or_, select

from dicom_node.domain import ObjectKind, Purpose, State, StudyState
from dicom_node.retrospective.tables import RunInstanceRow, RunStudyRow
from dicom_node.tables import InstanceRow, ObjectRow, OutcomeRow, ScreeningRow
from dicom_node.transitions import OWN

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session

    from dicom_node.archive import Archive
    from dicom_node.database import Database

log = logging.getLogger(__name__)

_UNANSWERED = (State.WAITING, State.CLAIMED, State.PREDICTED)
_UNENDED = (*_UNANSWERED, State.REPORTED)
_BATCH = 50


class Settling:
    """What follows a worker's answer, and an image's delivery."""

    def __init__(self, database: Database, archive: Archive, *, purge: bool) -> None:
        self._database = database
        self._archive = archive
        self._purge = purge

    def settle(self, now: datetime) -> int:
        """The studies that can be are brought a step further; returns how many were."""
        steps = 0
        for state, unended in (StudyState.RETRIEVED, _UNANSWERED), (StudyState.SCREENED, _UNENDED):
            for key in self._ready(unended, RunStudyRow.state == state):
                steps += self._step(key, state, now)
        if self._purge:
            # Of those that failed, what had landed.
            for key in self._ready(_UNENDED, RunStudyRow.state == StudyState.FAILED, RunStudyRow.held_bytes > 0):
                self._empty(key)
                steps += 1
        return steps

    def _ready(self, unended: Sequence[State], *which: ColumnElement[bool]) -> Sequence[int]:
        """Those of these studies of whose images none is in one of these states."""
        open_one = exists().where(
            RunInstanceRow.study_id == RunStudyRow.id,
            ScreeningRow.id == RunInstanceRow.screening_id,
            ScreeningRow.state.in_(unended),
        )
        with self._database.read() as session:
            query = select(RunStudyRow.id).where(*which, ~open_one).order_by(RunStudyRow.id).limit(_BATCH)
            return session.scalars(query).all()

    def _step(self, study_id: int, state: StudyState, now: datetime) -> int:
        if state is StudyState.SCREENED and self._purge:
            self._empty(study_id)
        with self._database.write() as session:
            study = session.get_one(RunStudyRow, study_id, with_for_update=True)
            if study.state != state:
                return 0
            if state is StudyState.RETRIEVED:
                study.state, study.flagged = StudyState.SCREENED, _is_flagged(session, study_id)
                return 1
            failed = _failed(session, study_id)
            study.state, study.ended_at = StudyState.DONE, now
            if failed:
                study.state = StudyState.FAILED
                study.reason = failed[0].reason
                study.detail = f"{len(failed)} of {study.landed} images failed: {failed[0].detail or ''}"[:400]
            return 1

    def _empty(self, study_id: int) -> None:
        """Of what the study's runs alone hold, and have screened, only results are left in the archive."""
        with self._database.read() as session:
            query = (
                select(InstanceRow.id)
                .join(RunInstanceRow, RunInstanceRow.sop_instance_uid == InstanceRow.sop_instance_uid)
                .where(RunInstanceRow.study_id == study_id, InstanceRow.path.is_not(None))
            )
            keys = session.scalars(query).all()
        for key in keys:
            self._purge_instance(key)
        with self._database.write() as session:
            session.get_one(RunStudyRow, study_id, with_for_update=True).held_bytes = 0

    def _purge_instance(self, instance_id: int) -> None:
        """Its file is gone, where nobody needs it any more.

        The row is locked until then: whoever records the instance meanwhile stores its bytes once more
        (`dicom_node.intake`).
        """
        with self._database.write() as session:
            instance = session.get_one(InstanceRow, instance_id, with_for_update=True)
            screenings = session.scalars(select(ScreeningRow).filter_by(instance_id=instance_id)).all()
            own = [one for one in screenings if one.purpose in OWN and one.replaced_by is None]
            if instance.path is None or any(one.state in _UNENDED for one in screenings):
                return
            if any(one.purpose != Purpose.RETROSPECTIVE for one in own):
                return
            file = self._archive.locate(instance.path)
            if own and own[0].delivers and file.exists():  # a later image's report will tell of this one too
                instance.header_path = self._archive.store(_header(file)).path
            file.unlink(missing_ok=True)
            instance.path = None
            for screening in screenings:
                if not screening.delivers and not _has_flag(session, [screening.id]):
                    self._drop_maps(session, screening.id)

    def _drop_maps(self, session: Session, screening_id: int) -> None:
        maps = select(ObjectRow.path).filter_by(screening_id=screening_id, kind=ObjectKind.MAP).distinct()
        for path in session.scalars(maps).all():
            self._archive.locate(path).unlink(missing_ok=True)
        session.execute(delete(ObjectRow).filter_by(screening_id=screening_id, kind=ObjectKind.MAP))


def _header(file: Path) -> bytes:
    """The file up to its pixels."""
    with file.open("rb") as stream:
        dcmread(stream, stop_before_pixels=True, force=True)
        end = stream.tell()
        stream.seek(0)
        return stream.read(end)


def _screenings(study_id: int) -> ColumnElement[bool]:
    return ScreeningRow.id.in_(select(RunInstanceRow.screening_id).filter_by(study_id=study_id))


def _failed(session: Session, study_id: int) -> Sequence[ScreeningRow]:
    query = select(ScreeningRow).where(_screenings(study_id), ScreeningRow.state == State.FAILED)
    return session.scalars(query.order_by(ScreeningRow.id)).all()


def _is_flagged(session: Session, study_id: int) -> bool:
    return _has_flag(session, session.scalars(select(ScreeningRow.id).where(_screenings(study_id))).all())


def _has_flag(session: Session, screening_ids: Sequence[int]) -> bool:
    flagged = select(OutcomeRow.screening_id).where(
        OutcomeRow.screening_id.in_(screening_ids), or_(OutcomeRow.flagged, OutcomeRow.decision == "flagged")
    )
    return session.scalar(flagged.limit(1)) is not None
