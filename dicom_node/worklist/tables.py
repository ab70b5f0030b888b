"""Tables of the worklist: studies in their order, people and what lets them in, what they said and what they did."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - SQLAlchemy asks for it

from sqlalchemy import ForeignKey, Index, String, Text, UniqueConstraint, false, text
from sqlalchemy.dialects.postgresql import VARCHAR
from sqlalchemy.orm import Mapped, mapped_column

from dicom_node.tables import UID, WORD, Base

_SHA256 = String(64)
_NAME = String(64)
# Compared byte by byte on every database: an index serves a search by how words begin.
_BYTES = String(64).with_variant(VARCHAR(64, collation="C"), "postgresql")
_UNREAD, _READ = text("read_at IS NULL"), text("read_at IS NOT NULL")


class StudyRow(Base):
    """A study that came live, as the worklist shows it.

    `due_at` is its place in the order: `arrived_at`, or earlier where a result moved it up. `probability` is that of
    its strongest flagged answer, of all that move a study up; `flagged` says whether any answer was.
    """

    __tablename__ = "studies"
    __table_args__ = (
        Index("ix_studies_unread", "due_at", "id", postgresql_where=_UNREAD, sqlite_where=_UNREAD),
        Index("ix_studies_unread_flagged", "flagged", "due_at", "id", postgresql_where=_UNREAD, sqlite_where=_UNREAD),
        Index("ix_studies_unread_location", "location", "due_at", "id", postgresql_where=_UNREAD, sqlite_where=_UNREAD),
        Index("ix_studies_read", "due_at", "id", postgresql_where=_READ, sqlite_where=_READ),
        Index("ix_studies_due_at", "due_at", "id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(UID, unique=True)
    arrived_at: Mapped[datetime]
    acquired_at: Mapped[datetime | None]
    due_at: Mapped[datetime]
    flagged: Mapped[bool] = mapped_column(default=False, server_default=false())
    probability: Mapped[float | None]
    modality: Mapped[str] = mapped_column(String(16))
    location: Mapped[str] = mapped_column(_BYTES)
    study_date: Mapped[str | None] = mapped_column(String(8))
    patient_id: Mapped[str | None] = mapped_column(String(64), index=True)
    patient_name: Mapped[str | None] = mapped_column(String(324))
    accession_number: Mapped[str | None] = mapped_column(String(16))
    read_at: Mapped[datetime | None]
    read_by: Mapped[str | None] = mapped_column(_NAME)


class StudyWordRow(Base):
    """A word by which a study is found: of its patient's name or ID, or its accession number, in lower case."""

    __tablename__ = "study_words"

    word: Mapped[str] = mapped_column(_BYTES, primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id"), primary_key=True, index=True)


class UserRow(Base):
    """A local user; one without a password has not used the link yet. `role`: reader, operator or administrator."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(_NAME, unique=True)
    role: Mapped[str] = mapped_column(WORD)
    password_hash: Mapped[str | None] = mapped_column(String(200))
    active: Mapped[bool] = mapped_column(default=True)
    created_at: Mapped[datetime]
    created_by: Mapped[str] = mapped_column(_NAME)


class LinkRow(Base):
    """A link that lets one person set a password, once; without a user, that of the first administrator."""

    __tablename__ = "links"

    token_sha256: Mapped[str] = mapped_column(_SHA256, primary_key=True)
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"), index=True)
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]


class SessionRow(Base):
    """A log-in of a browser: the cookie's digest, and the token that its forms carry."""

    __tablename__ = "sessions"

    token_sha256: Mapped[str] = mapped_column(_SHA256, primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    csrf_token: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)


class ApiTokenRow(Base):
    """A token by which a program acts for a user."""

    __tablename__ = "api_tokens"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    name: Mapped[str] = mapped_column(_NAME)
    token_sha256: Mapped[str] = mapped_column(_SHA256, unique=True)
    created_at: Mapped[datetime]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class LoginFailureRow(Base):
    """A log-in that was refused, kept as long as it slows the next one."""

    __tablename__ = "login_failures"

    id: Mapped[int] = mapped_column(primary_key=True)
    name_sha256: Mapped[str] = mapped_column(_SHA256, index=True)
    address: Mapped[str] = mapped_column(String(64), index=True)
    at: Mapped[datetime] = mapped_column(index=True)


class AuditRow(Base):
    """Who saw or did what, and when; rows are only ever added. `detail` names no patient."""

    __tablename__ = "audit"
    __table_args__ = (Index("ix_audit_study_instance_uid", "study_instance_uid", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(index=True)
    user_name: Mapped[str] = mapped_column(_NAME)
    action: Mapped[str] = mapped_column(WORD)
    study_instance_uid: Mapped[str | None] = mapped_column(UID)
    detail: Mapped[str | None] = mapped_column(String(200))
    address: Mapped[str] = mapped_column(String(64))


class FeedbackRow(Base):
    """What a person said of a study's result; rows are only ever added, and a person's newest counts."""

    __tablename__ = "feedback"
    __table_args__ = (UniqueConstraint("study_instance_uid", "user_name", "version"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(UID, index=True)
    user_name: Mapped[str] = mapped_column(_NAME)
    version: Mapped[int]
    verdict: Mapped[str] = mapped_column(WORD)
    reason: Mapped[str | None] = mapped_column(WORD)
    comment: Mapped[str] = mapped_column(Text)
    release_id: Mapped[int | None] = mapped_column(ForeignKey("releases.id"))
    at: Mapped[datetime]
