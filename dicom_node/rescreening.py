"""A study screened anew: by a newer release, or by thresholds that were set since."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from sqlalchemy import or_, select

from dicom_node.bundle import parse_manifest
from dicom_node.database import Database
from dicom_node.domain import NodeError, ObjectKind, Purpose, State
from dicom_node.releases import newest_thresholds
from dicom_node.retrospective.arrivals import screen_anew
from dicom_node.tables import InstanceRow, ObjectRow, OutcomeRow, ReleaseRow, ScreeningRow
from dicom_node.transitions import OWN, change_state

if TYPE_CHECKING:
    from typing import Any

    from sqlalchemy.orm import Session

    from dicom_node.config import Settings

_ENDED = (State.DELIVERED, State.WITHHELD, State.FAILED, State.DECLINED)


class RescreeningError(NodeError):
    """The study cannot be screened anew."""

    reason = "rescreening"


def rescreen(settings: Settings, study_instance_uid: str) -> int:
    """The study's images wait for the release that is active now, or for their report; returns how many do.

    Those that this release has screened by the thresholds that count now, or that are being screened, are left alone:
    the same would be said of them; where only their report failed, it is made anew. New results name those that they
    replace.

    Raises
    ------
    SchemaError, UnreachableError, RescreeningError
        Where the ledger cannot be used or holds no image of the study that can be screened.
    """
    with closing(Database(settings.database_dsn)) as database:
        database.check_schema()
        with database.write(alone="release") as session:
            release = session.scalar(select(ReleaseRow).filter_by(active=True))
            rows = session.execute(
                select(ScreeningRow, InstanceRow)
                .join(InstanceRow, InstanceRow.id == ScreeningRow.instance_id)
                .where(
                    InstanceRow.study_instance_uid == study_instance_uid,
                    InstanceRow.path.is_not(None),
                    ScreeningRow.purpose.in_(OWN),
                    ScreeningRow.replaced_by.is_(None),
                    or_(ScreeningRow.state != State.DECLINED, ScreeningRow.attempt > 0),  # not by its header
                )
                .order_by(ScreeningRow.id)
                .with_for_update(of=ScreeningRow)
            ).tuples()
            found = rows.all()
            if release is None or not found:
                raise RescreeningError(f"no image of study {study_instance_uid} was screened: is the UID right?")
            anew = [
                screening
                for screening, _ in found
                if screening.state in _ENDED and _would_differ(session, screening, release)
            ]
            for screening in anew:
                screen_anew(
                    session,
                    screening,
                    release.id,
                    purpose=Purpose(screening.purpose),
                    delivers=screening.delivers,
                )
            untold = [screening for screening, _ in found if screening not in anew and _is_untold(session, screening)]
            for screening in untold:
                again: dict[str, Any] = {"failures": 0, "not_before": None, "reason": None, "detail": None}
                change_state(session, screening.id, screening.attempt, State.FAILED, State.REPORTED, **again)
            return len(anew) + len(untold)


def _would_differ(session: Session, screening: ScreeningRow, release: ReleaseRow) -> bool:
    """Whether another result may come of it, or none stands: none came yet, or it was taken back."""
    drawn = select(ObjectRow.id).filter_by(screening_id=screening.id, kind=ObjectKind.HEATMAP, retraction_id=None)
    if screening.release_id != release.id or session.scalar(drawn) is None:
        return True
    told = select(OutcomeRow.target, OutcomeRow.threshold).filter_by(screening_id=screening.id)
    site = newest_thresholds(session, release.id)
    now = {
        target.name: site.get(target.name, target.operating_points[target.operating_point].threshold)
        for target in parse_manifest(release.manifest).targets
    }
    return dict(session.execute(told).tuples().all()) != now


def _is_untold(session: Session, screening: ScreeningRow) -> bool:
    """Whether it has a heatmap that stands, and failed when its report was made."""
    drawn = select(ObjectRow.id).filter_by(screening_id=screening.id, kind=ObjectKind.HEATMAP, retraction_id=None)
    return screening.state == State.FAILED and screening.report_id is None and session.scalar(drawn) is not None
