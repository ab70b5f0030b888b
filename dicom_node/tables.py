"""The ledger's tables as SQLAlchemy models; Alembic's migrations make the same ones (a test compares).

No pixel data. Of the patient only what a worklist needs, and none of it with `store_patient_identity = false`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, overload

from sqlalchemy import (
    JSON,
    CheckConstraint,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    text,
    true,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator

if TYPE_CHECKING:
    from sqlalchemy.sql.compiler import SQLCompiler


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC time, on databases that store time zones and on SQLite, which does not."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Aware times only go in, as UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a naive time has no place in the ledger")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Aware times only come out."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class db_now(FunctionElement[datetime]):  # noqa: N801 - reads as the SQL function that it is
    """The database's own clock plus `offset_s` seconds: leases must not hang on the clocks of several hosts.

    On PostgreSQL the time at which the statement came in: unlike ``clock_timestamp()`` an index can be searched by it,
    and unlike ``now()`` it does not stand still in a transaction.
    """

    type = UtcDateTime()
    inherit_cache = True
    name = "db_now"

    def __init__(self, offset_s: float = 0.0) -> None:
        super().__init__(f"{offset_s:+.3f} seconds")


@compiles(db_now, "sqlite")
def _sqlite_now(element: db_now, compiler: SQLCompiler, **arguments: Any) -> str:
    offset = compiler.process(element.clauses, **arguments)
    return f"strftime('%Y-%m-%d %H:%M:%f', 'now', {offset})"


@compiles(db_now, "postgresql")
def _postgresql_now(element: db_now, compiler: SQLCompiler, **arguments: Any) -> str:
    offset = compiler.process(element.clauses, **arguments)
    return f"(statement_timestamp() + CAST({offset} AS interval))"


class Base(DeclarativeBase):
    """Common metadata, with a naming convention so that migrations can name every constraint."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: UtcDateTime, float: Float, dict[str, Any]: JSON, list[Any]: JSON}  # noqa: RUF012


@overload
def storable(text: str) -> str: ...
@overload
def storable(text: None) -> None: ...
def storable(text: str | None) -> str | None:
    """The text as every database takes it: PostgreSQL has no NUL, and no half of a character."""
    return None if text is None else text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")


UID = String(64)  # PS3.5 9.1
_AE_TITLE = String(16)
WORD = String(32)


class NodeRow(Base):
    """The ledger's own identity, one row: archive and broker are compared with it before a process joins the node."""

    __tablename__ = "node"
    __table_args__ = (CheckConstraint("id = 1", name="ck_node_one_row"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    ledger_id: Mapped[str] = mapped_column(String(36))
    created_at: Mapped[datetime]


class ReleaseRow(Base):
    """A release of a bundle that this ledger has seen; its manifest is kept so that results can always be built."""

    __tablename__ = "releases"
    __table_args__ = (UniqueConstraint("bundle", "release"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    bundle: Mapped[str] = mapped_column(String(64))
    release: Mapped[str] = mapped_column(String(64))
    manifest: Mapped[str] = mapped_column(Text)
    active: Mapped[bool]
    registered_at: Mapped[datetime]


class ThresholdRow(Base):
    """A threshold that the site set for a target of a release; rows are only ever added, and the newest counts."""

    __tablename__ = "thresholds"
    __table_args__ = (
        UniqueConstraint("release_id", "target", "version"),
        CheckConstraint("threshold >= 0 AND threshold <= 1", name="ck_thresholds_probability"),
        CheckConstraint("version >= 1", name="ck_thresholds_version"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    release_id: Mapped[int] = mapped_column(ForeignKey("releases.id"))
    target: Mapped[str] = mapped_column(WORD)
    version: Mapped[int]
    threshold: Mapped[float]
    set_by: Mapped[str] = mapped_column(String(64))
    basis: Mapped[str] = mapped_column(Text)
    set_at: Mapped[datetime]


class InstanceRow(Base):
    """One received SOP instance and what admission said of it.

    `path` is None where its bytes were not kept, or were purged once it was screened; of one whose results were
    delivered, its header is then still there, at `header_path`. `patient_age` is in years.
    """

    __tablename__ = "instances"

    id: Mapped[int] = mapped_column(primary_key=True)
    sop_instance_uid: Mapped[str] = mapped_column(UID, unique=True)
    sop_class_uid: Mapped[str] = mapped_column(UID)
    study_instance_uid: Mapped[str] = mapped_column(UID, index=True)
    series_instance_uid: Mapped[str] = mapped_column(UID)
    transfer_syntax_uid: Mapped[str] = mapped_column(UID)
    sha256: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int]
    path: Mapped[str | None] = mapped_column(String(128))
    header_path: Mapped[str | None] = mapped_column(String(128))
    calling_ae_title: Mapped[str] = mapped_column(_AE_TITLE)
    modality: Mapped[str] = mapped_column(String(16))
    view: Mapped[str] = mapped_column(WORD)
    body_part: Mapped[str] = mapped_column(WORD)
    evidence: Mapped[list[Any]]
    notes: Mapped[list[Any]]
    patient_id: Mapped[str | None] = mapped_column(String(64))
    patient_name: Mapped[str | None] = mapped_column(String(324))
    accession_number: Mapped[str | None] = mapped_column(String(16))
    study_date: Mapped[str | None] = mapped_column(String(8))
    patient_sex: Mapped[str | None] = mapped_column(String(16))
    patient_age: Mapped[int | None]
    manufacturer: Mapped[str | None] = mapped_column(String(64))
    model_name: Mapped[str | None] = mapped_column(String(64))
    received_at: Mapped[datetime]


class ResendRow(Base):
    """A further C-STORE of a known instance: the same bytes (duplicate) or others (conflict, kept apart)."""

    __tablename__ = "resends"

    id: Mapped[int] = mapped_column(primary_key=True)
    instance_id: Mapped[int] = mapped_column(ForeignKey("instances.id"), index=True)
    kind: Mapped[str] = mapped_column(WORD)
    sha256: Mapped[str] = mapped_column(String(64))
    path: Mapped[str | None] = mapped_column(String(128))
    calling_ae_title: Mapped[str] = mapped_column(_AE_TITLE)
    received_at: Mapped[datetime]


class ReportRow(Base):
    """A study's report: the newest of its study, release and purpose counts, and `replaced_by` tells of the others."""

    __tablename__ = "reports"
    __table_args__ = (UniqueConstraint("study_instance_uid", "release_id", "purpose", "version"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(UID)
    release_id: Mapped[int] = mapped_column(ForeignKey("releases.id"))
    purpose: Mapped[str] = mapped_column(WORD)
    version: Mapped[int]
    replaced_by: Mapped[int | None] = mapped_column(ForeignKey("reports.id"))
    issued_at: Mapped[datetime]


class ReportSourceRow(Base):
    """A screening that a report tells of."""

    __tablename__ = "report_sources"

    report_id: Mapped[int] = mapped_column(ForeignKey("reports.id"), primary_key=True)
    screening_id: Mapped[int] = mapped_column(ForeignKey("screenings.id"), primary_key=True, index=True)


class RetractionRow(Base):
    """A person took back what the node had said of a study; the objects name it, and so does its rejection note."""

    __tablename__ = "retractions"

    id: Mapped[int] = mapped_column(primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(UID, index=True)
    reason: Mapped[str] = mapped_column(WORD)
    comment: Mapped[str] = mapped_column(Text)
    asked_by: Mapped[str] = mapped_column(String(64))
    at: Mapped[datetime]


class ScreeningRow(Base):
    """One instance x release x purpose: the unit of work, and the state machine's place.

    `round` counts how often the instance was screened for the purpose; `replaced_by` is the later screening.
    `report_id` is the newest report that tells of it. What does not `deliver` is known to the ledger alone.
    """

    __tablename__ = "screenings"
    __table_args__ = (
        UniqueConstraint("instance_id", "release_id", "purpose", "round"),
        Index("ix_screenings_state_purpose", "state", "purpose", "id"),
        Index("ix_screenings_state_report_id", "state", "report_id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    instance_id: Mapped[int] = mapped_column(ForeignKey("instances.id"))
    release_id: Mapped[int] = mapped_column(ForeignKey("releases.id"))
    purpose: Mapped[str] = mapped_column(WORD)
    state: Mapped[str] = mapped_column(WORD)
    reason: Mapped[str | None] = mapped_column(String(64))
    detail: Mapped[str | None] = mapped_column(String(400))
    attempt: Mapped[int] = mapped_column(default=0)
    failures: Mapped[int] = mapped_column(default=0)
    worker: Mapped[str | None] = mapped_column(String(64))
    lease_expires_at: Mapped[datetime | None]
    not_before: Mapped[datetime | None]
    remarks: Mapped[list[Any]] = mapped_column(default=list, server_default="[]")
    round: Mapped[int] = mapped_column(default=1, server_default="1")
    replaced_by: Mapped[int | None] = mapped_column(ForeignKey("screenings.id"))
    delivers: Mapped[bool] = mapped_column(default=True, server_default=true())
    report_id: Mapped[int | None] = mapped_column(ForeignKey("reports.id"))


class TransitionRow(Base):
    """Every change of state with its time: the ledger's audit trail."""

    __tablename__ = "transitions"

    id: Mapped[int] = mapped_column(primary_key=True)
    screening_id: Mapped[int] = mapped_column(ForeignKey("screenings.id"), index=True)
    from_state: Mapped[str | None] = mapped_column(WORD)
    to_state: Mapped[str] = mapped_column(WORD)
    attempt: Mapped[int]
    at: Mapped[datetime]


class OutcomeRow(Base):
    """The answer to one target. `decision` is empty where code wrote that knows `flagged` alone."""

    __tablename__ = "outcomes"

    screening_id: Mapped[int] = mapped_column(ForeignKey("screenings.id"), primary_key=True)
    target: Mapped[str] = mapped_column(WORD, primary_key=True)
    position: Mapped[int]
    operating_point: Mapped[str] = mapped_column(WORD)
    probability: Mapped[float]
    threshold: Mapped[float]
    flagged: Mapped[bool]
    decision: Mapped[str] = mapped_column(WORD, server_default="")


class MemberOutputRow(Base):
    """One raw output of one member."""

    __tablename__ = "member_outputs"

    screening_id: Mapped[int] = mapped_column(ForeignKey("screenings.id"), primary_key=True)
    member: Mapped[str] = mapped_column(WORD, primary_key=True)
    output: Mapped[str] = mapped_column(WORD, primary_key=True)
    value: Mapped[float]


class ObjectRow(Base):
    """An archived product: a member's map or the heatmap of a screening, a study's report, or a rejection note.

    A report has one object for each SR SOP Class that a destination wanted, the class being its `name`.
    `retraction_id` is the retraction that took it back, or whose note it is.
    """

    __tablename__ = "objects"
    __table_args__ = (
        UniqueConstraint("screening_id", "kind", "name"),
        UniqueConstraint("report_id", "name"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    screening_id: Mapped[int | None] = mapped_column(ForeignKey("screenings.id"))
    report_id: Mapped[int | None] = mapped_column(ForeignKey("reports.id"))
    retraction_id: Mapped[int | None] = mapped_column(ForeignKey("retractions.id"))
    kind: Mapped[str] = mapped_column(WORD)
    name: Mapped[str] = mapped_column(String(80))
    sop_class_uid: Mapped[str | None] = mapped_column(UID)
    sop_instance_uid: Mapped[str | None] = mapped_column(UID, index=True)
    path: Mapped[str] = mapped_column(String(128))
    sha256: Mapped[str] = mapped_column(String(64))
    box: Mapped[list[Any] | None]
    created_at: Mapped[datetime]


class DeliveryRow(Base):
    """One object on its way to one destination; `proofs` counts how often it was asked whether the object is there."""

    __tablename__ = "deliveries"
    __table_args__ = (
        UniqueConstraint("object_id", "destination"),
        Index("ix_deliveries_state_not_before", "state", "not_before"),
        Index("ix_deliveries_state_destination", "state", "destination", "id"),
        # Who is served now is asked at each poll, and of millions a few are.
        Index(
            "ix_deliveries_lease_expires_at",
            "lease_expires_at",
            postgresql_where=text("lease_expires_at IS NOT NULL"),
            sqlite_where=text("lease_expires_at IS NOT NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    object_id: Mapped[int] = mapped_column(ForeignKey("objects.id"))
    destination: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(WORD)
    tries: Mapped[int] = mapped_column(default=0)
    proofs: Mapped[int] = mapped_column(default=0, server_default="0")
    not_before: Mapped[datetime]
    lease_expires_at: Mapped[datetime | None]
    holder: Mapped[str | None] = mapped_column(String(64))


class DeliveryTryRow(Base):
    """One attempt at a delivery and the status that came back (PS3.7 C; none where the peer did not answer)."""

    __tablename__ = "delivery_tries"

    id: Mapped[int] = mapped_column(primary_key=True)
    delivery_id: Mapped[int] = mapped_column(ForeignKey("deliveries.id"), index=True)
    status: Mapped[int | None]
    detail: Mapped[str | None] = mapped_column(String(200))
    at: Mapped[datetime]


class CommitmentRow(Base):
    """One request for storage commitment (PS3.4 J); it stands here before the peer hears of it."""

    __tablename__ = "commitments"

    id: Mapped[int] = mapped_column(primary_key=True)
    transaction_uid: Mapped[str] = mapped_column(UID, unique=True)
    destination: Mapped[str] = mapped_column(String(64))
    requested_at: Mapped[datetime]
    answered_at: Mapped[datetime | None]


class CommitmentItemRow(Base):
    """A delivery for which a commitment was requested."""

    __tablename__ = "commitment_items"

    commitment_id: Mapped[int] = mapped_column(ForeignKey("commitments.id"), primary_key=True)
    delivery_id: Mapped[int] = mapped_column(ForeignKey("deliveries.id"), primary_key=True, index=True)
