"""What `dicom-node status` says beside the counts of states: what waits for a person, and what is still to come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, or_, select

from dicom_node.domain import DeliveryState, ObjectKind, State
from dicom_node.tables import DeliveryRow, InstanceRow, ObjectRow, ReportRow, RetractionRow, ScreeningRow

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy.orm import Session

    from dicom_node.database import Database


@dataclass(frozen=True, slots=True)
class Overview:
    """Objects by destination, and counts.

    Attributes
    ----------
    rejected
        No other try can bring them there: a person has to look.
    unproven
        The destination took them, and nothing proves that it kept them.
    reports_due
        Studies with an image of which no report tells yet.
    retracted
        Heatmaps and reports that were taken back.
    """

    rejected: Mapping[str, int]
    unproven: Mapping[str, int]
    reports_due: int
    retracted: int

    def as_json(self) -> dict[str, Any]:
        """The overview as JSON knows it."""
        return {
            "needs_a_person": dict(self.rejected),
            "unproven": dict(self.unproven),
            "reports_due": self.reports_due,
            "retracted_objects": self.retracted,
        }

    def lines(self) -> Iterator[str]:
        """What a person reads of it; nothing is said of what there is not."""
        for destination, count in self.rejected.items():
            yield (
                f"needs a person: {destination} rejected {count} objects; `explain` says why, "
                "`resend --rejected` sends them once that is mended"
            )
        for destination, count in self.unproven.items():
            yield (
                f"unproven: {destination} took {count} objects and nothing proves that it has them; "
                "`doctor --probe` says what proof it accepts"
            )
        if self.reports_due:
            yield f"studies whose report is due: {self.reports_due}"
        if self.retracted:
            yield f"results taken back: {self.retracted}"


def overview(database: Database) -> Overview:
    """What the ledger says now; what was taken back needs nobody any more."""
    with database.read() as session:
        stuck = _stuck(session)
        return Overview(
            rejected=stuck[DeliveryState.REJECTED],
            unproven=stuck[DeliveryState.UNPROVEN],
            reports_due=_reports_due(session),
            retracted=_retracted(session),
        )


def _stuck(session: Session) -> dict[DeliveryState, dict[str, int]]:
    """By state and destination, the objects that stand there and were not taken back."""
    found: dict[DeliveryState, dict[str, int]] = {DeliveryState.REJECTED: {}, DeliveryState.UNPROVEN: {}}
    query = (
        select(DeliveryRow.state, DeliveryRow.destination, func.count())
        .join(ObjectRow, ObjectRow.id == DeliveryRow.object_id)
        .where(DeliveryRow.state.in_(found), or_(ObjectRow.retraction_id.is_(None), ObjectRow.kind == ObjectKind.NOTE))
        .group_by(DeliveryRow.state, DeliveryRow.destination)
        .order_by(DeliveryRow.destination)
    )
    for state, destination, count in session.execute(query).tuples():
        found[DeliveryState(state)][destination] = count
    return found


def _reports_due(session: Session) -> int:
    due = (
        select(InstanceRow.study_instance_uid, ScreeningRow.release_id)
        .join(InstanceRow, InstanceRow.id == ScreeningRow.instance_id)
        .where(
            ScreeningRow.state == State.REPORTED,
            ScreeningRow.report_id.is_(None),
            ScreeningRow.replaced_by.is_(None),
        )
        .distinct()
    )
    return session.scalar(select(func.count()).select_from(due.subquery())) or 0


def _retracted(session: Session) -> int:
    """Counted by way of the studies in which something was: these are few, and objects many."""
    studies = select(RetractionRow.study_instance_uid)
    reports = (
        select(func.count(ObjectRow.id))
        .join(ReportRow, ReportRow.id == ObjectRow.report_id)
        .where(ReportRow.study_instance_uid.in_(studies), ObjectRow.retraction_id.is_not(None))
    )
    heatmaps = (
        select(func.count(ObjectRow.id))
        .join(ScreeningRow, ScreeningRow.id == ObjectRow.screening_id)
        .join(InstanceRow, InstanceRow.id == ScreeningRow.instance_id)
        .where(InstanceRow.study_instance_uid.in_(studies), ObjectRow.retraction_id.is_not(None))
    )
    return (session.scalar(reports) or 0) + (session.scalar(heatmaps) or 0)
