"""What people saw and did, read back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from dicom_node.worklist.tables import AuditRow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dicom_node.database import Database

MOST_SHOWN = 200


def latest(database: Database, study_instance_uid: str | None = None) -> Sequence[AuditRow]:
    """The latest rows, of one study or of all, the newest first."""
    query = select(AuditRow).order_by(AuditRow.id.desc()).limit(MOST_SHOWN)
    if study_instance_uid is not None:
        query = query.where(AuditRow.study_instance_uid == study_instance_uid)
    with database.read() as session:
        return session.scalars(query).all()
