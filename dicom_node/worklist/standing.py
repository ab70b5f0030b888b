"""How the node stands: what the operators' page, the API's status and the metrics tell. No patient data."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import func, select

from dicom_node.claims import Claims
from dicom_node.domain import DeliveryState, Purpose, State, invariant_holds
from dicom_node.ledger import Ledger
from dicom_node.outbox import REJECTED, Outbox
from dicom_node.overview import overview
from dicom_node.releases import Releases
from dicom_node.retrospective.progress import all_runs
from dicom_node.tables import (
    DeliveryRow,
    DeliveryTryRow,
    InstanceRow,
    ObjectRow,
    ReportRow,
    ScreeningRow,
    TransitionRow,
)
from dicom_node.transitions import OWN
from dicom_node.watch import UnhealthyError, check

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dicom_node.config import Settings
    from dicom_node.database import Database
    from dicom_node.overview import Overview
    from dicom_node.retrospective.progress import RunStatus

_ROLES = ("worker", "deliver", "sweep", "retrieve")
_LOOKED_AT = 20_000  # of the latest transitions
_HOUR = timedelta(hours=1)
MOST_FAILURES = 100


class Failure(NamedTuple):
    """An image that failed, or an object that a destination rejected: what a person has to look at."""

    study_instance_uid: str
    what: str
    reason: str
    detail: str
    at: datetime | None


@dataclass(frozen=True, slots=True)
class Standing:
    """The node at one moment.

    Attributes
    ----------
    counts
        Instances by state, and `received`, `duplicates`, `conflicts`.
    waiting
        Screenings that a worker could claim now, by purpose.
    predicted_last_hour
        Images that got an answer.
    deliveries
        Objects by destination and state; `errors` why the last try did not succeed.
    processes
        What each role's processes on this machine say of themselves.
    """

    counts: Mapping[str, int]
    beside: Overview
    waiting: Mapping[Purpose, int]
    predicted_last_hour: int
    deliveries: Mapping[str, Mapping[str, int]]
    errors: Mapping[str, str]
    runs: Sequence[RunStatus]
    processes: Mapping[str, str]
    device: str
    release: str
    disk_free_bytes: int | None
    disk_total_bytes: int | None

    @property
    def holds(self) -> bool:
        """Whether received = delivered + withheld + declined + failed + waiting."""
        return invariant_holds(dict(self.counts))

    def as_json(self) -> dict[str, Any]:
        """The standing as JSON knows it."""
        return {
            "instances": dict(self.counts),
            "invariant_holds": self.holds,
            **self.beside.as_json(),
            "waiting": {str(purpose): count for purpose, count in self.waiting.items()},
            "predicted_last_hour": self.predicted_last_hour,
            "deliveries": {name: dict(states) for name, states in self.deliveries.items()},
            "delivery_errors": dict(self.errors),
            "processes": dict(self.processes),
            "device": self.device,
            "release": self.release,
            "disk_free_bytes": self.disk_free_bytes,
            "disk_total_bytes": self.disk_total_bytes,
        }


def standing(settings: Settings, database: Database) -> Standing:
    """The node now."""
    outbox = outbox_of(settings, database)
    free = total = None
    with suppress(OSError):
        total, _, free = shutil.disk_usage(settings.archive_dir)
    active = Releases(database).active()
    return Standing(
        counts=Ledger(database).counts(),
        beside=overview(database),
        waiting=Claims(database).waiting(),
        predicted_last_hour=_predicted(database),
        deliveries=outbox.counts(),
        errors=outbox.last_errors(),
        runs=all_runs(database, datetime.now(UTC)),
        processes={role: _process(settings, role) for role in _ROLES},
        device=settings.device,
        release=f"{active.name} {active.release}" if active else "none",
        disk_free_bytes=free,
        disk_total_bytes=total,
    )


def outbox_of(settings: Settings, database: Database) -> Outbox:
    """The outbox with the settings' pauses."""
    return Outbox(database, retry_base_s=settings.retry_base_s, retry_max_s=settings.retry_max_s)


def failures(database: Database) -> list[Failure]:
    """The latest images that failed and objects that were rejected, at most `MOST_FAILURES` of each."""
    images = (
        select(InstanceRow.study_instance_uid, ScreeningRow.reason, ScreeningRow.detail, InstanceRow.received_at)
        .join(ScreeningRow, ScreeningRow.instance_id == InstanceRow.id)
        .where(
            ScreeningRow.state == State.FAILED,
            ScreeningRow.purpose.in_(OWN),
            ScreeningRow.replaced_by.is_(None),
            ScreeningRow.reason.is_distinct_from(REJECTED),  # its objects stand below
        )
        .order_by(ScreeningRow.id.desc())
        .limit(MOST_FAILURES)
    )
    newest = (
        select(func.max(DeliveryTryRow.id))
        .where(DeliveryTryRow.delivery_id == DeliveryRow.id)
        .correlate(DeliveryRow)
        .scalar_subquery()
    )
    of_report = func.coalesce(InstanceRow.study_instance_uid, ReportRow.study_instance_uid, "")
    objects = (
        select(of_report, ObjectRow.kind, DeliveryRow.destination, DeliveryTryRow.detail, DeliveryTryRow.at)
        .join(ObjectRow, ObjectRow.id == DeliveryRow.object_id)
        .outerjoin(ScreeningRow, ScreeningRow.id == ObjectRow.screening_id)
        .outerjoin(InstanceRow, InstanceRow.id == ScreeningRow.instance_id)
        .outerjoin(ReportRow, ReportRow.id == ObjectRow.report_id)
        .outerjoin(DeliveryTryRow, DeliveryTryRow.id == newest)
        .where(DeliveryRow.state == DeliveryState.REJECTED)
        .order_by(DeliveryRow.id.desc())
        .limit(MOST_FAILURES)
    )
    with database.read() as session:
        found = [
            Failure(uid, "image", reason or "", detail or "", at)
            for uid, reason, detail, at in session.execute(images).tuples()
        ]
        found += [
            Failure(uid, f"{kind} to {destination}", REJECTED, detail or "", at)
            for uid, kind, destination, detail, at in session.execute(objects).tuples()
        ]
    return found


def failed_studies(database: Database, reason: str) -> list[str]:
    """Studies with an image that failed for that reason."""
    query = (
        select(InstanceRow.study_instance_uid)
        .join(ScreeningRow, ScreeningRow.instance_id == InstanceRow.id)
        .where(
            ScreeningRow.state == State.FAILED,
            ScreeningRow.purpose.in_(OWN),
            ScreeningRow.replaced_by.is_(None),
            ScreeningRow.reason == reason,
        )
        .distinct()
        .limit(MOST_FAILURES)
    )
    with database.read() as session:
        return list(session.scalars(query))


def _predicted(database: Database) -> int:
    with database.read() as session:
        newest = session.scalar(select(func.max(TransitionRow.id))) or 0
        return (
            session.scalar(
                select(func.count()).where(
                    TransitionRow.id > newest - _LOOKED_AT,
                    TransitionRow.to_state == State.PREDICTED,
                    TransitionRow.at > datetime.now(UTC) - _HOUR,
                )
            )
            or 0
        )


def _process(settings: Settings, role: str) -> str:
    try:
        return check(settings.health_dir, role).partition(": ")[2]
    except (UnhealthyError, OSError) as error:
        return "not on this machine" if isinstance(error, UnhealthyError) and "overdue" not in str(error) else "late"
