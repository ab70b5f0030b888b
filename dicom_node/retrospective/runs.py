"""Runs in the ledger: begun, paused, due or not, ended; one study's part is in `studies`.

States of a run (`dicom_node.domain.RunState`)::

    plan -> planning -> planned -> running <-> paused
                                   running -> ended      no study is left to be fetched or screened
                                   ended, paused -> running   resumed, with those that failed or without
"""

from __future__ import annotations

from datetime import date, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import func, select, update

from dicom_node.domain import NodeError, Purpose, RunState, State, StudyState
from dicom_node.retrospective.cohort import Criteria
from dicom_node.retrospective.tables import RunInstanceRow, RunRow, RunStudyRow
from dicom_node.retrospective.window import Standing, days_due, night, why_it_rests
from dicom_node.tables import ScreeningRow

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.orm import Session

    from dicom_node.config import Retrospective, Settings
    from dicom_node.database import Database

_UNDER_WAY = (StudyState.FOUND, StudyState.RETRIEVING, StudyState.RETRIEVED, StudyState.SCREENED)
_UNSCREENED = (State.WAITING, State.CLAIMED, State.PREDICTED)
_BESIDE_LIVE = (Purpose.SHADOW, Purpose.RETROSPECTIVE)
_DAY_FORMAT = "%Y%m%d"
_MOST_DOUBLINGS = 16


class RunError(NodeError):
    """There is no such run, or it is not in a state for what was asked."""

    reason = "run"


class Runs:
    """Queries and transitions of runs as a whole. Times are given: those of a run are the site's, not a lease's."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, name: str, now: datetime, *, deliver: bool | None = None) -> None:
        """The run is fetched and screened whenever it is due.

        `deliver`, where given, says anew whether its results go to the destinations.

        Raises
        ------
        RunError
            Where it is not there, or its plan is not done.
        """
        with self._database.write() as session:
            run = find_run(session, name, lock=True)
            if run.state == RunState.PLANNING:
                raise RunError(f"the plan of run {name} is not done: give its `retrospective plan` once more")
            if deliver is not None:
                run.deliver = deliver
            run.state, run.ended_at = RunState.RUNNING, None
            run.begun_at = run.begun_at or now
            run.rests_until, run.faults, run.fault = None, 0, None

    def pause(self, name: str) -> None:
        """Nothing further is fetched; what was fetched is screened.

        Raises
        ------
        RunError
            Where it does not run.
        """
        with self._database.write() as session:
            run = find_run(session, name, lock=True)
            if run.state != RunState.RUNNING:
                raise RunError(f"run {name} is {run.state}: only a running one can be paused")
            run.state, run.rests_because = RunState.PAUSED, None

    def retry(self, name: str, study_instance_uid: str | None = None) -> int:
        """The run's studies that failed are found once more, or that one; returns how many.

        Raises
        ------
        RunError
            Where there is no such run, or no such study that failed in it.
        """
        with self._database.write() as session:
            run = find_run(session, name, lock=True)
            failed = [RunStudyRow.run_id == run.id, RunStudyRow.state == StudyState.FAILED]
            if study_instance_uid is None:
                failed.append(RunStudyRow.study_instance_uid.is_not(None))
            else:
                failed.append(RunStudyRow.study_instance_uid == study_instance_uid)
            keys = select(RunStudyRow.id).where(*failed)
            # What failed in a worker is looked at anew; what was screened stays.
            session.execute(
                update(RunInstanceRow)
                .where(
                    RunInstanceRow.study_id.in_(keys),
                    RunInstanceRow.screening_id.in_(select(ScreeningRow.id).filter_by(state=State.FAILED)),
                )
                .values(landed=False, screening_id=None)
                .execution_options(synchronize_session=False)
            )
            again = {"state": StudyState.FOUND, "reason": None, "detail": None, "attempts": 0, "not_before": None}
            anew = update(RunStudyRow).where(*failed).values(**again, ended_at=None)
            count: int = session.execute(anew).rowcount  # type: ignore[attr-defined]
            if study_instance_uid is not None and not count:
                raise RunError(f"no study {study_instance_uid} has failed in run {name}")
            return count

    def decide(self, settings: Settings, now: datetime) -> None:
        """Of each running run it is known whether it is due; the nights' own runs are there; what is done has ended.

        To be called by the sweep.
        """
        with self._database.write(alone="runs") as session:
            self._begin_nightly(session, settings, now)
            running = session.scalars(select(RunRow).filter_by(state=RunState.RUNNING).order_by(RunRow.id)).all()
            if not running:
                return
            held, waiting = held_bytes(session), _waiting_images(session)
            sources = {peer.name for peer in settings.sources}
            for run in running:
                standing = Standing(run.rests_until, run.fault, held, waiting)
                why = why_it_rests(now, settings.retrospective, standing)
                if run.source not in sources:
                    why = f"no peer {run.source} with a way to retrieve stands in the settings"
                if run.rests_because != why:
                    run.rests_because = why
                if not _is_under_way(session, run.id):
                    run.state, run.ended_at, run.rests_because = RunState.ENDED, now, None

    def fault(self, run_id: int, told: str, settings: Retrospective, now: datetime) -> None:
        """The peer failed, or is slow: nothing is fetched for this run for a while, the longer the more often."""
        with self._database.write() as session:
            run = session.get_one(RunRow, run_id)
            pause_s = min(settings.pause_max_s, settings.pause_s * 2.0 ** min(run.faults, _MOST_DOUBLINGS))
            run.faults, run.fault = run.faults + 1, told[:300]
            run.rests_until = now + timedelta(seconds=pause_s)
            standing = Standing(run.rests_until, run.fault, 0, 0)
            run.rests_because = why_it_rests(now, settings, standing)

    def served(self, run_id: int) -> None:
        """The peer has served a study: its next fault is a first one."""
        with self._database.write() as session:
            session.execute(update(RunRow).where(RunRow.id == run_id, RunRow.faults > 0).values(faults=0, fault=None))

    def to_plan(self) -> Sequence[RunRow]:
        """The nights' own runs that have not begun, the oldest first."""
        with self._database.read() as session:
            query = select(RunRow).where(
                RunRow.state.in_((RunState.PLANNING, RunState.PLANNED)), RunRow.nightly_for.is_not(None)
            )
            found = session.scalars(query.order_by(RunRow.id)).all()
            session.expunge_all()
            return found

    @staticmethod
    def _begin_nightly(session: Session, settings: Settings, now: datetime) -> None:
        """There is a run for each day that this night takes."""
        retrospective = settings.retrospective
        opened = night(now, retrospective) if retrospective.nightly else None
        source = nightly_source(settings)
        if opened is None or source is None:
            return
        latest = session.scalar(select(func.max(RunRow.nightly_for)))
        last = date.fromisoformat(latest) if latest else None
        for day in days_due(opened, last, retrospective):
            text = day.strftime(_DAY_FORMAT)
            session.add(
                RunRow(
                    name=f"nightly-{text}",
                    source=source,
                    criteria=Criteria(first_day=day, last_day=day).as_json(),
                    state=RunState.PLANNING,
                    deliver=retrospective.nightly_deliver,
                    nightly_for=text,
                    created_at=now,
                )
            )
            session.flush()


def nightly_source(settings: Settings) -> str | None:
    """The peer whose studies nightly runs take; None where the settings leave it open."""
    names = [peer.name for peer in settings.sources]
    if settings.retrospective.nightly_source:
        return settings.retrospective.nightly_source
    return names[0] if len(names) == 1 else None


def held_bytes(session: Session) -> int:
    """Fetched images in the archive that are to be purged, of all runs."""
    held = session.scalar(select(func.sum(RunStudyRow.held_bytes)).where(RunStudyRow.held_bytes > 0))
    return int(held or 0)  # PostgreSQL adds up numbers of eight bytes as decimals


def _waiting_images(session: Session) -> int:
    query = select(func.count(ScreeningRow.id)).where(
        ScreeningRow.state.in_(_UNSCREENED), ScreeningRow.purpose.in_(_BESIDE_LIVE)
    )
    return session.scalar(query) or 0


def _is_under_way(session: Session, run_id: int) -> bool:
    for state in _UNDER_WAY:
        query = select(RunStudyRow.id).filter_by(run_id=run_id, state=state).limit(1)
        if session.scalar(query) is not None:
            return True
    return False


def find_run(session: Session, name: str, *, lock: bool = False) -> RunRow:
    """The run of that name, in the caller's transaction.

    Raises
    ------
    RunError
        Where there is none.
    """
    query = select(RunRow).filter_by(name=name)
    if (run := session.scalar(query.with_for_update() if lock else query)) is None:
        known = session.scalars(select(RunRow.name).order_by(RunRow.id.desc()).limit(5)).all()
        others = f"; the latest are {', '.join(known)}" if known else "; none was planned yet"
        raise RunError(f"there is no run {name}{others}")
    return run
