"""The ledger's tables of retrospective runs: a cohort of studies, each with its own state."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - SQLAlchemy looks the annotations up
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from dicom_node.tables import UID, WORD, Base


class RunRow(Base):
    """A retrospective run: what is wanted of which peer, and whether it is fetched now.

    `rests_because` is why nothing is fetched at the moment, as the sweep last decided; `rests_until` the end of a
    pause for the peer's sake, after `faults` of it in a row, the last being `fault`.
    """

    __tablename__ = "runs"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    source: Mapped[str] = mapped_column(String(64))
    criteria: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(WORD, index=True)
    deliver: Mapped[bool] = mapped_column(default=False)
    again: Mapped[bool] = mapped_column(default=False)
    nightly_for: Mapped[str | None] = mapped_column(String(8), index=True)
    rests_because: Mapped[str | None] = mapped_column(String(400))
    rests_until: Mapped[datetime | None]
    faults: Mapped[int] = mapped_column(default=0)
    fault: Mapped[str | None] = mapped_column(String(400))
    created_at: Mapped[datetime]
    begun_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


class RunDayRow(Base):
    """A day of which the peer has told all studies; a plan that was broken off goes on after the last of them."""

    __tablename__ = "run_days"

    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    day: Mapped[str] = mapped_column(String(8), primary_key=True)
    studies: Mapped[int]
    instances: Mapped[int | None]
    planned_at: Mapped[datetime]


class RunStudyRow(Base):
    """A study of a run, or a line of a cohort file to which the peer has none (then without a UID).

    `instances` is what the peer says that it holds, `landed` how many of those that are wanted the ledger has, and
    `held_bytes` what was fetched for them and lies in the archive. `flagged`: any of them was.
    """

    __tablename__ = "run_studies"
    __table_args__ = (
        UniqueConstraint("run_id", "study_instance_uid"),
        Index("ix_run_studies_run_id_state", "run_id", "state", "id"),
        Index("ix_run_studies_state", "state", "run_id"),
        # Of millions a few are held by a process, and a few have files in the archive.
        Index(
            "ix_run_studies_lease_expires_at",
            "lease_expires_at",
            postgresql_where=text("lease_expires_at IS NOT NULL"),
            sqlite_where=text("lease_expires_at IS NOT NULL"),
        ),
        Index(
            "ix_run_studies_held_bytes",
            "held_bytes",
            postgresql_where=text("held_bytes > 0"),
            sqlite_where=text("held_bytes > 0"),
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"))
    study_instance_uid: Mapped[str | None] = mapped_column(UID, index=True)
    study_date: Mapped[str | None] = mapped_column(String(8))
    accession_number: Mapped[str | None] = mapped_column(String(16))
    patient_id: Mapped[str | None] = mapped_column(String(64))
    asked_for: Mapped[str | None] = mapped_column(String(64))
    instances: Mapped[int | None]
    state: Mapped[str] = mapped_column(WORD)
    reason: Mapped[str | None] = mapped_column(String(64))
    detail: Mapped[str | None] = mapped_column(String(400))
    method: Mapped[str | None] = mapped_column(WORD)
    attempts: Mapped[int] = mapped_column(default=0)
    not_before: Mapped[datetime | None]
    holder: Mapped[str | None] = mapped_column(String(64))
    lease_expires_at: Mapped[datetime | None]
    begun_at: Mapped[datetime | None] = mapped_column(index=True)
    retrieve_s: Mapped[float | None]
    landed: Mapped[int] = mapped_column(default=0)
    flagged: Mapped[bool] = mapped_column(default=False)
    held_bytes: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    ended_at: Mapped[datetime | None]


class RunInstanceRow(Base):
    """An instance that the study holds, says the peer; `landed` once the ledger has it; a screening answers for it."""

    __tablename__ = "run_instances"

    study_id: Mapped[int] = mapped_column(ForeignKey("run_studies.id"), primary_key=True)
    sop_instance_uid: Mapped[str] = mapped_column(UID, primary_key=True, index=True)
    series_instance_uid: Mapped[str] = mapped_column(UID)
    landed: Mapped[bool] = mapped_column(default=False)
    screening_id: Mapped[int | None] = mapped_column(ForeignKey("screenings.id"), index=True)
