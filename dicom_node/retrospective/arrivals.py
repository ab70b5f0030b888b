"""Objects that arrive while runs fetch: which of them a run asked for, and what becomes of those that a run holds.

All in the caller's transaction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import delete, func, select, update

from dicom_node.domain import ObjectKind, Origin, Purpose, State, StudyState
from dicom_node.retrospective.tables import RunInstanceRow, RunRow, RunStudyRow
from dicom_node.tables import InstanceRow, ObjectRow, ReleaseRow, ScreeningRow
from dicom_node.transitions import OWN, change_state, log_transition
from dicom_node.worklist.arrivals import arrive, move_up

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from dicom_node.config import Worklist
    from dicom_node.ledger import Received

MOVE = "move"
_NOT_ANSWERED = (State.WAITING, State.CLAIMED, State.PREDICTED)


@dataclass(frozen=True, slots=True)
class Asked:
    """A run's study that is being fetched, and whether its results go to the destinations."""

    study_id: int
    delivers: bool


def asked_for(session: Session, received: Received) -> Asked | None:
    """The run's study for which the object came; None where nobody asked, so that it is a live one.

    What this node fetched itself names its study. A moved one does not: it is of the study that is being fetched now.
    Some peers do not say that they move; theirs is what they send under a SOP Instance UID that is still expected.
    """
    query = select(RunStudyRow.id, RunRow.deliver).join(RunRow, RunRow.id == RunStudyRow.run_id)
    if received.origin is Origin.FETCHED:
        query = query.where(RunStudyRow.id == received.run_study_id)
    else:
        query = query.where(
            RunStudyRow.study_instance_uid == received.study_instance_uid, RunStudyRow.state == StudyState.RETRIEVING
        )
    if received.origin is Origin.SENT:
        query = query.join(RunInstanceRow, RunInstanceRow.study_id == RunStudyRow.id).where(
            RunStudyRow.method == MOVE,
            RunRow.source.in_(received.senders),
            RunInstanceRow.sop_instance_uid == received.sop_instance_uid,
            RunInstanceRow.landed.is_(False),
        )
    found = session.execute(query.limit(1)).tuples().first()
    return None if found is None else Asked(*found)


def land(session: Session, asked: Asked, received: Received, screening_id: int | None) -> None:
    """The study's object has come; one that its peer had not told of belongs to it from now on."""
    key = (asked.study_id, received.sop_instance_uid)
    row = session.get(RunInstanceRow, key)
    if row is None:
        row = RunInstanceRow(
            study_id=asked.study_id,
            sop_instance_uid=received.sop_instance_uid,
            series_instance_uid=received.series_instance_uid,
        )
        session.add(row)
    row.landed = True
    row.screening_id = screening_id or row.screening_id


def land_known(session: Session, asked: Asked, known: InstanceRow, received: Received) -> None:
    """The study's object has come, and is known; bytes that were purged are there again."""
    if known.path is None and received.file is not None:
        _adopt(known, received)
    land(session, asked, received, None)


def make_live(session: Session, known: InstanceRow, received: Received, policy: Worklist) -> bool:
    """What only a run holds is live from now on, as a peer has sent it; whether a worker may have work now.

    Its networks run once: where the run's prediction stands with its maps, only results are made of it.
    """
    own = session.scalar(
        select(ScreeningRow)
        .where(ScreeningRow.instance_id == known.id, ScreeningRow.purpose.in_(OWN), ScreeningRow.replaced_by.is_(None))
        .with_for_update()
    )
    if own is None or own.purpose == Purpose.LIVE:
        return False
    is_other = known.path is None and known.sha256 != received.sha256
    if known.path is None and received.file is not None:
        _adopt(known, received)
    was_delivering = own.delivers
    own.purpose, own.delivers = Purpose.LIVE, True
    session.flush()
    arrive(session, received)
    move_up(session, own.id, policy)  # what a run's prediction says already
    if own.state in _NOT_ANSWERED:
        return True
    if own.state != State.WITHHELD or was_delivering:
        return False
    has_maps = session.scalar(select(ObjectRow.id).filter_by(screening_id=own.id, kind=ObjectKind.MAP).limit(1))
    if is_other or has_maps is None:
        screen_anew(session, own, own.release_id, purpose=Purpose.LIVE, delivers=True)
    else:
        session.execute(delete(ObjectRow).filter_by(screening_id=own.id, kind=ObjectKind.HEATMAP))
        change_state(session, own.id, own.attempt, State.WITHHELD, State.PREDICTED)
    return True


def screen_anew(
    session: Session, replaced: ScreeningRow, release_id: int, *, purpose: Purpose, delivers: bool
) -> ScreeningRow:
    """A further screening of the instance waits, in place of one that has ended."""
    anew = add_screening(session, replaced.instance_id, release_id, purpose=purpose, delivers=delivers)
    session.execute(update(ScreeningRow).where(ScreeningRow.id == replaced.id).values(replaced_by=anew.id))
    return anew


def add_screening(
    session: Session, instance_id: int, release_id: int, *, purpose: Purpose, delivers: bool
) -> ScreeningRow:
    """A further screening of the instance waits.

    Rounds are counted over all releases and purposes: while it waits either may change.
    """
    rounds = session.scalar(select(func.max(ScreeningRow.round)).filter_by(instance_id=instance_id))
    anew = ScreeningRow(
        instance_id=instance_id,
        release_id=release_id,
        purpose=purpose,
        delivers=delivers,
        state=State.WAITING,
        round=(rounds or 0) + 1,
    )
    session.add(anew)
    session.flush()
    log_transition(session, anew.id, None, State.WAITING, 0)
    return anew


def active_release(session: Session) -> int | None:
    """The release by which what waits is screened."""
    return session.scalar(select(ReleaseRow.id).filter_by(active=True))


def _adopt(known: InstanceRow, received: Received) -> None:
    """These bytes are the instance's: its own were purged, and a PACS may have changed its header since."""
    assert received.file is not None  # noqa: S101 - asked before
    known.path = received.file.path
    known.sha256, known.size_bytes = received.sha256, received.size_bytes
    known.transfer_syntax_uid = received.transfer_syntax_uid
