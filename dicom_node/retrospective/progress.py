"""How far a run has come, as its status and its live view tell it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from dicom_node.domain import RunState, StudyState
from dicom_node.retrospective.runs import find_run, held_bytes
from dicom_node.retrospective.tables import RunRow, RunStudyRow

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.orm import Session

    from dicom_node.database import Database

_RATE_OVER = timedelta(minutes=10)
_QUIET = timedelta(minutes=1)
_LEFT = (StudyState.FOUND, StudyState.RETRIEVING)


@dataclass(frozen=True, slots=True)
class RunStatus:
    """One run at one moment.

    Attributes
    ----------
    studies
        By state.
    images
        How many of them the ledger has.
    held_bytes
        Fetched images in the archive, of all runs.
    studies_per_minute
        Begun over the last ten minutes; None where none was.
    eta_s
        Seconds of fetching that are left at this rate.
    rests_because
        Why nothing is fetched now; None where something should be.
    failed
        By reason.
    """

    name: str
    source: str
    state: RunState
    deliver: bool
    studies: Mapping[StudyState, int]
    images: int
    flagged: int
    failed: Mapping[str, int]
    held_bytes: int
    studies_per_minute: float | None
    eta_s: float | None
    rests_because: str | None
    fault: str | None

    @property
    def total(self) -> int:
        """Studies in the run."""
        return sum(self.studies.values())

    @property
    def ended(self) -> int:
        """Studies of which it is known what came of them."""
        return self.studies[StudyState.DONE] + self.studies[StudyState.FAILED]

    def as_json(self) -> dict[str, Any]:
        """The status as JSON knows it."""
        return {**asdict(self), "total": self.total, "ended": self.ended}

    def lines(self) -> list[str]:
        """What a person reads of it."""
        told = ", ".join(f"{count} {state}" for state, count in self.studies.items() if count)
        lines = [
            f"{self.name}: {self.state}, from {self.source}, "
            + ("results to the destinations" if self.deliver else "results to the ledger alone"),
            f"  studies: {self.ended} of {self.total} ended ({told or 'none'})",
            f"  images: {self.images}; flagged studies: {self.flagged}",
            f"  fetched images in the archive: {self.held_bytes / 1e9:.2f} GB",
        ]
        if self.studies_per_minute is not None:
            left = "" if self.eta_s is None else f", about {_duration(self.eta_s)} of fetching left"
            lines.append(f"  rate: {self.studies_per_minute:.1f} studies per minute{left}")
        if self.rests_because:
            lines.append(f"  nothing is fetched now: {self.rests_because}")
        lines += [f"  failed, {reason}: {count}" for reason, count in self.failed.items()]
        return lines


def run_status(database: Database, name: str, now: datetime) -> RunStatus:
    """The run's status.

    Raises
    ------
    RunError
        Where there is no such run.
    """
    with database.read() as session:
        return _status(session, find_run(session, name), now)


def all_runs(database: Database, now: datetime) -> Sequence[RunStatus]:
    """The status of every run, the latest first."""
    with database.read() as session:
        return [_status(session, run, now) for run in session.scalars(select(RunRow).order_by(RunRow.id.desc()))]


def _status(session: Session, run: RunRow, now: datetime) -> RunStatus:
    by_state = (
        select(RunStudyRow.state, func.count(), func.sum(RunStudyRow.landed))
        .where(RunStudyRow.run_id == run.id)
        .group_by(RunStudyRow.state)
    )
    found = {StudyState(state): (count, images or 0) for state, count, images in session.execute(by_state).tuples()}
    studies = {state: found.get(state, (0, 0))[0] for state in StudyState}
    flagged = select(func.count(RunStudyRow.id)).where(RunStudyRow.run_id == run.id, RunStudyRow.flagged)
    reasons = (
        select(RunStudyRow.reason, func.count())
        .where(RunStudyRow.run_id == run.id, RunStudyRow.state == StudyState.FAILED)
        .group_by(RunStudyRow.reason)
        .order_by(RunStudyRow.reason)
    )
    rate = _rate(session, run, now)
    left = sum(studies[state] for state in _LEFT)
    return RunStatus(
        name=run.name,
        source=run.source,
        state=RunState(run.state),
        deliver=run.deliver,
        studies=studies,
        images=sum(images for _, images in found.values()),
        flagged=session.scalar(flagged) or 0,
        failed={reason or "unknown": count for reason, count in session.execute(reasons).tuples()},
        held_bytes=held_bytes(session),
        studies_per_minute=rate,
        eta_s=60 * left / rate if rate and left else None,
        rests_because=run.rests_because or _nobody_fetches(run, rate, left, now),
        fault=run.fault,
    )


def _rate(session: Session, run: RunRow, now: datetime) -> float | None:
    """Studies per minute, since the run began but over ten minutes at most."""
    if run.begun_at is None:
        return None
    since = max(run.begun_at, now - _RATE_OVER)
    count, first = (
        session.execute(
            select(func.count(), func.min(RunStudyRow.begun_at)).where(
                RunStudyRow.begun_at > since, RunStudyRow.begun_at <= now, RunStudyRow.run_id == run.id
            )
        )
        .tuples()
        .one()
    )
    if not count or first is None or first >= now:
        return None
    return float(count) / max((now - first).total_seconds() / 60, 1 / 60)


def _nobody_fetches(run: RunRow, rate: float | None, left: int, now: datetime) -> str | None:
    """What the ledger alone cannot know: perhaps no process is there that would fetch."""
    is_quiet = run.begun_at is not None and now - run.begun_at > _QUIET
    if run.state == RunState.RUNNING and left and is_quiet and not rate:
        return "no process has begun a study for ten minutes: is the node up, and `retrieve` among its processes?"
    return None


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
