"""The plan of a run: its cohort in the ledger, nothing fetched, and what fetching it would take.

Each day is a transaction of its own: a plan that was broken off goes on after the last one.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, delete, exists, func, select
from sqlalchemy.dialects import postgresql, sqlite

from dicom_node.domain import RunState, StudyState
from dicom_node.retrospective.query import QueryError, finder
from dicom_node.retrospective.runs import RunError
from dicom_node.retrospective.tables import RunDayRow, RunRow, RunStudyRow
from dicom_node.retrospective.window import hours_of_window
from dicom_node.tables import InstanceRow, ReleaseRow, ScreeningRow, storable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy.orm import Session

    from dicom_node.config import Peer, Settings
    from dicom_node.database import Database
    from dicom_node.retrospective.cohort import Criteria
    from dicom_node.retrospective.query import Finder, FoundStudy

_CHUNK = 500
_LOOKED_AT = 5000  # of the latest images and studies, for means
_ASSUMED_BYTES = 10_000_000
_ASSUMED_IMAGES = 1.3  # of a study
_ASSUMED_SECONDS = 2.0  # to fetch a study
_LONGEST_LINES = 64  # characters of `asked_for`
NOT_FOUND = "not_found"
_NAME = re.compile(r"[^\W_][\w .+-]{0,63}")


@dataclass(frozen=True, slots=True)
class Plan:
    """What stands in the ledger of a run, and what it would take.

    Attributes
    ----------
    per_day
        Studies by day (DA).
    not_found
        Lines of the cohort's file of which the PACS knows nothing.
    unanswered
        Lines of which the PACS does not tell all.
    repeated
        Lines that name what an earlier one does.
    skipped
        Answers of the PACS that could not be used.
    already_screened
        Studies of whose images, as far as they stand in the ledger, the active release has all answers already.
    gigabytes, hours
        To be fetched, and to fetch them: hours of the window.
    basis
        From what these two are estimated.
    """

    name: str
    source: str
    per_day: Mapping[str, int]
    studies: int
    instances: int | None
    not_found: int
    unanswered: int
    repeated: int
    skipped: int
    already_screened: int
    gigabytes: float
    hours: float
    nights: float | None
    basis: str

    def as_json(self) -> dict[str, Any]:
        """The plan as JSON knows it."""
        return asdict(self)


def plan(
    settings: Settings,
    database: Database,
    *,
    name: str,
    criteria: Criteria,
    source: Peer,
    deliver: bool = False,
    again: bool = False,
    on_step: Callable[[int, int], None] = lambda *_: None,
    open_finder: Callable[[Peer, Settings], Any] = finder,
) -> Plan:
    """The cohort stands in the ledger as the run `name`; `on_step` hears of steps done and in all.

    Raises
    ------
    RunError
        Where a run of that name has another cohort, or has begun.
    QueryError
        Where the PACS does not tell all; what it told stands, and the same call goes on.
    """
    run_id = _prepared(settings, database, name, criteria, source, deliver=deliver, again=again)
    with open_finder(source, settings) as asked:
        if criteria.accessions or criteria.patients:
            _plan_lists(settings, database, run_id, criteria, asked, on_step)
        else:
            _plan_days(settings, database, run_id, criteria, asked, on_step)
        skipped = asked.skipped
    with database.write() as session:
        session.get_one(RunRow, run_id).state = RunState.PLANNED
    with database.read() as session:
        return _told(session, settings, session.get_one(RunRow, run_id), skipped, criteria.repeated)


def _prepared(
    settings: Settings, database: Database, name: str, wanted: Criteria, source: Peer, *, deliver: bool, again: bool
) -> int:
    if not _NAME.fullmatch(name):  # a report's folder has it
        raise RunError(
            "a run's name begins with a letter or digit and has at most 64 of letters, digits, space, . _ + -"
        )
    told = wanted.as_json(identity=settings.store_patient_identity)
    with database.write(alone="runs") as session:
        run = session.scalar(select(RunRow).filter_by(name=name))
        if run is None:
            run = RunRow(
                name=name,
                source=source.name,
                criteria=told,
                state=RunState.PLANNING,
                deliver=deliver,
                again=again,
                created_at=datetime.now(UTC),
            )
            session.add(run)
            session.flush()
            return run.id
        if run.state not in (RunState.PLANNING, RunState.PLANNED):
            raise RunError(f"run {name} is {run.state}: its cohort stands; plan another one under another name")
        if (run.criteria, run.source) != (told, source.name):
            raise RunError(f"run {name} was planned for another cohort or another source; give this one another name")
        run.state, run.deliver, run.again = RunState.PLANNING, deliver, again
        return run.id


def _plan_days(
    settings: Settings,
    database: Database,
    run_id: int,
    criteria: Criteria,
    asked: Finder,
    on_step: Callable[[int, int], None],
) -> None:
    days = list(criteria.days())
    with database.read() as session:
        done = set(session.scalars(select(RunDayRow.day).filter_by(run_id=run_id)))
    for number, day in enumerate(days, start=1):
        text = f"{day:%Y%m%d}"
        if text not in done:
            found = asked.studies_of_day(day, criteria)
            known = [study.instances for study in found if study.instances is not None]
            told = {
                "run_id": run_id,
                "day": text,
                "studies": len(found),
                "instances": sum(known) if len(known) == len(found) else None,
                "planned_at": datetime.now(UTC),
            }
            with database.write() as session:
                _insert(session, RunStudyRow, [_row(settings, run_id, study) for study in found])
                _insert(session, RunDayRow, [told])
        on_step(number, len(days))


def _plan_lists(
    settings: Settings,
    database: Database,
    run_id: int,
    criteria: Criteria,
    asked: Finder,
    on_step: Callable[[int, int], None],
) -> None:
    keyword = "AccessionNumber" if criteria.accessions else "PatientID"
    values = criteria.accessions or criteria.patients
    for number, (line, value) in enumerate(values, start=1):
        try:
            found = asked.studies_of(keyword, value, criteria)
        except QueryError as error:
            if not (error.of_one and error.permanent):
                raise
            with database.write() as session:
                _end_line(session, run_id, line, error.reason, str(error))
        else:
            with database.write() as session:
                _plan_line(session, run_id, line, [_row(settings, run_id, study) for study in found], criteria)
        on_step(number, len(values))


def _plan_line(session: Session, run_id: int, line: int, rows: list[dict[str, Any]], criteria: Criteria) -> None:
    if not rows:
        told = f"the PACS has no such study with {' or '.join(criteria.modalities)} in it"
        _end_line(session, run_id, line, NOT_FOUND, told)
        return
    asked_for = f"line {line}"
    session.execute(delete(RunStudyRow).where(*_without_study(run_id), RunStudyRow.asked_for == asked_for))
    _insert(session, RunStudyRow, [row | {"asked_for": asked_for} for row in rows])
    for study in session.scalars(
        select(RunStudyRow).where(
            RunStudyRow.run_id == run_id,
            RunStudyRow.study_instance_uid.in_([row["study_instance_uid"] for row in rows]),
        )
    ):
        lines = (study.asked_for or "").split(", ")
        if asked_for not in lines and len(told := ", ".join([*lines, asked_for])) <= _LONGEST_LINES:
            study.asked_for = told


def _end_line(session: Session, run_id: int, line: int, reason: str, told: str) -> None:
    """The line has its outcome, once, without a study."""
    row = session.scalar(select(RunStudyRow).where(*_without_study(run_id), RunStudyRow.asked_for == f"line {line}"))
    if row is None:
        row = RunStudyRow(run_id=run_id, asked_for=f"line {line}", state=StudyState.FAILED)
        session.add(row)
    row.reason, row.detail, row.ended_at = reason, told[:400], datetime.now(UTC)


def _without_study(run_id: int) -> tuple[ColumnElement[bool], ...]:
    return RunStudyRow.run_id == run_id, RunStudyRow.study_instance_uid.is_(None)


def _row(settings: Settings, run_id: int, study: FoundStudy) -> dict[str, Any]:
    identity = settings.store_patient_identity
    return {
        "run_id": run_id,
        "study_instance_uid": study.study_instance_uid,
        "study_date": study.study_date[:8] or None,
        "accession_number": storable(study.accession_number)[:16] or None if identity else None,
        "patient_id": storable(study.patient_id)[:64] or None if identity else None,
        "asked_for": None,
        "instances": study.instances,
        "state": StudyState.FOUND,
        "attempts": 0,
        "landed": 0,
        "flagged": False,
        "held_bytes": 0,
    }


def _insert(session: Session, table: type[RunStudyRow | RunDayRow], rows: Sequence[dict[str, Any]]) -> None:
    """The rows stand in the run; those that stand already are left as they are."""
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    statement = insert(table).on_conflict_do_nothing()
    for start in range(0, len(rows), _CHUNK):
        session.execute(statement, rows[start : start + _CHUNK])


def _told(session: Session, settings: Settings, run: RunRow, skipped: int, repeated: int) -> Plan:
    of_run = RunStudyRow.run_id == run.id
    with_uid = RunStudyRow.study_instance_uid.is_not(None)
    per_day = (
        select(RunStudyRow.study_date, func.count())
        .where(of_run, with_uid)
        .group_by(RunStudyRow.study_date)
        .order_by(RunStudyRow.study_date)
    )
    counts = {day or "unknown": count for day, count in session.execute(per_day).tuples()}
    studies = sum(counts.values())
    by_reason = select(RunStudyRow.reason, func.count()).where(*_without_study(run.id)).group_by(RunStudyRow.reason)
    lines = dict(session.execute(by_reason).tuples().all())
    told = (
        session.execute(select(func.sum(RunStudyRow.instances), func.count(RunStudyRow.instances)).where(of_run))
        .tuples()
        .one()
    )
    instances = told[0] if told[1] == studies else None
    already = 0 if run.again else _already_screened(session, run.id)
    left = studies - already
    images, size, seconds, basis = _means(session)
    retrospective = settings.retrospective
    minutes = max(left / retrospective.studies_per_minute, left * seconds / retrospective.retrievals / 60)
    hours = minutes / 60
    window = hours_of_window(retrospective)
    return Plan(
        name=run.name,
        source=run.source,
        per_day=counts,
        studies=studies,
        instances=instances,
        not_found=lines.pop(NOT_FOUND, 0),
        unanswered=sum(lines.values()),
        repeated=repeated,
        skipped=skipped,
        already_screened=already,
        gigabytes=left * images * size / 1e9,
        hours=hours,
        nights=hours / window if window < 24 else None,
        basis=basis,
    )


def _already_screened(session: Session, run_id: int) -> int:
    """Studies of the run of which images stand in the ledger, all of them answered for by the active release."""
    answered = exists().where(
        ScreeningRow.instance_id == InstanceRow.id,
        ScreeningRow.release_id.in_(select(ReleaseRow.id).where(ReleaseRow.active)),
        ScreeningRow.replaced_by.is_(None),
        ScreeningRow.attempt > 0,
        ScreeningRow.state.in_(("reported", "delivered", "withheld", "declined")),
    )
    ruled_out = exists().where(
        ScreeningRow.instance_id == InstanceRow.id, ScreeningRow.state == "declined", ScreeningRow.attempt == 0
    )
    of_study = InstanceRow.study_instance_uid == RunStudyRow.study_instance_uid
    query = select(func.count(RunStudyRow.id)).where(
        RunStudyRow.run_id == run_id,
        exists().where(of_study, answered),
        ~exists().where(of_study, ~answered, ~ruled_out),
    )
    return session.scalar(query) or 0


def _means(session: Session) -> tuple[float, float, float, str]:
    """Images of a study, bytes of an image, seconds of a study's fetching, and where these come from."""
    sizes = select(InstanceRow.size_bytes).where(InstanceRow.path.is_not(None)).order_by(InstanceRow.id.desc())
    size = session.scalar(select(func.avg(sizes.limit(_LOOKED_AT).subquery().c.size_bytes)))
    ended = (
        select(RunStudyRow.landed, RunStudyRow.retrieve_s)
        .where(RunStudyRow.retrieve_s > 0)
        .order_by(RunStudyRow.begun_at.desc())
        .limit(_LOOKED_AT)
        .subquery()
    )
    images, seconds = session.execute(select(func.avg(ended.c.landed), func.avg(ended.c.retrieve_s))).tuples().one()
    told = [
        f"{float(images):.1f} images of a study, as fetched so far"
        if images
        else f"{_ASSUMED_IMAGES} images of a study, assumed",
        f"{float(size) / 1e6:.1f} MB of an image, as received so far"
        if size
        else f"{_ASSUMED_BYTES / 1e6:.0f} MB of an image, assumed",
        f"{float(seconds):.1f} s to fetch a study, as measured so far"
        if seconds
        else f"{_ASSUMED_SECONDS:.0f} s to fetch a study, assumed",
    ]
    return (
        float(images or _ASSUMED_IMAGES),
        float(size or _ASSUMED_BYTES),
        float(seconds or _ASSUMED_SECONDS),
        "; ".join(told),
    )
