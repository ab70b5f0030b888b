"""Changes of a screening's state, each with its line in the audit trail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import update

from dicom_node.domain import Purpose
from dicom_node.tables import ScreeningRow, TransitionRow, db_now

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from dicom_node.domain import State

# An instance has one screening of its own that was not replaced, by whose state it is counted; others stand beside it.
OWN = (Purpose.LIVE, Purpose.RETROSPECTIVE)


def change_state(session: Session, screening_id: int, attempt: int, old: State, new: State, **values: Any) -> None:
    """Move a screening that nobody holds, in the caller's transaction, and log it."""
    moved = session.execute(
        update(ScreeningRow)
        .where(ScreeningRow.id == screening_id, ScreeningRow.state == old)
        .values(state=new, **values)
    )
    if moved.rowcount != 1:  # type: ignore[attr-defined]
        raise LookupError(f"screening {screening_id} is not {old}")
    log_transition(session, screening_id, old, new, attempt)


def log_transition(session: Session, screening_id: int, old: State | None, new: State, attempt: int) -> None:
    """The change stands in the audit trail, in the caller's transaction."""
    session.add(TransitionRow(screening_id=screening_id, from_state=old, to_state=new, attempt=attempt, at=db_now()))
