"""One study of a run in the ledger: claimed, its instances expected, landed and answered for, ended.

States (`dicom_node.domain.StudyState`)::

    found <-> retrieving -> retrieved -> screened -> done
              retrieving, retrieved, screened -> failed -> found     retried alone

A claim is a lease on the database's clock; no study is fetched for two runs at a time. What is waited for is counted
instance by instance: no answer of a peer makes a study `retrieved`, only what the ledger has.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import exists, func, or_, select, update
from sqlalchemy.orm import aliased

from dicom_node.domain import LostLeaseError, Purpose, RunState, State, StudyState
from dicom_node.retrospective.arrivals import active_release, add_screening, screen_anew
from dicom_node.retrospective.tables import RunInstanceRow, RunRow, RunStudyRow
from dicom_node.tables import InstanceRow, ScreeningRow, db_now
from dicom_node.transitions import OWN

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from sqlalchemy.orm import Session

    from dicom_node.config import Retrospective
    from dicom_node.database import Database
    from dicom_node.retrospective.query import ExpectedInstance

_TO_BE_ASKED = (State.WAITING, State.CLAIMED)  # whatever release they name: the active one will be
_MINUTE = timedelta(minutes=1)
ALREADY_SCREENED = "already_screened"


@dataclass(frozen=True, slots=True)
class StudyClaim:
    """The right to fetch one study of a run, until the lease ends.

    Attributes
    ----------
    attempt
        Which one it is, from 1 on.
    """

    study_id: int
    run_id: int
    holder: str
    source: str
    modalities: tuple[str, ...]
    study_instance_uid: str
    attempt: int


class Studies:
    """Queries and transitions of the studies of runs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(self, holder: str, lease_s: float, settings: Retrospective, now: datetime) -> StudyClaim | None:
        """The next study of a run that is due, leased to `holder`; None where there is none, or a budget is used up."""
        with self._database.read() as session:
            if not _due_runs(session):
                return None
        with self._database.write(alone="retrieval") as session:
            self._expire(session)
            if self._is_budget_used(session, settings, now):
                return None
            for run in _due_runs(session):
                if (study := _next(session, run.id, now)) is None:
                    continue
                study.state, study.holder, study.method = StudyState.RETRIEVING, holder, None
                study.lease_expires_at, study.begun_at = db_now(lease_s), now
                study.attempts += 1
                return StudyClaim(
                    study_id=study.id,
                    run_id=run.id,
                    holder=holder,
                    source=run.source,
                    modalities=tuple(run.criteria["modalities"]),
                    study_instance_uid=study.study_instance_uid or "",
                    attempt=study.attempts,
                )
            return None

    def renew(self, claim: StudyClaim, lease_s: float) -> None:
        """The lease runs `lease_s` seconds from now.

        Raises
        ------
        LostLeaseError
            Where the study is another's by now.
        """
        with self._database.write() as session:
            _held(session, claim).lease_expires_at = db_now(lease_s)

    def recover(self) -> int:
        """What a dead process held is found again: only where the caller is the only one that fetches."""
        held = update(RunStudyRow).where(RunStudyRow.lease_expires_at.is_not(None))
        with self._database.write() as session:
            count: int = session.execute(held.values(**_FOUND)).rowcount  # type: ignore[attr-defined]
            return count

    def expect(self, claim: StudyClaim, told: Iterable[ExpectedInstance]) -> None:
        """These are the instances that the study holds, and no others: of what is gone, nothing is waited for."""
        with self._database.write() as session:
            _held(session, claim)
            known = {
                row.sop_instance_uid: row
                for row in session.scalars(select(RunInstanceRow).filter_by(study_id=claim.study_id))
            }
            wanted = {one.sop_instance_uid: one for one in told}
            for uid, row in known.items():
                if uid not in wanted and not row.landed:
                    session.delete(row)
            for uid in wanted.keys() - known.keys():
                session.add(
                    RunInstanceRow(
                        study_id=claim.study_id,
                        sop_instance_uid=uid,
                        series_instance_uid=wanted[uid].series_instance_uid,
                    )
                )

    def look(self, claim: StudyClaim) -> list[RunInstanceRow]:
        """The instances that are still to be fetched.

        What the ledger has already, or has an answer for, has landed.
        """
        with self._database.write() as session:
            _held(session, claim)
            run = session.get_one(RunRow, claim.run_id)
            release_id = active_release(session)
            rows = session.scalars(
                select(RunInstanceRow)
                .filter_by(study_id=claim.study_id, landed=False)
                .order_by(RunInstanceRow.sop_instance_uid)
            ).all()
            missing = []
            for row in rows:
                instance = session.scalar(select(InstanceRow).filter_by(sop_instance_uid=row.sop_instance_uid))
                if instance is not None:
                    row.landed = instance.path is not None or (
                        _answering(session, run, instance.id, release_id) is not None
                    )
                if not row.landed:
                    missing.append(row)
            session.flush()
            session.expunge_all()
            return missing

    def still_missing(self, claim: StudyClaim) -> list[str]:
        """The SOP Instance UIDs that have not landed."""
        with self._database.read() as session:
            query = select(RunInstanceRow.sop_instance_uid).filter_by(study_id=claim.study_id, landed=False)
            return list(session.scalars(query.order_by(RunInstanceRow.sop_instance_uid)))

    def on_way(self, claim: StudyClaim, way: str) -> None:
        """The study is fetched in this way from now on: the listener knows by it what it may expect."""
        with self._database.write() as session:
            _held(session, claim).method = way

    def retrieved(self, claim: StudyClaim, seconds: float) -> None:
        """Everything has landed: each instance has a screening that answers, or will, for the run.

        Where one was purged meanwhile, for another run had done with it, the study is found again.
        """
        with self._database.write() as session:
            study = _held(session, claim)
            new = self._arrange(session, study)
            if session.scalar(select(RunInstanceRow.study_id).filter_by(study_id=study.id, landed=False).limit(1)):
                study.state, study.attempts = StudyState.FOUND, study.attempts - 1
                _release(study)
                return
            study.state, study.reason, study.detail = StudyState.RETRIEVED, None, None
            if not new and study.method is None:
                study.reason = ALREADY_SCREENED
            study.retrieve_s = seconds
            _release(study)

    def not_retrieved(
        self, claim: StudyClaim, reason: str, told: str, *, now: datetime, pause_s: float, attempts: int
    ) -> None:
        """The study is found again, after a pause that doubles, or after so many attempts `failed`.

        What has landed of it is screened.
        """
        with self._database.write() as session:
            study = _held(session, claim)
            study.detail = told[:400]
            if study.attempts >= attempts:
                self._arrange(session, study)
                study.state, study.reason, study.ended_at = StudyState.FAILED, reason[:64], now
            else:
                study.state = StudyState.FOUND
                study.not_before = now + timedelta(seconds=pause_s * 2.0 ** (study.attempts - 1))
            _release(study)

    def give_back(self, claim: StudyClaim, told: str | None = None) -> None:
        """The study is found again, uncounted: the fault was not its own. Nothing where it is another's by now."""
        with self._database.write() as session:
            try:
                study = _held(session, claim)
            except LostLeaseError:
                return
            study.state, study.attempts = StudyState.FOUND, study.attempts - 1
            study.detail = told[:400] if told else study.detail
            _release(study)

    @staticmethod
    def _expire(session: Session) -> None:
        """What a dead process held is found again; it does not count, for nobody knows whose fault that was."""
        session.execute(update(RunStudyRow).where(RunStudyRow.lease_expires_at < db_now()).values(**_FOUND))

    @staticmethod
    def _is_budget_used(session: Session, settings: Retrospective, now: datetime) -> bool:
        fetching = select(func.count(RunStudyRow.id)).where(RunStudyRow.lease_expires_at.is_not(None))
        begun = select(func.count(RunStudyRow.id)).where(
            RunStudyRow.begun_at > now - _MINUTE, RunStudyRow.begun_at <= now
        )
        return (session.scalar(fetching) or 0) >= settings.retrievals or (
            (session.scalar(begun) or 0) >= settings.studies_per_minute
        )

    @staticmethod
    def _arrange(session: Session, study: RunStudyRow) -> int:
        """What has landed has a screening that answers for the run; returns how many wait for a worker by it."""
        run, release_id = session.get_one(RunRow, study.run_id), active_release(session)
        landed = session.execute(
            select(RunInstanceRow, InstanceRow)
            .join(InstanceRow, InstanceRow.sop_instance_uid == RunInstanceRow.sop_instance_uid)
            .where(RunInstanceRow.study_id == study.id, RunInstanceRow.landed)
            .order_by(InstanceRow.id)
        ).tuples()
        new = held = 0
        for row, instance in landed.all():
            if row.screening_id is None:
                row.screening_id = _answering(session, run, instance.id, release_id)
            if row.screening_id is None and release_id is not None and instance.path is not None:
                row.screening_id = _screen(session, run, instance.id, release_id)
                new += 1
            row.landed = row.screening_id is not None
            if instance.path is not None and _own(session, instance.id).purpose == Purpose.RETROSPECTIVE:
                held += instance.size_bytes
        study.landed, study.held_bytes = _landed(session, study.id), held
        return new


_FOUND = {"state": StudyState.FOUND, "holder": None, "lease_expires_at": None}


def _due_runs(session: Session) -> Sequence[RunRow]:
    """Those that may fetch now, as the sweep has decided, the oldest first."""
    query = select(RunRow).where(RunRow.state == RunState.RUNNING, RunRow.rests_because.is_(None))
    return session.scalars(query.order_by(RunRow.id)).all()


def _next(session: Session, run_id: int, now: datetime) -> RunStudyRow | None:
    """The first study of the run that is found and that nobody fetches, for this run or another."""
    other = aliased(RunStudyRow)
    elsewhere = exists().where(
        other.study_instance_uid == RunStudyRow.study_instance_uid, other.state == StudyState.RETRIEVING
    )
    return session.scalars(
        select(RunStudyRow)
        .where(
            RunStudyRow.run_id == run_id,
            RunStudyRow.state == StudyState.FOUND,
            or_(RunStudyRow.not_before.is_(None), RunStudyRow.not_before <= now),
            ~elsewhere,
        )
        .order_by(RunStudyRow.id)
        .limit(1)
        .with_for_update(of=RunStudyRow)
    ).first()


def _held(session: Session, claim: StudyClaim) -> RunStudyRow:
    study = session.scalar(
        select(RunStudyRow)
        .filter_by(id=claim.study_id, holder=claim.holder, attempts=claim.attempt, state=StudyState.RETRIEVING)
        .with_for_update()
    )
    if study is None:
        raise LostLeaseError(f"study {claim.study_id} of run {claim.run_id}: the lease was lost")
    return study


def _release(study: RunStudyRow) -> None:
    study.holder = study.lease_expires_at = None


def _landed(session: Session, study_id: int) -> int:
    query = select(func.count()).select_from(RunInstanceRow).filter_by(study_id=study_id, landed=True)
    return session.scalar(query) or 0


def _own(session: Session, instance_id: int) -> ScreeningRow:
    """The instance's own screening, by which it is counted."""
    return session.scalars(
        select(ScreeningRow).where(
            ScreeningRow.instance_id == instance_id,
            ScreeningRow.purpose.in_(OWN),
            ScreeningRow.replaced_by.is_(None),
        )
    ).one()


def _answering(session: Session, run: RunRow, instance_id: int, release_id: int | None) -> int | None:
    """The screening that answers for the instance without a further one; None where it is to be screened.

    One by the active release does, and one that it will be asked for; so does what the header ruled out. A run that
    delivers asks for one that does; a run that screens `again` asks for its own.
    """
    own = _own(session, instance_id)
    if own.state == State.DECLINED and own.attempt == 0:
        return own.id
    if run.again:
        return None
    known = (
        select(ScreeningRow)
        .where(
            ScreeningRow.instance_id == instance_id,
            ScreeningRow.replaced_by.is_(None),
            or_(ScreeningRow.release_id == release_id, ScreeningRow.state.in_(_TO_BE_ASKED)),
            ScreeningRow.state != State.FAILED,
        )
        .order_by(ScreeningRow.id.desc())
    )
    for screening in session.scalars(known):
        if screening.delivers or not run.deliver or screening.state == State.DECLINED:
            return screening.id
    return None


def _screen(session: Session, run: RunRow, instance_id: int, release_id: int) -> int:
    """The instance waits for the run; what is live or was delivered is left as it is by a run that does not deliver."""
    own = _own(session, instance_id)
    if own.delivers and not run.deliver:
        return add_screening(session, instance_id, release_id, purpose=Purpose.SHADOW, delivers=False).id
    if own.state in _TO_BE_ASKED:
        own.delivers = own.delivers or run.deliver
        return own.id
    return screen_anew(session, own, release_id, purpose=Purpose.RETROSPECTIVE, delivers=run.deliver).id
