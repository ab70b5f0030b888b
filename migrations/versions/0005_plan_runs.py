"""Retrospective runs and their studies; screenings that deliver nothing; who and what an instance shows.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "runs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("source", sa.String(length=64), nullable=False),
        sa.Column("criteria", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("deliver", sa.Boolean(), nullable=False),
        sa.Column("again", sa.Boolean(), nullable=False),
        sa.Column("nightly_for", sa.String(length=8), nullable=True),
        sa.Column("rests_because", sa.String(length=400), nullable=True),
        sa.Column("rests_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("faults", sa.Integer(), nullable=False),
        sa.Column("fault", sa.String(length=400), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("begun_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
        sa.UniqueConstraint("name", name=op.f("uq_runs_name")),
    )
    op.create_index(op.f("ix_runs_nightly_for"), "runs", ["nightly_for"])
    op.create_index(op.f("ix_runs_state"), "runs", ["state"])
    op.create_table(
        "run_days",
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("day", sa.String(length=8), nullable=False),
        sa.Column("studies", sa.Integer(), nullable=False),
        sa.Column("instances", sa.Integer(), nullable=True),
        sa.Column("planned_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_run_days_run_id")),
        sa.PrimaryKeyConstraint("run_id", "day", name=op.f("pk_run_days")),
    )
    op.create_table(
        "run_studies",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("study_instance_uid", sa.String(length=64), nullable=True),
        sa.Column("study_date", sa.String(length=8), nullable=True),
        sa.Column("accession_number", sa.String(length=16), nullable=True),
        sa.Column("patient_id", sa.String(length=64), nullable=True),
        sa.Column("asked_for", sa.String(length=64), nullable=True),
        sa.Column("instances", sa.Integer(), nullable=True),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=True),
        sa.Column("detail", sa.String(length=400), nullable=True),
        sa.Column("method", sa.String(length=32), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=True),
        sa.Column("holder", sa.String(length=64), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("begun_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("retrieve_s", sa.Float(), nullable=True),
        sa.Column("landed", sa.Integer(), nullable=False),
        sa.Column("flagged", sa.Boolean(), nullable=False),
        sa.Column("held_bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_run_studies_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_run_studies")),
        sa.UniqueConstraint("run_id", "study_instance_uid", name=op.f("uq_run_studies_run_id_study_instance_uid")),
    )
    op.create_index(op.f("ix_run_studies_begun_at"), "run_studies", ["begun_at"])
    op.create_index(
        "ix_run_studies_held_bytes",
        "run_studies",
        ["held_bytes"],
        postgresql_where=sa.text("held_bytes > 0"),
        sqlite_where=sa.text("held_bytes > 0"),
    )
    op.create_index(
        "ix_run_studies_lease_expires_at",
        "run_studies",
        ["lease_expires_at"],
        postgresql_where=sa.text("lease_expires_at IS NOT NULL"),
        sqlite_where=sa.text("lease_expires_at IS NOT NULL"),
    )
    op.create_index("ix_run_studies_run_id_state", "run_studies", ["run_id", "state", "id"])
    op.create_index("ix_run_studies_state", "run_studies", ["state", "run_id"])
    op.create_index(op.f("ix_run_studies_study_instance_uid"), "run_studies", ["study_instance_uid"])
    op.create_table(
        "run_instances",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("series_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("landed", sa.Boolean(), nullable=False),
        sa.Column("screening_id", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["screening_id"], ["screenings.id"], name=op.f("fk_run_instances_screening_id")),
        sa.ForeignKeyConstraint(["study_id"], ["run_studies.id"], name=op.f("fk_run_instances_study_id")),
        sa.PrimaryKeyConstraint("study_id", "sop_instance_uid", name=op.f("pk_run_instances")),
    )
    op.create_index(op.f("ix_run_instances_screening_id"), "run_instances", ["screening_id"])
    op.create_index(op.f("ix_run_instances_sop_instance_uid"), "run_instances", ["sop_instance_uid"])
    with op.batch_alter_table("instances", schema=None) as batch_op:
        batch_op.add_column(sa.Column("header_path", sa.String(length=128), nullable=True))
        batch_op.add_column(sa.Column("patient_sex", sa.String(length=16), nullable=True))
        batch_op.add_column(sa.Column("patient_age", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("manufacturer", sa.String(length=64), nullable=True))
        batch_op.add_column(sa.Column("model_name", sa.String(length=64), nullable=True))
    with op.batch_alter_table("screenings", schema=None) as batch_op:
        batch_op.add_column(sa.Column("delivers", sa.Boolean(), server_default=sa.true(), nullable=False))


def downgrade() -> None:
    with op.batch_alter_table("screenings", schema=None) as batch_op:
        batch_op.drop_column("delivers")
    with op.batch_alter_table("instances", schema=None) as batch_op:
        batch_op.drop_column("model_name")
        batch_op.drop_column("manufacturer")
        batch_op.drop_column("patient_age")
        batch_op.drop_column("patient_sex")
        batch_op.drop_column("header_path")
    op.drop_index(op.f("ix_run_instances_sop_instance_uid"), table_name="run_instances")
    op.drop_index(op.f("ix_run_instances_screening_id"), table_name="run_instances")
    op.drop_table("run_instances")
    op.drop_index(op.f("ix_run_studies_study_instance_uid"), table_name="run_studies")
    op.drop_index("ix_run_studies_state", table_name="run_studies")
    op.drop_index("ix_run_studies_run_id_state", table_name="run_studies")
    op.drop_index("ix_run_studies_lease_expires_at", table_name="run_studies")
    op.drop_index("ix_run_studies_held_bytes", table_name="run_studies")
    op.drop_index(op.f("ix_run_studies_begun_at"), table_name="run_studies")
    op.drop_table("run_studies")
    op.drop_table("run_days")
    op.drop_index(op.f("ix_runs_state"), table_name="runs")
    op.drop_index(op.f("ix_runs_nightly_for"), table_name="runs")
    op.drop_table("runs")
