"""The worklist's studies, its users and what lets them in, what they say and what they do.

Studies that are known already stand in it as read: before, nobody could say so here.

Revision ID: 0006
Revises: 0005
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import VARCHAR

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_CHUNK = 1000
_UNREAD = sa.text("read_at IS NULL")
# Computed, Digital (for presentation, for processing) Radiography: what a screening is made of.
_IMAGES = ("1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1.1")


def upgrade() -> None:
    op.create_table(
        "studies",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("arrived_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("acquired_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("flagged", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("probability", sa.Float(), nullable=True),
        sa.Column("modality", sa.String(length=16), nullable=False),
        sa.Column("location", _bytes(), nullable=False),
        sa.Column("study_date", sa.String(length=8), nullable=True),
        sa.Column("patient_id", sa.String(length=64), nullable=True),
        sa.Column("patient_name", sa.String(length=324), nullable=True),
        sa.Column("accession_number", sa.String(length=16), nullable=True),
        sa.Column("read_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("read_by", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_studies")),
        sa.UniqueConstraint("study_instance_uid", name=op.f("uq_studies_study_instance_uid")),
    )
    for name, columns in (
        ("ix_studies_unread", ["due_at", "id"]),
        ("ix_studies_unread_flagged", ["flagged", "due_at", "id"]),
        ("ix_studies_unread_location", ["location", "due_at", "id"]),
    ):
        op.create_index(name, "studies", columns, postgresql_where=_UNREAD, sqlite_where=_UNREAD)
    read = sa.text("read_at IS NOT NULL")
    op.create_index("ix_studies_read", "studies", ["due_at", "id"], postgresql_where=read, sqlite_where=read)
    op.create_index("ix_studies_due_at", "studies", ["due_at", "id"])
    op.create_index(op.f("ix_studies_patient_id"), "studies", ["patient_id"])
    op.create_table(
        "study_words",
        sa.Column("word", _bytes(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name=op.f("fk_study_words_study_id")),
        sa.PrimaryKeyConstraint("word", "study_id", name=op.f("pk_study_words")),
    )
    op.create_index(op.f("ix_study_words_study_id"), "study_words", ["study_id"])
    _create_people()
    op.create_table(
        "feedback",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("user_name", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("verdict", sa.String(length=32), nullable=False),
        sa.Column("reason", sa.String(length=32), nullable=True),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.Column("release_id", sa.Integer(), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["release_id"], ["releases.id"], name=op.f("fk_feedback_release_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_feedback")),
        sa.UniqueConstraint(
            "study_instance_uid", "user_name", "version", name=op.f("uq_feedback_study_instance_uid_user_name_version")
        ),
    )
    op.create_index(op.f("ix_feedback_study_instance_uid"), "feedback", ["study_instance_uid"])
    _take_over()


def _bytes() -> sa.String:
    return sa.String(length=64).with_variant(VARCHAR(64, collation="C"), "postgresql")


def _create_people() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=32), nullable=False),
        sa.Column("password_hash", sa.String(length=200), nullable=True),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("name", name=op.f("uq_users_name")),
    )
    op.create_table(
        "links",
        sa.Column("token_sha256", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_links_user_id")),
        sa.PrimaryKeyConstraint("token_sha256", name=op.f("pk_links")),
    )
    op.create_index(op.f("ix_links_user_id"), "links", ["user_id"])
    op.create_table(
        "sessions",
        sa.Column("token_sha256", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("csrf_token", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_sessions_user_id")),
        sa.PrimaryKeyConstraint("token_sha256", name=op.f("pk_sessions")),
    )
    op.create_index(op.f("ix_sessions_user_id"), "sessions", ["user_id"])
    op.create_index(op.f("ix_sessions_expires_at"), "sessions", ["expires_at"])
    op.create_table(
        "api_tokens",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("token_sha256", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_api_tokens_user_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_tokens")),
        sa.UniqueConstraint("token_sha256", name=op.f("uq_api_tokens_token_sha256")),
    )
    op.create_index(op.f("ix_api_tokens_user_id"), "api_tokens", ["user_id"])
    op.create_table(
        "login_failures",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name_sha256", sa.String(length=64), nullable=False),
        sa.Column("address", sa.String(length=64), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_login_failures")),
    )
    for column in ("name_sha256", "address", "at"):
        op.create_index(op.f(f"ix_login_failures_{column}"), "login_failures", [column])
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("user_name", sa.String(length=64), nullable=False),
        sa.Column("action", sa.String(length=32), nullable=False),
        sa.Column("study_instance_uid", sa.String(length=64), nullable=True),
        sa.Column("detail", sa.String(length=200), nullable=True),
        sa.Column("address", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    op.create_index(op.f("ix_audit_at"), "audit", ["at"])
    op.create_index("ix_audit_study_instance_uid", "audit", ["study_instance_uid", "id"])


def _take_over() -> None:
    """The studies of live images that the ledger holds, and the words by which they are found."""
    connection = op.get_bind()
    came = "MIN(i.received_at)"
    if connection.dialect.name == "sqlite":  # times are text there, and compared as such: all with microseconds
        came = f"substr({came} || '000', 1, 26)"
    connection.execute(
        sa.text(
            f"""
            INSERT INTO studies (study_instance_uid, arrived_at, due_at, flagged, probability, modality, location,
                                 study_date, patient_id, patient_name, accession_number, read_at, read_by)
            SELECT i.study_instance_uid, {came}, {came},
                   MAX(CASE WHEN o.flagged THEN 1 ELSE 0 END) = 1, MAX(CASE WHEN o.flagged THEN o.probability END),
                   MAX(i.modality), '', MAX(i.study_date), MAX(i.patient_id), MAX(i.patient_name),
                   MAX(i.accession_number), CURRENT_TIMESTAMP, ''
            FROM instances i
            JOIN screenings s ON s.instance_id = i.id AND s.purpose = 'live' AND s.replaced_by IS NULL
            LEFT JOIN outcomes o ON o.screening_id = s.id
            WHERE i.sop_class_uid IN :images
            GROUP BY i.study_instance_uid
            """  # noqa: S608 - an expression of ours
        ).bindparams(sa.bindparam("images", expanding=True)),
        {"images": _IMAGES},
    )
    last = 0
    studies = sa.text(
        "SELECT id, patient_id, patient_name, accession_number FROM studies WHERE id > :last ORDER BY id LIMIT :most"
    )
    while rows := connection.execute(studies, {"last": last, "most": _CHUNK}).all():
        last = rows[-1][0]
        words = [{"word": word, "study_id": row[0]} for row in rows for word in _words(row[1:])]
        if words:
            connection.execute(sa.text("INSERT INTO study_words (word, study_id) VALUES (:word, :study_id)"), words)


def _words(texts: Sequence[str | None]) -> list[str]:
    """As `dicom_node.worklist.arrivals.words` had it when this was written."""
    text = " ".join(filter(None, texts)).lower()
    for separator in "^=,":
        text = text.replace(separator, " ")
    return sorted({word[:64] for word in text.split()})


def downgrade() -> None:
    for table in (
        "feedback",
        "audit",
        "login_failures",
        "api_tokens",
        "sessions",
        "links",
        "users",
        "study_words",
        "studies",
    ):
        op.drop_table(table)
