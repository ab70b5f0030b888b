"""What workers do to the ledger: claim a screening, write what became of it, give it back.

A claim is a lease with an attempt number, on the database's clock. Every write of a claim is an UPDATE that names the
attempt: a worker that lost its lease changes nothing. `predicted` keeps its state when its lease runs out, so that
the network never runs twice for one image.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Select, func, or_, select, update

from dicom_node import predictions
from dicom_node.bundle import parse_manifest
from dicom_node.config import Worklist
from dicom_node.domain import LostLeaseError, Prediction, Purpose, State
from dicom_node.outbox import enqueue
from dicom_node.releases import newest_thresholds
from dicom_node.tables import InstanceRow, ReleaseRow, ScreeningRow, db_now
from dicom_node.transitions import log_transition
from dicom_node.worklist.arrivals import move_up

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.orm import Session

    from dicom_node.archive import ArchivedFile, Product
    from dicom_node.bundle import Manifest
    from dicom_node.database import Database
    from dicom_node.domain import DeclineReason, NodeError
    from dicom_node.predictions import StoredPrediction

_CLAIMABLE = (State.PREDICTED, State.WAITING)  # what was begun goes first
_HELD = (State.CLAIMED, State.PREDICTED)
_RELEASED: dict[str, Any] = {"lease_expires_at": None, "worker": None}


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to write to one screening, until another attempt is made at it.

    Attributes
    ----------
    thresholds
        The site's newest ones for the release that is asked for, by target; the bundle's own count for the others.
    delivers
        Whether its results were to go to the destinations when it was claimed: it may have become live since.
    """

    screening_id: int
    attempt: int
    state: State
    path: str
    manifest_json: str = field(repr=False)
    calling_ae_title: str = ""
    thresholds: Mapping[str, float] = field(default_factory=dict)
    purpose: Purpose = Purpose.LIVE
    delivers: bool = True

    @property
    def manifest(self) -> Manifest:
        """The manifest of the release that is asked for, as the ledger keeps it."""
        return parse_manifest(self.manifest_json)


class Claims:
    """Queries and transitions of the screenings that workers hold; `policy` says what moves a study up."""

    def __init__(self, database: Database, policy: Worklist | None = None) -> None:
        self._database = database
        self._policy = policy or Worklist()

    def explain(self, error: SQLAlchemyError) -> NodeError:
        """What an error of the database means, in one line that holds no row."""
        return self._database.explain(error)

    def claim(self, worker: str, lease_s: float) -> Claim | None:
        """The oldest screening that waits for a worker, live ones first, leased to `worker`; None where none waits."""
        return next(iter(self.claim_batch(worker, lease_s, 1)), None)

    def claim_batch(self, worker: str, lease_s: float, limit: int) -> list[Claim]:
        """At most `limit` screenings that wait for a worker, live ones first, then by age, leased to `worker`.

        One that has failed before comes alone, and purposes are not mixed: nothing is decoded, or drawn, before a live
        one that is less urgent. Each is screened by the release that is active now.
        """
        with self._database.read() as session:
            if session.scalar(select(ScreeningRow.id).where(*_is_due()).limit(1)) is None:
                return []
        keys: list[int] = []
        with self._database.write() as session:
            batch_is_of: Purpose | None = None
            for purpose, state in product(Purpose, _CLAIMABLE):  # one at a time: so an index gives the order
                if batch_is_of not in (None, purpose):
                    break
                waiting = (
                    select(ScreeningRow.id, ScreeningRow.failures)
                    .where(ScreeningRow.state == state, ScreeningRow.purpose == purpose, *_is_due())
                    .order_by(ScreeningRow.id)
                    .limit(limit - len(keys))
                    .with_for_update(skip_locked=True)
                )
                for key, failures in session.execute(waiting).tuples():
                    if failures and keys:  # what may take its worker down is held alone, or others would fall with it
                        return self._take_all(session, keys, worker, lease_s)
                    keys.append(key)
                    batch_is_of = purpose
                    if failures or len(keys) == limit:
                        return self._take_all(session, keys, worker, lease_s)
            return self._take_all(session, keys, worker, lease_s)

    def _take_all(self, session: Session, keys: Sequence[int], worker: str, lease_s: float) -> list[Claim]:
        active = session.scalar(select(ReleaseRow.id).filter_by(active=True))
        thresholds: dict[int, Mapping[str, float]] = {}  # of each release that the batch asks for
        return [self._take(session, key, worker, lease_s, active, thresholds) for key in keys]

    @staticmethod
    def _take(
        session: Session,
        screening_id: int,
        worker: str,
        lease_s: float,
        active_release: int | None,
        thresholds: dict[int, Mapping[str, float]],
    ) -> Claim:
        screening = session.get_one(ScreeningRow, screening_id)
        attempt, release_id = screening.attempt + 1, screening.release_id
        state = State(screening.state)
        if state is State.WAITING:
            log_transition(session, screening.id, state, State.CLAIMED, attempt)
            state = State.CLAIMED
            if active_release is not None:
                release_id = active_release  # it may have been claimed when the release changed, and given back since
        session.execute(
            update(ScreeningRow)
            .where(ScreeningRow.id == screening.id, ScreeningRow.attempt == screening.attempt)
            .values(
                state=state, attempt=attempt, release_id=release_id, worker=worker, lease_expires_at=db_now(lease_s)
            )
        )
        instance = session.get_one(InstanceRow, screening.instance_id)
        release = session.get_one(ReleaseRow, release_id)
        if release_id not in thresholds:
            thresholds[release_id] = newest_thresholds(session, release_id)
        return Claim(
            screening_id=screening.id,
            attempt=attempt,
            state=state,
            path=instance.path or "",
            manifest_json=release.manifest,
            calling_ae_title=instance.calling_ae_title,
            thresholds=thresholds[release_id],
            purpose=Purpose(screening.purpose),
            delivers=screening.delivers,
        )

    def live_waits(self) -> bool:
        """Whether a live screening waits for a worker: what is less urgent lets it go first."""
        live = select(ScreeningRow.id).where(ScreeningRow.purpose == Purpose.LIVE, *_is_due()).limit(1)
        with self._database.read() as session:
            return session.scalar(live) is not None

    def waiting(self) -> dict[Purpose, int]:
        """How many screenings a worker could claim now."""
        query = select(ScreeningRow.purpose, func.count()).where(*_is_due()).group_by(ScreeningRow.purpose)
        with self._database.read() as session:
            return {Purpose(purpose): count for purpose, count in session.execute(query).tuples()}

    def renew(self, claim: Claim, lease_s: float) -> None:
        """The lease runs `lease_s` seconds from now.

        Raises
        ------
        LostLeaseError
            Where the claim is no longer the holder's.
        """
        with self._database.write() as session:
            self._write_claim(session, claim, _HELD, lease_expires_at=db_now(lease_s))

    def save_prediction(self, claim: Claim, prediction: Prediction, maps_file: ArchivedFile | None) -> None:
        """The prediction stands in the ledger and the screening is `predicted`, still leased to the claim.

        `maps_file` holds its maps.
        """
        with self._database.write() as session:
            self._move(session, claim, State.CLAIMED, State.PREDICTED, remarks=list(prediction.remarks))
            predictions.save(session, claim.screening_id, prediction, maps_file)
            move_up(session, claim.screening_id, self._policy)

    def load_prediction(self, claim: Claim) -> StoredPrediction:
        """The prediction that the ledger holds for the claim's screening."""
        with self._database.read() as session:
            return predictions.load(session, claim.screening_id, claim.manifest)

    def save_heatmap(self, claim: Claim, heatmap: Product, destinations: Sequence[str], notes: Sequence[str]) -> None:
        """The heatmap is recorded and due at the destinations; the screening is `reported`, to be told of by its study.

        One that does not deliver is `withheld`, and ends so. `notes` say what had to be put right in the header.
        """
        with self._database.write() as session:
            delivers = _delivers(session, claim)
            self._move(session, claim, State.PREDICTED, State.REPORTED if delivers else State.WITHHELD, **_RELEASED)
            enqueue(session, heatmap, destinations if delivers else (), screening_id=claim.screening_id)
            if notes:
                screening = session.get_one(ScreeningRow, claim.screening_id)
                session.get_one(InstanceRow, screening.instance_id).notes = list(notes)

    def withhold(self, claim: Claim) -> None:
        """A screening that does not deliver ends with its prediction; one that became live is to be claimed again."""
        with self._database.write() as session:
            state = State.PREDICTED if _delivers(session, claim) else State.WITHHELD
            self._move(session, claim, State.PREDICTED, state, **_RELEASED)

    def decline(self, claim: Claim, reason: DeclineReason, detail: str) -> None:
        """The screening is `declined` by what its pixels show."""
        with self._database.write() as session:
            self._move(session, claim, claim.state, State.DECLINED, reason=reason, detail=detail[:400], **_RELEASED)

    def fail(self, claim: Claim, error: NodeError) -> None:
        """The screening is `failed` for good."""
        with self._database.write() as session:
            self._fail(session, claim, error.reason, str(error))

    def give_back(self, claim: Claim, detail: str, *, pause_s: float) -> None:
        """The screening waits again, uncounted, for the fault was not its own; others go first for `pause_s`."""
        with self._database.write() as session:
            self._give_back(session, claim, detail, pause_s)

    def give_back_all(self, claims: Sequence[Claim], detail: str, *, pause_s: float) -> None:
        """The same of many at once; nothing of those that are another's by now."""
        with self._database.write() as session:
            for claim in claims:
                with contextlib.suppress(LostLeaseError):
                    self._give_back(session, claim, detail, pause_s)

    def _give_back(self, session: Session, claim: Claim, detail: str, pause_s: float) -> None:
        old = _state(session, claim)
        values = {"detail": detail[:400], "not_before": db_now(pause_s) if pause_s else None}
        self._move(session, claim, old, _after_claim(old), **values, **_RELEASED)

    def count_failure(
        self, claim: Claim, detail: str, *, max_failures: int, pause_s: float, reason: str = "attempts_exhausted"
    ) -> None:
        """The screening waits again after a pause that doubles, or is `failed` after `max_failures` of them."""
        with self._database.write() as session:
            failures = session.get_one(ScreeningRow, claim.screening_id).failures + 1
            if failures >= max_failures:
                self._fail(session, claim, reason, detail, failures=failures)
                return
            old = _state(session, claim)
            values = {"detail": detail[:400], "failures": failures, "not_before": db_now(pause_s * 2 ** (failures - 1))}
            self._move(session, claim, old, _after_claim(old), **values, **_RELEASED)

    def _fail(self, session: Session, claim: Claim, reason: str, detail: str, **values: Any) -> None:
        values |= {"reason": reason[:64], "detail": detail[:400]}
        self._move(session, claim, _state(session, claim), State.FAILED, **values, **_RELEASED)

    def _move(self, session: Session, claim: Claim, old: State, new: State, **values: Any) -> None:
        self._write_claim(session, claim, (old,), state=new, **values)
        if old != new:
            log_transition(session, claim.screening_id, old, new, claim.attempt)

    @staticmethod
    def _write_claim(session: Session, claim: Claim, states: tuple[State, ...], **values: Any) -> None:
        held = (
            update(ScreeningRow)
            .where(
                ScreeningRow.id == claim.screening_id,
                ScreeningRow.attempt == claim.attempt,
                ScreeningRow.state.in_(states),
                ScreeningRow.lease_expires_at.is_not(None),
            )
            .values(**values)
        )
        if session.execute(held).rowcount != 1:  # type: ignore[attr-defined]
            raise LostLeaseError(f"screening {claim.screening_id}: attempt {claim.attempt} lost its lease")

    def expire_leases(self, max_failures: int) -> int:
        """Every claim whose lease ran out is given back, or failed after `max_failures`. Returns the count."""
        return self._take_back(
            select(ScreeningRow).where(ScreeningRow.lease_expires_at < db_now()), 1, max_failures, "lease expired"
        )

    def recover(self) -> int:
        """Every claim is given back at once, uncounted: only at the start of a node that alone owns the ledger."""
        return self._take_back(
            select(ScreeningRow).where(
                or_(ScreeningRow.lease_expires_at.is_not(None), ScreeningRow.state == State.CLAIMED)
            ),
            0,
            None,
            "the node was restarted",
        )

    def _take_back(
        self, lost: Select[tuple[ScreeningRow]], failures: int, max_failures: int | None, detail: str
    ) -> int:
        with self._database.write() as session:
            rows = session.scalars(lost.with_for_update(skip_locked=True)).all()
            for row in rows:
                old = State(row.state)
                row.failures += failures
                row.lease_expires_at = row.worker = None
                row.detail = detail
                if max_failures is not None and row.failures >= max_failures:
                    row.state, row.reason = State.FAILED, "attempts_exhausted"
                else:
                    row.state = _after_claim(old)
                if row.state != old:
                    log_transition(session, row.id, old, State(row.state), row.attempt)
            return len(rows)


def _is_due() -> tuple[ColumnElement[bool], ...]:
    return (
        ScreeningRow.state.in_(_CLAIMABLE),
        ScreeningRow.lease_expires_at.is_(None),
        or_(ScreeningRow.not_before.is_(None), ScreeningRow.not_before <= db_now()),
    )


def _state(session: Session, claim: Claim) -> State:
    return State(session.get_one(ScreeningRow, claim.screening_id).state)


def _delivers(session: Session, claim: Claim) -> bool:
    """As it stands, and stays until the caller's transaction ends."""
    query = select(ScreeningRow.delivers).filter_by(id=claim.screening_id).with_for_update()
    return bool(session.scalar(query))


def _after_claim(state: State) -> State:
    """Where a screening stands when nobody holds it any more: a prediction is kept."""
    return State.WAITING if state is State.CLAIMED else state
