"""The node's own objects as the ledger knows them: each with its deliveries, their tries and their proofs."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, TypeVar

from pynetdicom.status import STORAGE_SERVICE_CLASS_STATUS
from sqlalchemy import func, select

from dicom_node.domain import ObjectKind
from dicom_node.explanation import Delivery, Made, Request, Transaction, Try
from dicom_node.outbox import OPEN
from dicom_node.tables import (
    CommitmentItemRow,
    CommitmentRow,
    DeliveryRow,
    DeliveryTryRow,
    InstanceRow,
    ObjectRow,
    ReportRow,
    RetractionRow,
    ScreeningRow,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session

_Value = TypeVar("_Value")


def of_screenings(session: Session, screening_ids: Iterable[int]) -> Mapping[int, tuple[Made, ...]]:
    """By screening, the objects that were made of it; without its maps."""
    found = _made(session, ObjectRow.screening_id.in_(screening_ids) & (ObjectRow.kind != ObjectKind.MAP))
    return grouped((row.screening_id or 0, made) for row, made in found)


def of_reports(session: Session, report_ids: Iterable[int]) -> Mapping[int, tuple[Made, ...]]:
    """By report, its objects."""
    found = _made(session, ObjectRow.report_id.in_(report_ids))
    return grouped((row.report_id or 0, made) for row, made in found)


def notes_of(session: Session, retraction_ids: Iterable[int]) -> Mapping[int, tuple[Made, ...]]:
    """By retraction, its rejection notes: destinations that hold different objects have different ones."""
    alone = ObjectRow.screening_id.is_(None) & (ObjectRow.kind == ObjectKind.NOTE)  # of these there are few: an index
    found = _made(session, alone & ObjectRow.retraction_id.in_(retraction_ids))
    return grouped((row.retraction_id or 0, made) for row, made in found)


def transaction(session: Session, commitment: CommitmentRow) -> Transaction:
    """The request for storage commitment, and what it was for."""
    wanted = (
        select(DeliveryRow.object_id)
        .join(CommitmentItemRow, CommitmentItemRow.delivery_id == DeliveryRow.id)
        .where(CommitmentItemRow.commitment_id == commitment.id)
    )
    found = _made(session, ObjectRow.id.in_(session.scalars(wanted).all()), commitment.destination)
    return Transaction(_request(commitment), tuple(made for _, made in found))


def _made(
    session: Session, condition: ColumnElement[bool], destination: str | None = None
) -> Sequence[tuple[ObjectRow, Made]]:
    """Objects in the order in which they were made, with their deliveries, or that to one destination."""
    study = func.coalesce(
        ReportRow.study_instance_uid, InstanceRow.study_instance_uid, RetractionRow.study_instance_uid
    )
    rows = (
        session.execute(
            select(ObjectRow, study)
            .outerjoin(ReportRow, ReportRow.id == ObjectRow.report_id)
            .outerjoin(ScreeningRow, ScreeningRow.id == ObjectRow.screening_id)
            .outerjoin(InstanceRow, InstanceRow.id == ScreeningRow.instance_id)
            .outerjoin(RetractionRow, RetractionRow.id == ObjectRow.retraction_id)
            .where(condition)
            .order_by(ObjectRow.id)
        )
        .tuples()
        .all()
    )
    deliveries = _deliveries(session, [row.id for row, _ in rows], destination)
    return [
        (
            row,
            Made(
                kind=row.kind,
                study_instance_uid=study_uid,
                sop_class_uid=row.sop_class_uid or "",
                sop_instance_uid=row.sop_instance_uid or "",
                path=row.path,
                sha256=row.sha256,
                made_at=row.created_at,
                retraction=row.retraction_id,
                deliveries=deliveries.get(row.id, ()),
            ),
        )
        for row, study_uid in rows
    ]


def _deliveries(
    session: Session, object_ids: Sequence[int], destination: str | None
) -> Mapping[int, tuple[Delivery, ...]]:
    wanted = select(DeliveryRow).where(DeliveryRow.object_id.in_(object_ids)).order_by(DeliveryRow.id)
    if destination is not None:
        wanted = wanted.where(DeliveryRow.destination == destination)
    rows = session.scalars(wanted).all()
    keys = [row.id for row in rows]
    tries, requests = _tries(session, keys), _requests(session, keys)
    return grouped(
        (
            row.object_id,
            Delivery(
                destination=row.destination,
                state=row.state,
                tries=row.tries,
                proofs=row.proofs,
                due_at=row.not_before if row.state in OPEN else None,
                log=tries.get(row.id, ()),
                commitments=requests.get(row.id, ()),
            ),
        )
        for row in rows
    )


def _tries(session: Session, delivery_ids: Sequence[int]) -> Mapping[int, tuple[Try, ...]]:
    rows = session.scalars(
        select(DeliveryTryRow).where(DeliveryTryRow.delivery_id.in_(delivery_ids)).order_by(DeliveryTryRow.id)
    )
    return grouped((row.delivery_id, Try(row.at, row.status, _meaning(row.status), row.detail)) for row in rows)


def _requests(session: Session, delivery_ids: Sequence[int]) -> Mapping[int, tuple[Request, ...]]:
    items = (
        session.execute(
            select(CommitmentItemRow.delivery_id, CommitmentItemRow.commitment_id)
            .where(CommitmentItemRow.delivery_id.in_(delivery_ids))
            .order_by(CommitmentItemRow.commitment_id)
        )
        .tuples()
        .all()
    )
    rows = session.scalars(select(CommitmentRow).where(CommitmentRow.id.in_({key for _, key in items})))
    requests = {row.id: _request(row) for row in rows}
    return grouped((delivery_id, requests[key]) for delivery_id, key in items)


def _request(row: CommitmentRow) -> Request:
    return Request(row.transaction_uid, row.destination, row.requested_at, row.answered_at)


def _meaning(status: int | None) -> str | None:
    if status is None or status not in STORAGE_SERVICE_CLASS_STATUS:
        return None
    category, told = STORAGE_SERVICE_CLASS_STATUS[status]
    return f"{category}: {told}" if told else category


def grouped(pairs: Iterable[tuple[int, _Value]]) -> dict[int, tuple[_Value, ...]]:
    """The values by key, in their order."""
    found: defaultdict[int, list[_Value]] = defaultdict(list)
    for key, value in pairs:
        found[key].append(value)
    return {key: tuple(values) for key, values in found.items()}
