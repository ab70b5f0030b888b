"""The worklist's pages: which studies, in which order, and what stands on a line.

Pages are cut by key: the last line of one says where the next begins, so that any page costs what the first does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal, NamedTuple

from sqlalchemy import ColumnElement, exists, func, literal, select, tuple_, update
from sqlalchemy.orm import aliased

from dicom_node.admission import SOP_CLASSES
from dicom_node.domain import NodeError, State, TargetResult
from dicom_node.predictions import target_results
from dicom_node.tables import InstanceRow, OutcomeRow, ScreeningRow
from dicom_node.transitions import OWN
from dicom_node.worklist.arrivals import words
from dicom_node.worklist.tables import StudyRow, StudyWordRow

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import date, tzinfo

    from sqlalchemy import Select
    from sqlalchemy.orm import Session

    from dicom_node.database import Database

MOST_LINES = 200
MOST_COUNTED = 1000
_MOST_AGEING = timedelta(hours=168)  # of the setting
_MOST_WORDS = 8
_CURSOR = re.compile(r"(\d{1,10})(\d{6})-(\d{1,9})", re.ASCII)
_LAST = "\U0010ffff"  # after every character that a word may go on with
# What a study's images amount to: the first of these that any of them is in.
_STANDING = (
    State.FAILED,
    State.WAITING,
    State.CLAIMED,
    State.PREDICTED,
    State.REPORTED,
    State.WITHHELD,
    State.DELIVERED,
    State.DECLINED,
)


class CursorError(NodeError):
    """A page was asked for by a mark that this node did not give."""

    reason = "cursor"


@dataclass(frozen=True, slots=True)
class Filters:
    """Which studies; what is None or empty leaves all. `day` is that of the arrival, in the site's time zone."""

    read: Literal["unread", "read", "all"] = "unread"
    day: date | None = None
    location: str = ""
    modality: str = ""
    flagged: bool | None = None
    state: State | None = None
    text: str = ""


class Cursor(NamedTuple):
    """Where a page ends: after this study."""

    due_at: datetime
    study_id: int

    def as_text(self) -> str:
        """As it goes through a URL."""
        return f"{int(self.due_at.timestamp() * 1_000_000)}-{self.study_id}"

    @classmethod
    def from_text(cls, text: str) -> Cursor:
        """What `as_text` gave.

        Raises
        ------
        CursorError
        """
        found = _CURSOR.fullmatch(text)
        if found is None:
            raise CursorError("the page's mark is none of this node's: begin at the first page")
        return cls(datetime.fromtimestamp(int(found[1]), UTC) + timedelta(microseconds=int(found[2])), int(found[3]))


@dataclass(frozen=True, slots=True)
class Line:
    """A study as the worklist shows it.

    Attributes
    ----------
    moved_up
        Whether it stands before others that came earlier.
    state
        What its images amount to; None where none of them stands in the ledger any more.
    reason
        Why an image of it was declined or failed.
    has_picture
        Whether an image of it is kept here.
    results
        The answers of its image with the strongest flag, else of its first answered image.
    """

    study: StudyRow
    state: State | None = None
    reason: str | None = None
    images: int = 0
    has_picture: bool = False
    results: Sequence[TargetResult] = field(default=())

    @property
    def moved_up(self) -> bool:
        """Whether a result moved it up."""
        return self.study.due_at < self.study.arrived_at


class Page(NamedTuple):
    """Lines in order; `after` begins the next page, None where there is none."""

    lines: list[Line]
    after: Cursor | None


def page(database: Database, filters: Filters, site: tzinfo, *, after: Cursor | None = None, limit: int = 50) -> Page:
    """The studies that the filters leave, from `after` on, at most `limit`."""
    limit = min(max(limit, 1), MOST_LINES)
    query = select(StudyRow).where(*_conditions(filters, site)).order_by(StudyRow.due_at, StudyRow.id)
    if after is not None:
        query = query.where(
            tuple_(StudyRow.due_at, StudyRow.id) > tuple_(literal(after.due_at), literal(after.study_id))
        )
    with database.read() as session:
        studies = session.scalars(query.limit(limit + 1)).all()
        lines = lines_of(session, studies[:limit])
    last = studies[limit - 1] if len(studies) > limit else None
    return Page(lines, None if last is None else Cursor(last.due_at, last.id))


def count(database: Database, filters: Filters, site: tzinfo) -> int:
    """How many studies the filters leave, counted as far as `MOST_COUNTED` and one more."""
    found = select(StudyRow.id).where(*_conditions(filters, site)).limit(MOST_COUNTED + 1)
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(found.subquery())) or 0


def one(database: Database, study_instance_uid: str) -> Line | None:
    """The line of one study."""
    with database.read() as session:
        study = session.scalar(select(StudyRow).filter_by(study_instance_uid=study_instance_uid))
        return None if study is None else lines_of(session, [study])[0]


def locations(database: Database, most: int = 100) -> list[str]:
    """The locations of unread studies, for a filter: each found by one step in the index, however many studies wait."""
    unread = StudyRow.read_at.is_(None)
    step = select(func.min(StudyRow.location).label("location")).where(unread).cte(recursive=True)
    following = select(func.min(StudyRow.location)).where(unread, StudyRow.location > step.c.location)
    step = step.union_all(select(following.scalar_subquery()).where(step.c.location.is_not(None)))
    with database.read() as session:
        return list(session.scalars(select(step.c.location).where(step.c.location.is_not(None)).limit(most)))


def mark_read(database: Database, study_instance_uid: str, by: str, now: datetime, *, read: bool = True) -> bool:
    """The study leaves the worklist, or comes back to its place; False where it is not known, or was so already."""
    values = {"read_at": now if read else None, "read_by": by if read else None}
    was = StudyRow.read_at.is_(None) if read else StudyRow.read_at.is_not(None)
    changed = update(StudyRow).where(StudyRow.study_instance_uid == study_instance_uid, was).values(**values)
    with database.write() as session:
        return bool(session.execute(changed).rowcount)  # type: ignore[attr-defined]


def lines_of(session: Session, studies: Sequence[StudyRow]) -> list[Line]:
    """The studies with what the ledger says of their images now: two queries, whatever their number."""
    screenings = session.execute(
        select(
            InstanceRow.study_instance_uid,
            ScreeningRow.id,
            ScreeningRow.state,
            ScreeningRow.reason,
            InstanceRow.path.is_not(None) & InstanceRow.sop_class_uid.in_(SOP_CLASSES),
        )
        .join(ScreeningRow, ScreeningRow.instance_id == InstanceRow.id)
        .where(
            InstanceRow.study_instance_uid.in_([study.study_instance_uid for study in studies]),
            ScreeningRow.purpose.in_(OWN),
            ScreeningRow.replaced_by.is_(None),
        )
        .order_by(ScreeningRow.id)
    ).tuples()
    by_study: dict[str, list[_Own]] = {}
    for uid, screening_id, state, reason, is_kept in screenings:
        by_study.setdefault(uid, []).append(_Own(screening_id, State(state), reason, is_kept))
    ids = [one.screening_id for own in by_study.values() for one in own]
    outcomes: dict[int, list[OutcomeRow]] = {}
    for row in session.scalars(
        select(OutcomeRow)
        .where(OutcomeRow.screening_id.in_(ids))
        .order_by(OutcomeRow.screening_id, OutcomeRow.position)
    ):
        outcomes.setdefault(row.screening_id, []).append(row)
    return [_line(study, by_study.get(study.study_instance_uid, []), outcomes) for study in studies]


class _Own(NamedTuple):
    """An image's own screening, and whether the image is kept."""

    screening_id: int
    state: State
    reason: str | None
    is_kept: bool


def _line(study: StudyRow, own: Sequence[_Own], outcomes: Mapping[int, Sequence[OutcomeRow]]) -> Line:
    states = {one.state for one in own}
    return Line(
        study,
        state=next((state for state in _STANDING if state in states), None),
        reason=next((one.reason for one in own if one.reason), None),
        images=len(own),
        has_picture=any(one.is_kept for one in own),
        results=target_results(_strongest(outcomes.get(one.screening_id, ()) for one in own)),
    )


def _strongest(answers: Iterable[Sequence[OutcomeRow]]) -> Sequence[OutcomeRow]:
    """The answers of the image with the strongest flag, else of the first one that has any."""
    known = [rows for rows in answers if rows]
    return max(known, key=lambda rows: max((row.probability for row in rows if row.flagged), default=0.0), default=())


def _conditions(filters: Filters, site: tzinfo) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if filters.read != "all":
        found.append(StudyRow.read_at.is_(None) if filters.read == "unread" else StudyRow.read_at.is_not(None))
    if filters.day is not None:
        begin = datetime(filters.day.year, filters.day.month, filters.day.day, tzinfo=site)
        end = (begin + timedelta(days=1)).astimezone(UTC)
        begin = begin.astimezone(UTC)
        # The second is what the index can be searched by: nothing is moved up by more.
        found += [StudyRow.arrived_at >= begin, StudyRow.arrived_at < end]
        found += [StudyRow.due_at >= begin - _MOST_AGEING, StudyRow.due_at < end]
    if filters.location:
        found.append(StudyRow.location == filters.location)
    if filters.modality:
        found.append(StudyRow.modality == filters.modality)
    if filters.flagged is not None:
        found.append(StudyRow.flagged.is_(filters.flagged))
    if filters.state is not None:
        found.append(_has_image_in(filters.state))
    if sought := words(filters.text)[:_MOST_WORDS]:
        found.append(StudyRow.id.in_(_with_words(sought)))
    return found


def _with_words(sought: Sequence[str]) -> Select[tuple[int]]:
    """Studies with all the words, one query in another: so PostgreSQL may join the words before it looks at studies."""
    row = aliased(StudyWordRow)
    query = select(row.study_id).where(row.word >= sought[0], row.word < sought[0] + _LAST)
    return query.where(row.study_id.in_(_with_words(sought[1:]))) if sought[1:] else query


def _has_image_in(state: State) -> ColumnElement[bool]:
    return exists().where(
        InstanceRow.study_instance_uid == StudyRow.study_instance_uid,
        ScreeningRow.instance_id == InstanceRow.id,
        ScreeningRow.purpose.in_(OWN),
        ScreeningRow.replaced_by.is_(None),
        ScreeningRow.state == state,
    )


def first_image(database: Database, study_instance_uid: str) -> str | None:
    """The archive's file of the study's first image; None where none is kept."""
    query = (
        select(InstanceRow.path)
        .where(
            InstanceRow.study_instance_uid == study_instance_uid,
            InstanceRow.path.is_not(None),
            InstanceRow.sop_class_uid.in_(SOP_CLASSES),
        )
        .order_by(InstanceRow.id)
    )
    with database.read() as session:
        return session.scalar(query.limit(1))
