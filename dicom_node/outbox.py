"""Archived results on their way to the destinations: the ledger's outbox.

Each object has one row per destination. A row is leased while it is sent, is tried again after a pause that doubles,
and ends as `sent` or, where trying again cannot help, as `rejected`. When no row of a screening is pending, the
screening is `delivered`, or `failed` where any was rejected.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import func, or_, select, update

from dicom_node.domain import DeliveryState, State
from dicom_node.ledger import change_state
from dicom_node.tables import DeliveryRow, DeliveryTryRow, ObjectRow, ScreeningRow, db_now

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

    from dicom_node.database import Database
    from dicom_node.domain import DeliveryError


@dataclass(frozen=True, slots=True)
class Parcel:
    """One object that is due at one destination."""

    delivery_id: int
    destination: str
    path: str
    sop_class_uid: str
    sop_instance_uid: str
    tries: int


class Outbox:
    """Queries and transitions of the deliveries."""

    def __init__(self, database: Database, *, retry_base_s: float, retry_max_s: float) -> None:
        self._database = database
        self._retry_base_s = retry_base_s
        self._retry_max_s = retry_max_s

    def claim(self, limit: int, lease_s: float) -> list[Parcel]:
        """At most `limit` due objects of one destination, oldest first, leased to the caller."""
        due = select(DeliveryRow).where(
            DeliveryRow.state == DeliveryState.PENDING,
            DeliveryRow.not_before <= db_now(),
            or_(DeliveryRow.lease_expires_at.is_(None), DeliveryRow.lease_expires_at < db_now()),
        )
        with self._database.read() as session:
            first = session.scalar(due.order_by(DeliveryRow.not_before, DeliveryRow.id).limit(1))
        if first is None:
            return []
        with self._database.write() as session:
            rows = session.scalars(
                due.where(DeliveryRow.destination == first.destination)
                .order_by(DeliveryRow.id)
                .limit(limit)
                .with_for_update(skip_locked=True)
            ).all()
            parcels = []
            for row in rows:
                row.lease_expires_at = db_now(lease_s)
                produced = session.get_one(ObjectRow, row.object_id)
                parcels.append(
                    Parcel(
                        delivery_id=row.id,
                        destination=row.destination,
                        path=produced.path,
                        sop_class_uid=produced.sop_class_uid or "",
                        sop_instance_uid=produced.sop_instance_uid or "",
                        tries=row.tries,
                    )
                )
            return parcels

    def sent(self, parcel: Parcel, status: int) -> None:
        """The destination answered Success or a warning: the object stands there."""
        with self._database.write() as session:
            self._close(session, parcel, DeliveryState.SENT, status, None)

    def not_sent(self, parcel: Parcel, error: DeliveryError) -> None:
        """The try is recorded; the object is due again after a pause, or rejected where the error is permanent."""
        with self._database.write() as session:
            if error.permanent:
                self._close(session, parcel, DeliveryState.REJECTED, error.status, str(error))
                return
            self._log(session, parcel, error.status, str(error))
            pause_s = min(self._retry_max_s, self._retry_base_s * 2 ** min(parcel.tries, 16))
            session.execute(
                update(DeliveryRow)
                .where(DeliveryRow.id == parcel.delivery_id, DeliveryRow.state == DeliveryState.PENDING)
                .values(
                    tries=parcel.tries + 1,
                    not_before=db_now(pause_s * random.uniform(0.8, 1.2)),  # noqa: S311 - jitter, no secret
                    lease_expires_at=None,
                )
            )

    def renew(self, parcels: Sequence[Parcel], lease_s: float) -> None:
        """The caller holds the parcels for `lease_s` seconds from now."""
        keys = [parcel.delivery_id for parcel in parcels]
        with self._database.write() as session:
            session.execute(
                update(DeliveryRow)
                .where(DeliveryRow.id.in_(keys), DeliveryRow.state == DeliveryState.PENDING)
                .values(lease_expires_at=db_now(lease_s))
            )

    def postpone(self, destination: str) -> None:
        """The peer is out of reach: none of its objects is tried before its latest pause is over."""
        pending = (DeliveryRow.destination == destination, DeliveryRow.state == DeliveryState.PENDING)
        with self._database.write() as session:
            until = session.scalar(select(func.max(DeliveryRow.not_before)).where(*pending))
            session.execute(update(DeliveryRow).where(*pending).values(not_before=until))

    def recover(self) -> None:
        """What a dead process held is due again: only where the caller is the only one that delivers."""
        with self._database.write() as session:
            session.execute(update(DeliveryRow).values(lease_expires_at=None))

    def counts(self) -> dict[str, dict[str, int]]:
        """Objects by destination and state."""
        query = select(DeliveryRow.destination, DeliveryRow.state, func.count()).group_by(
            DeliveryRow.destination, DeliveryRow.state
        )
        found: dict[str, dict[str, int]] = {}
        with self._database.read() as session:
            for destination, state, count in session.execute(query).tuples():
                found.setdefault(destination, {})[state] = count
        return found

    def last_errors(self) -> dict[str, str]:
        """By destination, why the last try of an object that is not there yet did not succeed."""
        latest = (
            select(func.max(DeliveryTryRow.id))
            .join(DeliveryRow, DeliveryRow.id == DeliveryTryRow.delivery_id)
            .where(
                DeliveryRow.state.in_((DeliveryState.PENDING, DeliveryState.REJECTED)),
                DeliveryTryRow.detail.is_not(None),
            )
            .group_by(DeliveryRow.destination)
        )
        query = (
            select(DeliveryRow.destination, DeliveryTryRow.detail)
            .join(DeliveryTryRow, DeliveryTryRow.delivery_id == DeliveryRow.id)
            .where(DeliveryTryRow.id.in_(latest))
        )
        with self._database.read() as session:
            return {destination: str(detail) for destination, detail in session.execute(query).tuples()}

    def _close(
        self, session: Session, parcel: Parcel, state: DeliveryState, status: int | None, detail: str | None
    ) -> None:
        self._log(session, parcel, status, detail)
        session.execute(
            update(DeliveryRow)
            .where(DeliveryRow.id == parcel.delivery_id, DeliveryRow.state == DeliveryState.PENDING)
            .values(state=state, tries=parcel.tries + 1, lease_expires_at=None)
        )
        screening = session.scalars(
            select(ScreeningRow)
            .join(ObjectRow, ObjectRow.screening_id == ScreeningRow.id)
            .join(DeliveryRow, DeliveryRow.object_id == ObjectRow.id)
            .where(DeliveryRow.id == parcel.delivery_id, ScreeningRow.state == State.REPORTED)
            .with_for_update(of=ScreeningRow)
        ).one_or_none()
        if screening is None:
            return
        states = set(
            session.scalars(
                select(DeliveryRow.state)
                .join(ObjectRow, ObjectRow.id == DeliveryRow.object_id)
                .where(ObjectRow.screening_id == screening.id)
            )
        )
        if DeliveryState.PENDING in states:
            return
        if DeliveryState.REJECTED in states:
            change_state(
                session,
                screening.id,
                screening.attempt,
                State.REPORTED,
                State.FAILED,
                reason="delivery_rejected",
                detail=detail,
            )
        else:
            change_state(session, screening.id, screening.attempt, State.REPORTED, State.DELIVERED)

    @staticmethod
    def _log(session: Session, parcel: Parcel, status: int | None, detail: str | None) -> None:
        session.add(
            DeliveryTryRow(
                delivery_id=parcel.delivery_id, status=status, detail=detail[:200] if detail else None, at=db_now()
            )
        )
