"""Requests for storage commitment in the ledger, and what peers answered: the proof that objects are there.

A request stands in the ledger before the peer hears of it, for its report may come before its answer; each attempt has
a Transaction UID of its own. A report counts whoever hears it, however late, and however often.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydicom.uid import generate_uid
from sqlalchemy import select, update

from dicom_node.commitment import FailureReason, Remedy, remedy_of
from dicom_node.domain import DeliveryState
from dicom_node.outbox import RELEASED, changes, log_try, settle
from dicom_node.tables import CommitmentItemRow, CommitmentRow, DeliveryRow, ObjectRow, db_now

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

    from dicom_node.commitment import CommitmentReport
    from dicom_node.database import Database
    from dicom_node.outbox import Parcel

MOST_SENDS = 5  # of an object that a peer takes and then has not got
_UNPROVEN = (DeliveryState.SENT, DeliveryState.UNPROVEN, DeliveryState.READ_BACK)


class Proofs:
    """Queries and transitions of storage commitment."""

    def __init__(self, database: Database, *, retry_base_s: float) -> None:
        self._database = database
        self._retry_base_s = retry_base_s

    def request(self, parcels: Sequence[Parcel], wait_s: float) -> str:
        """A transaction for these objects of one destination is in the ledger; returns its UID.

        The objects are left alone for `wait_s` seconds, which the peer has for its report.
        """
        transaction_uid = str(generate_uid(prefix=None))
        with self._database.write() as session:
            row = CommitmentRow(
                transaction_uid=transaction_uid, destination=parcels[0].destination, requested_at=db_now()
            )
            session.add(row)
            session.flush()
            for parcel in sorted(parcels, key=lambda one: one.delivery_id):  # the order in which all lock them
                session.add(CommitmentItemRow(commitment_id=row.id, delivery_id=parcel.delivery_id))
                waiting = update(DeliveryRow).where(
                    DeliveryRow.id == parcel.delivery_id, DeliveryRow.state == DeliveryState.SENT
                )
                changes(session, waiting.values(proofs=parcel.proofs + 1, not_before=db_now(wait_s), **RELEASED))
        return transaction_uid

    def is_answered(self, transaction_uid: str) -> bool:
        """Whether a report has come."""
        query = select(CommitmentRow.answered_at).filter_by(transaction_uid=transaction_uid)
        with self._database.read() as session:
            return session.scalar(query) is not None

    def answered(self, report: CommitmentReport) -> bool:
        """What the report says is in the ledger; False where the transaction is none of ours.

        What is committed is so for good. What the peer has not got is sent again, and rejected in the end; what it
        cannot answer now is asked again.
        """
        with self._database.write(alone="outbox") as session:
            commitment = session.scalar(select(CommitmentRow).filter_by(transaction_uid=report.transaction_uid))
            if commitment is None:
                return False
            commitment.answered_at = db_now()
            session.flush()
            rows = session.execute(
                select(DeliveryRow, ObjectRow.sop_instance_uid)
                .join(CommitmentItemRow, CommitmentItemRow.delivery_id == DeliveryRow.id)
                .join(ObjectRow, ObjectRow.id == DeliveryRow.object_id)
                .where(CommitmentItemRow.commitment_id == commitment.id, DeliveryRow.state.in_(_UNPROVEN))
                .order_by(DeliveryRow.id)
                .with_for_update(of=DeliveryRow)
            ).tuples()
            committed, ended = set(report.committed), []
            for row, found in rows:
                uid = found or ""
                if uid in committed:
                    row.state, row.lease_expires_at, row.holder = DeliveryState.COMMITTED, None, None
                    ended.append(row.id)
                elif uid in report.failed and row.state == DeliveryState.SENT:
                    ended += self._failed(session, row, report.failed[uid])
            session.flush()
            settle(session, ended, "the destination did not commit to the object")
            return True

    def _failed(self, session: Session, row: DeliveryRow, reason: int) -> list[int]:
        """The delivery's next step is in the ledger; returns its id where there is none."""
        remedy = remedy_of(reason)
        name = (
            FailureReason(reason).name.lower().replace("_", " ") if reason in set(FailureReason) else "unknown reason"
        )
        log_try(session, row.id, None, f"not committed: 0x{reason:04X}, {name}")
        row.lease_expires_at = row.holder = None
        if remedy is Remedy.NONE or (remedy is Remedy.SEND_AGAIN and row.tries >= MOST_SENDS):
            row.state = DeliveryState.REJECTED
            return [row.id]
        if remedy is Remedy.SEND_AGAIN:
            row.state = DeliveryState.PENDING
        row.not_before = db_now(self._retry_base_s * 2 ** min(row.tries, 8))
        return []
