"""Archived results on their way to the destinations: the ledger's outbox.

Each object has one row per destination. A row is leased while it is sent, is tried again after a pause that doubles,
and ends as `sent` or, where trying again cannot help, as `rejected`. When no row of a screening is pending, the
screening is `delivered`, or `failed` where any was rejected.

Several processes may deliver. One of them at a time has a destination, so that its objects leave in order and a peer
that hangs holds one process only. A row names its holder; who lost its lease changes nothing but this: what was sent
is sent.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, or_, select, update

from dicom_node.domain import DeliveryState, LostLeaseError, State
from dicom_node.ledger import change_state
from dicom_node.tables import DeliveryRow, DeliveryTryRow, ObjectRow, ScreeningRow, db_now

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement, Update
    from sqlalchemy.orm import Session

    from dicom_node.database import Database
    from dicom_node.domain import DeliveryError

_RELEASED: dict[str, Any] = {"lease_expires_at": None, "holder": None}


@dataclass(frozen=True, slots=True)
class Parcel:
    """One object that is due at one destination, leased to `holder`."""

    delivery_id: int
    holder: str
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

    def claim(self, holder: str, limit: int, lease_s: float) -> list[Parcel]:
        """At most `limit` due objects of one destination that nobody else serves now, oldest first, leased to `holder`.

        The destination is the one whose object has been due for the longest time.
        """
        due = (DeliveryRow.state == DeliveryState.PENDING, DeliveryRow.not_before <= db_now())
        served = select(DeliveryRow.destination).where(
            DeliveryRow.state == DeliveryState.PENDING, DeliveryRow.lease_expires_at >= db_now()
        )
        first = (
            select(DeliveryRow.destination)
            .where(*due, DeliveryRow.destination.not_in(served))
            .order_by(DeliveryRow.not_before, DeliveryRow.id)
            .limit(1)
        )
        with self._database.read() as session:
            if session.scalar(first) is None:
                return []
        with self._database.write(alone="outbox") as session:  # or two would find the same destination free
            rows = session.execute(
                select(DeliveryRow, ObjectRow)
                .join(ObjectRow, ObjectRow.id == DeliveryRow.object_id)
                .where(*due, DeliveryRow.destination == session.scalar(first))
                .order_by(DeliveryRow.id)
                .limit(limit)
                .with_for_update(of=DeliveryRow, skip_locked=True)
            ).tuples()
            parcels = [
                Parcel(
                    delivery_id=row.id,
                    holder=holder,
                    destination=row.destination,
                    path=produced.path,
                    sop_class_uid=produced.sop_class_uid or "",
                    sop_instance_uid=produced.sop_instance_uid or "",
                    tries=row.tries,
                )
                for row, produced in rows
            ]
            keys = [parcel.delivery_id for parcel in parcels]
            session.execute(
                update(DeliveryRow)
                .where(DeliveryRow.id.in_(keys))
                .values(holder=holder, lease_expires_at=db_now(lease_s))
                .execution_options(synchronize_session=False)
            )
            return parcels

    def sent(self, parcel: Parcel, status: int) -> None:
        """The destination answered Success or a warning: the object stands there, whoever holds the row by now."""
        with self._database.write() as session:
            self._log(session, parcel, status, None)
            self._close(session, parcel, DeliveryState.SENT, None, DeliveryRow.state == DeliveryState.PENDING)

    def not_sent(self, parcel: Parcel, error: DeliveryError) -> None:
        """The try is recorded; the object is due again after a pause, or rejected where the error is permanent.

        Nothing is where the parcel's lease was lost.
        """
        with self._database.write() as session:
            if error.permanent:
                closed = self._close(session, parcel, DeliveryState.REJECTED, str(error), *_held(parcel))
            else:
                pause_s = min(self._retry_max_s, self._retry_base_s * 2 ** min(parcel.tries, 16))
                closed = _changes(
                    session,
                    update(DeliveryRow)
                    .where(DeliveryRow.id == parcel.delivery_id, *_held(parcel))
                    .values(
                        tries=parcel.tries + 1,
                        not_before=db_now(pause_s * random.uniform(0.8, 1.2)),  # noqa: S311 - jitter, no secret
                        **_RELEASED,
                    ),
                )
            if closed:
                self._log(session, parcel, error.status, str(error))

    def give_back(self, parcels: Sequence[Parcel]) -> None:
        """The parcels that are still the holder's are due again, untried."""
        with self._database.write() as session:
            for parcel in parcels:
                _changes(
                    session,
                    update(DeliveryRow).where(DeliveryRow.id == parcel.delivery_id, *_held(parcel)).values(**_RELEASED),
                )

    def renew(self, parcels: Sequence[Parcel], lease_s: float) -> None:
        """The caller holds the parcels for `lease_s` seconds from now, as far as they are still its own.

        Raises
        ------
        LostLeaseError
            Where none of them is.
        """
        if not parcels:
            return
        keys = [parcel.delivery_id for parcel in parcels]
        with self._database.write() as session:
            held = update(DeliveryRow).where(DeliveryRow.id.in_(keys), *_held(parcels[0]))
            if not _changes(session, held.values(lease_expires_at=db_now(lease_s))):
                raise LostLeaseError(f"{len(parcels)} objects for {parcels[0].destination} lost their lease")

    def postpone(self, destination: str) -> None:
        """The peer is out of reach: none of its objects is tried before its latest pause is over.

        Those that somebody sends at this moment are left alone.
        """
        pending = (DeliveryRow.destination == destination, DeliveryRow.state == DeliveryState.PENDING)
        free = or_(DeliveryRow.lease_expires_at.is_(None), DeliveryRow.lease_expires_at < db_now())
        with self._database.write() as session:
            until = session.scalar(select(func.max(DeliveryRow.not_before)).where(*pending))
            rows = select(DeliveryRow.id).where(*pending, free).order_by(DeliveryRow.id)
            session.execute(
                update(DeliveryRow)
                .where(DeliveryRow.id.in_(rows.with_for_update(skip_locked=True)))
                .values(not_before=until)
                .execution_options(synchronize_session=False)
            )

    def recover(self) -> None:
        """What a dead process held is due again: only where the caller is the only one that delivers."""
        with self._database.write() as session:
            session.execute(update(DeliveryRow).values(**_RELEASED))

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
        self,
        session: Session,
        parcel: Parcel,
        state: DeliveryState,
        detail: str | None,
        *conditions: ColumnElement[bool],
    ) -> bool:
        """The row ended, and its screening where it was the last; False where the conditions do not hold."""
        ended = update(DeliveryRow).where(DeliveryRow.id == parcel.delivery_id, *conditions)
        if not _changes(session, ended.values(state=state, tries=parcel.tries + 1, **_RELEASED)):
            return False
        # The screening is locked before its rows are looked at: of two that close the last rows at the same time, the
        # second sees what the first has committed.
        screening = session.scalars(
            select(ScreeningRow)
            .join(ObjectRow, ObjectRow.screening_id == ScreeningRow.id)
            .join(DeliveryRow, DeliveryRow.object_id == ObjectRow.id)
            .where(DeliveryRow.id == parcel.delivery_id, ScreeningRow.state == State.REPORTED)
            .with_for_update(of=ScreeningRow)
        ).one_or_none()
        if screening is None:
            return True
        states = set(
            session.scalars(
                select(DeliveryRow.state)
                .join(ObjectRow, ObjectRow.id == DeliveryRow.object_id)
                .where(ObjectRow.screening_id == screening.id)
            )
        )
        if DeliveryState.PENDING in states:
            return True
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
        return True

    @staticmethod
    def _log(session: Session, parcel: Parcel, status: int | None, detail: str | None) -> None:
        session.add(
            DeliveryTryRow(
                delivery_id=parcel.delivery_id, status=status, detail=detail[:200] if detail else None, at=db_now()
            )
        )


def _held(parcel: Parcel) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """Whether the parcel's row still waits and is still its holder's."""
    return DeliveryRow.state == DeliveryState.PENDING, DeliveryRow.holder == parcel.holder


def _changes(session: Session, statement: Update) -> bool:
    return bool(session.execute(statement).rowcount)  # type: ignore[attr-defined]
