"""Archived objects on their way to the destinations, and the proof that they are there: the ledger's outbox.

Each object has one row per destination (`dicom_node.domain.DeliveryState`). A row is leased while it is sent, and is
tried again after a pause that doubles; what no other try can help is `rejected`. What was sent is proven: by storage
commitment, else by a query, else it stays `unproven`. When no row of a screening's heatmap and report is open, the
screening is `delivered`, or `failed` where any was rejected.

Several processes may deliver. One of them at a time has a destination, so that its objects leave in order and a peer
that hangs holds one process only. A row names its holder; who lost its lease changes nothing but this: what was sent
is sent, and what a peer said of it counts whoever hears it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import case, func, or_, select, update

from dicom_node.domain import DeliveryState, LostLeaseError, ObjectKind, State
from dicom_node.tables import (
    DeliveryRow,
    DeliveryTryRow,
    InstanceRow,
    ObjectRow,
    ReportRow,
    ReportSourceRow,
    RetractionRow,
    ScreeningRow,
    db_now,
)
from dicom_node.transitions import change_state

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement, Update
    from sqlalchemy.orm import Session

    from dicom_node.archive import Product
    from dicom_node.database import Database
    from dicom_node.domain import DeliveryError

OPEN = (DeliveryState.PENDING, DeliveryState.SENT)
_LEASED = (*OPEN, DeliveryState.WITHDRAWN)  # what is withdrawn may just be on its way
RELEASED: dict[str, Any] = {"lease_expires_at": None, "holder": None}


@dataclass(frozen=True, slots=True)
class Parcel:
    """One object that is due at one destination, to be sent or to be proven there; leased to `holder`.

    Attributes
    ----------
    proofs
        How often it was asked in vain whether the object is there.
    report_id
        Of a report, which one it is.
    """

    delivery_id: int
    holder: str
    destination: str
    state: DeliveryState
    kind: ObjectKind
    path: str
    study_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    tries: int
    proofs: int
    report_id: int | None


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
        with self._database.read() as session:
            if _first_due(session) is None:
                return []
        with self._database.write(alone="outbox") as session:  # or two would find the same destination free
            keys = _oldest_due(session, _first_due(session), limit)
            parcels = [
                _parcel(row, produced, study or "", holder)
                for row, produced, study in session.execute(
                    _with_objects()
                    .where(DeliveryRow.id.in_(keys))
                    .order_by(DeliveryRow.id)
                    .with_for_update(of=DeliveryRow, skip_locked=True)
                ).tuples()
                if row.state in OPEN  # somebody may just have told how it ended
            ]
            session.execute(
                update(DeliveryRow)
                .where(DeliveryRow.id.in_([parcel.delivery_id for parcel in parcels]))
                .values(holder=holder, lease_expires_at=db_now(lease_s), tries=_with_lost_try())
                .execution_options(synchronize_session=False)
            )
            return parcels

    def is_to_be_sent(self, parcel: Parcel) -> bool:
        """Whether the object still is, by this holder: it may have been taken back, or be another's by now."""
        waits = select(DeliveryRow.id).filter_by(
            id=parcel.delivery_id, state=DeliveryState.PENDING, holder=parcel.holder
        )
        with self._database.read() as session:
            return session.scalar(waits) is not None

    def sent(self, parcel: Parcel, status: int) -> None:
        """The destination answered Success or a warning: the object is there to be proven, whoever holds the row."""
        with self._database.write() as session:
            log_try(session, parcel.delivery_id, status, None)
            changes(
                session,
                update(DeliveryRow)
                .where(DeliveryRow.id == parcel.delivery_id, DeliveryRow.state == DeliveryState.PENDING)
                .values(state=DeliveryState.SENT, tries=parcel.tries + 1, proofs=0),
            )
            changes(session, _withdrawn(parcel).values(**RELEASED))

    def not_sent(self, parcel: Parcel, error: DeliveryError) -> None:
        """The try is recorded; the object is due again after a pause, or rejected where the error is permanent.

        Nothing is where the parcel's lease was lost.
        """
        with self._database.write() as session:
            if error.permanent:
                values = {"state": DeliveryState.REJECTED, "tries": parcel.tries + 1}
            else:
                values = {"tries": parcel.tries + 1, "not_before": db_now(self._pause_s(parcel.tries))}
            held = update(DeliveryRow).where(
                DeliveryRow.id == parcel.delivery_id,
                DeliveryRow.state == DeliveryState.PENDING,
                DeliveryRow.holder == parcel.holder,
            )
            if changes(session, held.values(**values, **RELEASED)):
                log_try(session, parcel.delivery_id, error.status, str(error))
                if error.permanent:
                    settle(session, [parcel.delivery_id], str(error))
            changes(session, _withdrawn(parcel).values(**RELEASED))

    def proven(self, parcel: Parcel, state: DeliveryState, detail: str | None = None) -> None:
        """It is known how far the object that was sent can be proven to be there."""
        with self._database.write() as session:
            ended = update(DeliveryRow).where(
                DeliveryRow.id == parcel.delivery_id, DeliveryRow.state == DeliveryState.SENT
            )
            if changes(session, ended.values(state=state, **RELEASED)):
                if detail:
                    log_try(session, parcel.delivery_id, None, detail)
                settle(session, [parcel.delivery_id])

    def ask_again(self, parcel: Parcel, detail: str, *, reached: bool = True) -> None:
        """It was asked in vain whether the object is there; that is asked again after a pause.

        Where the peer was not `reached` nobody was asked: it does not count, and the pause grows with the time since
        the object was sent.
        """
        with self._database.write() as session:
            waiting = update(DeliveryRow).where(
                DeliveryRow.id == parcel.delivery_id, DeliveryRow.state == DeliveryState.SENT
            )
            pause_s = self._pause_s(parcel.proofs) if reached else self._pause_since_s(session, parcel)
            values = {"proofs": parcel.proofs + reached, "not_before": db_now(pause_s)}
            if changes(session, waiting.values(**values, **RELEASED)):
                log_try(session, parcel.delivery_id, None, detail)

    def give_back(self, parcels: Sequence[Parcel]) -> None:
        """The parcels that are still the holder's are due again, untried."""
        with self._database.write() as session:
            for parcel in parcels:
                held = update(DeliveryRow).where(
                    DeliveryRow.id == parcel.delivery_id, DeliveryRow.holder == parcel.holder
                )
                changes(session, held.values(**RELEASED))

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
            if not changes(session, held.values(lease_expires_at=db_now(lease_s))):
                raise LostLeaseError(f"{len(parcels)} objects for {parcels[0].destination} lost their lease")

    def postpone(self, destination: str, tried: Sequence[Parcel] = ()) -> None:
        """The peer is out of reach: none of its objects is tried, or asked for, before its latest pause is over.

        That is the latest of those that are to be sent and of those that were `tried`. Those that somebody sends at
        this moment are left alone.
        """
        keys = [parcel.delivery_id for parcel in tried]
        with self._database.write() as session:
            until = session.scalar(
                select(func.max(DeliveryRow.not_before)).where(
                    DeliveryRow.destination == destination,
                    or_(
                        DeliveryRow.state == DeliveryState.PENDING,
                        (DeliveryRow.state == DeliveryState.SENT) & DeliveryRow.id.in_(keys),
                    ),
                )
            )
            _postpone(session, destination, until)

    def rest(self, destination: str) -> None:
        """None of the objects is tried for half a first pause: before any that was tried in vain now.

        Those that somebody sends at this moment are left alone.
        """
        with self._database.write() as session:
            _postpone(session, destination, session.scalar(select(db_now(self._retry_base_s / 2))))

    def send_again(
        self, *, destination: str | None = None, study_instance_uid: str | None = None, failed_only: bool = False
    ) -> int:
        """What was rejected, or could not be proven, is due once more; returns how many objects that are.

        With a study, all of its objects are that were not withdrawn, wherever they stand, unless `failed_only`. A
        repeated send is the same object under the same UID.
        """
        ended = [DeliveryState.REJECTED, DeliveryState.UNPROVEN]
        if study_instance_uid is not None and not failed_only:
            ended += [DeliveryState.COMMITTED, DeliveryState.READ_BACK]
        stands = or_(ObjectRow.retraction_id.is_(None), ObjectRow.kind == ObjectKind.NOTE)
        found = _with_objects().where(DeliveryRow.state.in_(ended), stands)
        if destination is not None:
            found = found.where(DeliveryRow.destination == destination)
        if study_instance_uid is not None:
            found = found.where(_study() == study_instance_uid)
        with self._database.write(alone="outbox") as session:
            keys = [row.id for row, _, _ in session.execute(found).tuples()]
            session.execute(
                update(DeliveryRow)
                .where(DeliveryRow.id.in_(keys))
                .values(state=DeliveryState.PENDING, tries=0, proofs=0, not_before=db_now(), **RELEASED)
                .execution_options(synchronize_session=False)
            )
            for screening in _screenings(session, keys):
                if screening.state == State.FAILED and screening.reason == REJECTED:
                    change_state(
                        session, screening.id, screening.attempt, State.FAILED, State.REPORTED, reason=None, detail=None
                    )
            return len(keys)

    def recover(self) -> None:
        """What a dead process held is due again: only where the caller is the only one that delivers."""
        held = update(DeliveryRow).where(DeliveryRow.state.in_(_LEASED), DeliveryRow.holder.is_not(None))
        with self._database.write() as session:
            session.execute(held.values(tries=_with_lost_try(), **RELEASED))

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
        unfinished = (*OPEN, DeliveryState.UNPROVEN, DeliveryState.REJECTED)
        latest = (
            select(func.max(DeliveryTryRow.id))
            .join(DeliveryRow, DeliveryRow.id == DeliveryTryRow.delivery_id)
            .where(DeliveryRow.state.in_(unfinished), DeliveryTryRow.detail.is_not(None))
            .group_by(DeliveryRow.destination)
        )
        query = (
            select(DeliveryRow.destination, DeliveryTryRow.detail)
            .join(DeliveryTryRow, DeliveryTryRow.delivery_id == DeliveryRow.id)
            .where(DeliveryTryRow.id.in_(latest))
        )
        with self._database.read() as session:
            return {destination: str(detail) for destination, detail in session.execute(query).tuples()}

    def _pause_since_s(self, session: Session, parcel: Parcel) -> float:
        """As long as the object has been there, between the first and the longest pause."""
        answered = select(func.max(DeliveryTryRow.at)).where(
            DeliveryTryRow.delivery_id == parcel.delivery_id, DeliveryTryRow.status.is_not(None)
        )
        at, now = session.scalar(answered), session.scalars(select(db_now())).one()
        since_s = (now - at).total_seconds() if at is not None else 0.0
        return min(self._retry_max_s, max(self._retry_base_s, since_s)) * random.uniform(0.8, 1.2)  # noqa: S311

    def _pause_s(self, times: int) -> float:
        """It doubles, and is spread: not all that failed together come back together."""
        pause_s = min(self._retry_max_s, self._retry_base_s * 2.0 ** min(times, 16))
        return pause_s * random.uniform(0.8, 1.2)  # noqa: S311 - jitter, no secret


REJECTED = "delivery_rejected"


def settle(session: Session, delivery_ids: Iterable[int], detail: str | None = None) -> None:
    """The screenings whose deliveries these are end where none of theirs is open, in the caller's transaction."""
    for screening in _screenings(session, list(delivery_ids)):
        settle_screening(session, screening, detail)


def settle_screening(session: Session, screening: ScreeningRow, detail: str | None = None) -> None:
    """A reported screening that its study's report tells of ends where no delivery of heatmap or report is open.

    The caller has locked the row: of two that close the last deliveries at the same time, the second sees what the
    first has committed.
    """
    if screening.state != State.REPORTED or screening.report_id is None:
        return
    states = set(
        session.scalars(
            select(DeliveryRow.state)
            .join(ObjectRow, ObjectRow.id == DeliveryRow.object_id)
            .where(or_(ObjectRow.screening_id == screening.id, ObjectRow.report_id == screening.report_id))
        )
    )
    if states & set(OPEN):
        return
    ends: dict[str, Any] = {"old": State.REPORTED, "new": State.DELIVERED if states else State.WITHHELD}
    if states == {DeliveryState.WITHDRAWN}:
        ends |= {"new": State.WITHHELD, "reason": "retracted"}
    if DeliveryState.REJECTED in states:
        ends |= {"new": State.FAILED, "reason": REJECTED, "detail": detail}
    change_state(session, screening.id, screening.attempt, **ends)


def _screenings(session: Session, delivery_ids: Sequence[int]) -> Sequence[ScreeningRow]:
    """Those of which the deliveries' objects tell, locked, in the order in which all lock them."""
    objects = select(ObjectRow).join(DeliveryRow, DeliveryRow.object_id == ObjectRow.id)
    objects = objects.where(DeliveryRow.id.in_(delivery_ids))
    own = objects.with_only_columns(ObjectRow.screening_id)
    told = objects.join(ReportSourceRow, ReportSourceRow.report_id == ObjectRow.report_id)
    return session.scalars(
        select(ScreeningRow)
        .where(or_(ScreeningRow.id.in_(own), ScreeningRow.id.in_(told.with_only_columns(ReportSourceRow.screening_id))))
        .order_by(ScreeningRow.id)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).all()


def enqueue(session: Session, made: Product, destinations: Sequence[str], **owner: int) -> ObjectRow:
    """The object is recorded, in the caller's transaction, and due at every destination.

    `owner` is the `screening_id`, the `report_id` or the `retraction_id` whose object it is.
    """
    row = ObjectRow(
        kind=made.kind,
        name=made.sop_class_uid if made.kind is ObjectKind.REPORT else made.kind,
        sop_class_uid=made.sop_class_uid,
        sop_instance_uid=made.sop_instance_uid,
        path=made.file.path,
        sha256=made.file.sha256,
        created_at=db_now(),
        **owner,
    )
    session.add(row)
    session.flush()
    for destination in destinations:
        session.add(
            DeliveryRow(object_id=row.id, destination=destination, state=DeliveryState.PENDING, not_before=db_now())
        )
    return row


def log_try(session: Session, delivery_id: int, status: int | None, detail: str | None) -> None:
    """What a peer answered, or why it could not be asked, in the caller's transaction."""
    session.add(
        DeliveryTryRow(delivery_id=delivery_id, status=status, detail=detail[:200] if detail else None, at=db_now())
    )


def changes(session: Session, statement: Update) -> bool:
    """Whether the statement changed a row."""
    return bool(session.execute(statement).rowcount)  # type: ignore[attr-defined]


def _first_due(session: Session) -> str | None:
    """The destination that nobody serves whose object has been due for the longest time.

    Asked by state, so that an index gives the order however long a queue has become.
    """
    # Of whatever state: who ends a delivery gives its lease up, but for what was taken back while it was on its way.
    served = select(DeliveryRow.destination).where(DeliveryRow.lease_expires_at >= db_now())
    longest: tuple[datetime, int, str] | None = None
    for state in OPEN:
        found = (
            session.execute(
                select(DeliveryRow.not_before, DeliveryRow.id, DeliveryRow.destination)
                .where(DeliveryRow.state == state, DeliveryRow.not_before <= db_now())
                .where(DeliveryRow.destination.not_in(served))
                .order_by(DeliveryRow.not_before, DeliveryRow.id)
                .limit(1)
            )
            .tuples()
            .first()
        )
        if found is not None:
            longest = min(longest or found, found)
    return None if longest is None else longest[2]


def _oldest_due(session: Session, destination: str | None, limit: int) -> list[int]:
    """The deliveries of the destination that were begun first, of those that are due."""
    found: list[int] = []
    for state in OPEN:
        found += session.scalars(
            select(DeliveryRow.id)
            .where(DeliveryRow.state == state, DeliveryRow.destination == destination)
            .where(DeliveryRow.not_before <= db_now())
            .order_by(DeliveryRow.id)
            .limit(limit)
        )
    return sorted(found)[:limit]


def _postpone(session: Session, destination: str, until: datetime | None) -> None:
    """What is open at the destination, held by nobody and due before then is due then."""
    free = or_(DeliveryRow.lease_expires_at.is_(None), DeliveryRow.lease_expires_at < db_now())
    rows = (
        select(DeliveryRow.id)
        .where(DeliveryRow.state.in_(OPEN), DeliveryRow.destination == destination)
        .where(DeliveryRow.not_before < until, free)
        .order_by(DeliveryRow.id)
    )
    session.execute(
        update(DeliveryRow)
        .where(DeliveryRow.id.in_(rows.with_for_update(skip_locked=True)))
        .values(not_before=until)
        .execution_options(synchronize_session=False)
    )


def _with_lost_try() -> ColumnElement[int]:
    """The tries of a delivery whose holder is gone: it may have sent the object, and nobody heard the answer."""
    lost = (DeliveryRow.state == DeliveryState.PENDING) & DeliveryRow.holder.is_not(None)
    return case((lost, DeliveryRow.tries + 1), else_=DeliveryRow.tries)


def _withdrawn(parcel: Parcel) -> Update:
    """The parcel's row where it was taken back while its holder sent it."""
    return update(DeliveryRow).where(
        DeliveryRow.id == parcel.delivery_id,
        DeliveryRow.state == DeliveryState.WITHDRAWN,
        DeliveryRow.holder == parcel.holder,
    )


def _study() -> ColumnElement[str]:
    """The study of an object of `_with_objects`."""
    return func.coalesce(ReportRow.study_instance_uid, InstanceRow.study_instance_uid, RetractionRow.study_instance_uid)


def _with_objects() -> Any:
    return (
        select(DeliveryRow, ObjectRow, _study())
        .join(ObjectRow, ObjectRow.id == DeliveryRow.object_id)
        .outerjoin(ReportRow, ReportRow.id == ObjectRow.report_id)
        .outerjoin(ScreeningRow, ScreeningRow.id == ObjectRow.screening_id)
        .outerjoin(InstanceRow, InstanceRow.id == ScreeningRow.instance_id)
        .outerjoin(RetractionRow, RetractionRow.id == ObjectRow.retraction_id)
    )


def _parcel(row: DeliveryRow, produced: ObjectRow, study_instance_uid: str, holder: str) -> Parcel:
    return Parcel(
        delivery_id=row.id,
        holder=holder,
        destination=row.destination,
        state=DeliveryState(row.state),
        kind=ObjectKind(produced.kind),
        path=produced.path,
        study_instance_uid=study_instance_uid,
        sop_class_uid=produced.sop_class_uid or "",
        sop_instance_uid=produced.sop_instance_uid or "",
        tries=row.tries + (row.state == DeliveryState.PENDING and row.holder is not None),  # `_with_lost_try`
        proofs=row.proofs,
        report_id=produced.report_id,
    )


def _held(parcel: Parcel) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """Whether the parcel's row is open and still its holder's."""
    return DeliveryRow.state.in_(OPEN), DeliveryRow.holder == parcel.holder
