"""Retractions in the ledger: what of a study's results was taken back, by whom and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import func, or_, select, update

from dicom_node.domain import DeliveryState, NodeError, ObjectKind, State
from dicom_node.outbox import enqueue, settle
from dicom_node.tables import (
    DeliveryRow,
    InstanceRow,
    ObjectRow,
    ReportRow,
    RetractionRow,
    ScreeningRow,
    db_now,
    storable,
)
from dicom_node.transitions import change_state

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from sqlalchemy.orm import Session

    from dicom_node.archive import Product
    from dicom_node.database import Database

_PRODUCTS = (ObjectKind.HEATMAP, ObjectKind.REPORT)


class RetractionError(NodeError):
    """There is nothing to take back."""

    reason = "retraction"


@dataclass(frozen=True, slots=True)
class Standing:
    """What the node has said of a study and not taken back.

    Attributes
    ----------
    object_ids
        All of its objects.
    given_away
        By destination, SOP Class and Instance UIDs of those that it may hold, the answer of one that was sent having
        been lost perhaps.
    source_path
        An image of the study in the archive.
    """

    study_instance_uid: str
    object_ids: tuple[int, ...]
    given_away: Mapping[str, tuple[tuple[str, str], ...]]
    source_path: str


class Retractions:
    """Queries and transitions of retractions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def standing(self, study_instance_uid: str) -> Standing:
        """What there is to take back.

        Raises
        ------
        RetractionError
            Where the ledger does not know the study, or nothing of ours stands in it.
        """
        with self._database.read() as session:
            path = session.scalar(
                select(InstanceRow.path).where(
                    InstanceRow.study_instance_uid == study_instance_uid, InstanceRow.path.is_not(None)
                )
            )
            if path is None:
                raise RetractionError(f"no image of study {study_instance_uid} was kept: there is nothing to take back")
            objects = session.scalars(_objects(study_instance_uid).order_by(ObjectRow.id)).all()
            if not objects:
                raise RetractionError(
                    f"no result of study {study_instance_uid} stands: nothing was made, or all is back"
                )
            deliveries = session.scalars(_deliveries(row.id for row in objects)).all()
            return Standing(
                study_instance_uid, tuple(row.id for row in objects), _given_away(objects, deliveries), path
            )

    def retract(
        self, standing: Standing, notes: Mapping[str, Product], *, reason: str, comment: str, asked_by: str
    ) -> None:
        """The study's objects are taken back; what was not sent stays here, and each destination is due its note.

        Raises
        ------
        RetractionError
            Where the study has changed since it was looked at.
        """
        with self._database.write(alone="outbox") as session:
            retraction = RetractionRow(
                study_instance_uid=standing.study_instance_uid,
                reason=reason,
                comment=storable(comment),
                asked_by=storable(asked_by)[:64],
                at=db_now(),
            )
            session.add(retraction)
            session.flush()
            objects = session.scalars(_objects(standing.study_instance_uid)).all()
            taken = session.execute(
                update(ObjectRow)
                .where(ObjectRow.id.in_(standing.object_ids), ObjectRow.retraction_id.is_(None))
                .values(retraction_id=retraction.id)
            )
            now = session.scalar(_objects(standing.study_instance_uid).with_only_columns(func.count(ObjectRow.id)))
            changed = RetractionError(f"study {standing.study_instance_uid} has just changed: try again")
            if taken.rowcount != len(standing.object_ids) or now:  # type: ignore[attr-defined]
                raise changed
            deliveries = session.scalars(_deliveries(standing.object_ids).with_for_update()).all()
            for destination, its in _given_away(objects, deliveries).items():
                if not set(its) <= set(standing.given_away.get(destination, ())):
                    raise changed
            kept = [row.id for row in deliveries if row.state == DeliveryState.PENDING]
            # Who sends one at this moment keeps its lease, so that the note, which names it, goes after it.
            session.execute(
                update(DeliveryRow)
                .where(DeliveryRow.id.in_(kept))
                .values(state=DeliveryState.WITHDRAWN)
                .execution_options(synchronize_session=False)
            )
            for note in dict.fromkeys(notes.values()):
                going = [destination for destination, its in notes.items() if its == note]
                enqueue(session, note, going, retraction_id=retraction.id)
            _lock_screenings(session, standing.study_instance_uid)
            settle(session, kept)
            _end_untold(session, standing)


def _lock_screenings(session: Session, study_instance_uid: str) -> None:
    """Those of the study are the transaction's, taken in the order in which all take them."""
    session.execute(
        select(ScreeningRow.id)
        .join(InstanceRow, InstanceRow.id == ScreeningRow.instance_id)
        .where(InstanceRow.study_instance_uid == study_instance_uid)
        .order_by(ScreeningRow.id)
        .with_for_update(of=ScreeningRow)
    ).all()


def _end_untold(session: Session, standing: Standing) -> None:
    """No report will tell of a screening whose heatmap was taken back."""
    untold = session.scalars(
        select(ScreeningRow)
        .join(ObjectRow, ObjectRow.screening_id == ScreeningRow.id)
        .where(
            ObjectRow.id.in_(standing.object_ids),
            ScreeningRow.state == State.REPORTED,
            ScreeningRow.report_id.is_(None),
        )
        .order_by(ScreeningRow.id)
        .with_for_update(of=ScreeningRow)
    )
    for screening in untold:
        change_state(session, screening.id, screening.attempt, State.REPORTED, State.WITHHELD, reason="retracted")


def _deliveries(object_ids: Iterable[int]) -> Any:
    return select(DeliveryRow).where(DeliveryRow.object_id.in_(list(object_ids))).order_by(DeliveryRow.id)


def _given_away(
    objects: Sequence[ObjectRow], deliveries: Sequence[DeliveryRow]
) -> dict[str, tuple[tuple[str, str], ...]]:
    """By destination, SOP Class and Instance UIDs of the objects that it may hold."""
    uids = {row.id: (row.sop_class_uid or "", row.sop_instance_uid or "") for row in objects}
    found: dict[str, tuple[tuple[str, str], ...]] = {}
    for row in deliveries:
        if _may_be_there(row):
            found[row.destination] = (*found.get(row.destination, ()), uids[row.object_id])
    return found


def _may_be_there(row: DeliveryRow) -> bool:
    """Whether it was sent, or somebody may be sending it now or have died over it."""
    if row.state in (DeliveryState.PENDING, DeliveryState.REJECTED):
        return row.tries > 0 or row.holder is not None
    return row.state != DeliveryState.WITHDRAWN


def _objects(study_instance_uid: str) -> Any:
    """Those of the study that nobody has taken back."""
    return (
        select(ObjectRow)
        .outerjoin(ReportRow, ReportRow.id == ObjectRow.report_id)
        .outerjoin(ScreeningRow, ScreeningRow.id == ObjectRow.screening_id)
        .outerjoin(InstanceRow, InstanceRow.id == ScreeningRow.instance_id)
        .where(
            or_(
                ReportRow.study_instance_uid == study_instance_uid,
                InstanceRow.study_instance_uid == study_instance_uid,
            ),
            ObjectRow.kind.in_(_PRODUCTS),
            ObjectRow.retraction_id.is_(None),
        )
    )
