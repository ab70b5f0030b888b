"""What people say of a study's result: agree, disagree with a reason, unsure. Nothing that was said is overwritten."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from sqlalchemy import func, select

from dicom_node.domain import NodeError, Purpose
from dicom_node.tables import InstanceRow, OutcomeRow, ReleaseRow, ScreeningRow, db_now, storable
from dicom_node.worklist.tables import FeedbackRow, StudyRow

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from sqlalchemy import Select
    from sqlalchemy.orm import Session

    from dicom_node.database import Database

LONGEST_COMMENT = 1000
_CHUNK = 500
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class Verdict(StrEnum):
    """Of a person, on what the node said of a study."""

    AGREE = "agree"
    DISAGREE = "disagree"
    UNSURE = "unsure"


class Reason(StrEnum):
    """Why a person disagrees."""

    FALSE_POSITIVE = "false_positive"
    FALSE_NEGATIVE = "false_negative"
    WRONG_PLACE = "wrong_place"
    POOR_IMAGE = "poor_image"
    OTHER = "other"


class FeedbackError(NodeError):
    """What was said cannot be kept."""

    reason = "feedback"


@dataclass(frozen=True, slots=True)
class Said:
    """What one person said of a study, and of which release's answer."""

    study_instance_uid: str
    user_name: str
    verdict: Verdict
    reason: Reason | None
    comment: str
    release: str
    at: datetime


def say(
    database: Database, study_instance_uid: str, user_name: str, verdict: Verdict, reason: Reason | None, comment: str
) -> None:
    """It stands in the history, with the release whose answer it is of.

    Raises
    ------
    FeedbackError
        Where the study is not known, or who disagrees gives no reason.
    """
    if verdict is Verdict.DISAGREE and reason is None:
        raise FeedbackError("who disagrees says why: choose a reason")
    if len(comment) > LONGEST_COMMENT:
        raise FeedbackError(f"a comment has at most {LONGEST_COMMENT} characters, this one {len(comment)}")
    with database.write() as session:
        known = select(StudyRow.id).filter_by(study_instance_uid=study_instance_uid).with_for_update()
        if session.scalar(known) is None:
            raise FeedbackError("no such study stands in the worklist")
        newest = select(func.max(FeedbackRow.version)).filter_by(
            study_instance_uid=study_instance_uid, user_name=user_name
        )
        session.add(
            FeedbackRow(
                study_instance_uid=study_instance_uid,
                user_name=user_name,
                version=(session.scalar(newest) or 0) + 1,
                verdict=verdict,
                reason=reason if verdict is Verdict.DISAGREE else None,
                comment=storable(comment.strip()),
                release_id=_answering_release(session, study_instance_uid),
                at=db_now(),
            )
        )


def _answering_release(session: Session, study_instance_uid: str) -> int | None:
    return session.scalar(
        select(ScreeningRow.release_id)
        .join(InstanceRow, InstanceRow.id == ScreeningRow.instance_id)
        .where(
            InstanceRow.study_instance_uid == study_instance_uid,
            ScreeningRow.purpose == Purpose.LIVE,
            ScreeningRow.replaced_by.is_(None),
            select(OutcomeRow.target).where(OutcomeRow.screening_id == ScreeningRow.id).exists(),
        )
        .order_by(ScreeningRow.id.desc())
        .limit(1)
    )


def history(database: Database, study_instance_uid: str) -> list[Said]:
    """All that was said of the study, the newest first."""
    query = _said().where(FeedbackRow.study_instance_uid == study_instance_uid).order_by(FeedbackRow.id.desc())
    with database.read() as session:
        return [_one(*row) for row in session.execute(query).tuples()]


def as_csv(database: Database) -> Iterator[str]:
    """All that was said, as lines of CSV (RFC 4180), a part at a time; no patient is named but by the study's UID."""
    yield _row(["at", "study_instance_uid", "release", "user", "verdict", "reason", "comment"])
    last = 0
    while True:
        query = _said().where(FeedbackRow.id > last).order_by(FeedbackRow.id).limit(_CHUNK)
        with database.read() as session:
            rows = session.execute(query).tuples().all()
        if not rows:
            return
        last = rows[-1][0].id
        for row in rows:
            said = _one(*row)
            at = said.at.isoformat(timespec="seconds")
            told = [
                said.study_instance_uid,
                said.release,
                said.user_name,
                said.verdict,
                said.reason or "",
                said.comment,
            ]
            yield _row([at, *told])


def _said() -> Select[tuple[FeedbackRow, ReleaseRow]]:
    return select(FeedbackRow, ReleaseRow).outerjoin(ReleaseRow, ReleaseRow.id == FeedbackRow.release_id)


def _one(row: FeedbackRow, release: ReleaseRow | None) -> Said:
    return Said(
        row.study_instance_uid,
        row.user_name,
        Verdict(row.verdict),
        Reason(row.reason) if row.reason else None,
        row.comment,
        f"{release.bundle} {release.release}" if release else "",
        row.at,
    )


def _row(cells: list[str]) -> str:
    buffer = io.StringIO()
    # A spreadsheet takes what begins so for a formula.
    csv.writer(buffer).writerow([f"'{cell}" if cell.startswith(_FORMULA) else cell for cell in cells])
    return buffer.getvalue()
