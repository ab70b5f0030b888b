"""Reports of studies in place of images, proofs of delivery, retractions.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_OLD_KEY = ["instance_id", "release_id", "purpose"]


def upgrade() -> None:
    op.create_table(
        "reports",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("release_id", sa.Integer(), nullable=False),
        sa.Column("purpose", sa.String(length=32), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("replaced_by", sa.Integer(), nullable=True),
        sa.Column("issued_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["release_id"], ["releases.id"], name=op.f("fk_reports_release_id")),
        sa.ForeignKeyConstraint(["replaced_by"], ["reports.id"], name=op.f("fk_reports_replaced_by")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reports")),
        sa.UniqueConstraint(
            "study_instance_uid",
            "release_id",
            "purpose",
            "version",
            name=op.f("uq_reports_study_instance_uid_release_id_purpose_version"),
        ),
    )
    op.create_table(
        "report_sources",
        sa.Column("report_id", sa.Integer(), nullable=False),
        sa.Column("screening_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["report_id"], ["reports.id"], name=op.f("fk_report_sources_report_id")),
        sa.ForeignKeyConstraint(["screening_id"], ["screenings.id"], name=op.f("fk_report_sources_screening_id")),
        sa.PrimaryKeyConstraint("report_id", "screening_id", name=op.f("pk_report_sources")),
    )
    op.create_index(op.f("ix_report_sources_screening_id"), "report_sources", ["screening_id"])
    op.create_table(
        "retractions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.String(length=32), nullable=False),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.Column("asked_by", sa.String(length=64), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_retractions")),
    )
    op.create_index(op.f("ix_retractions_study_instance_uid"), "retractions", ["study_instance_uid"])
    op.create_table(
        "commitments",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("transaction_uid", sa.String(length=64), nullable=False),
        sa.Column("destination", sa.String(length=64), nullable=False),
        sa.Column("requested_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("answered_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_commitments")),
        sa.UniqueConstraint("transaction_uid", name=op.f("uq_commitments_transaction_uid")),
    )
    op.create_table(
        "commitment_items",
        sa.Column("commitment_id", sa.Integer(), nullable=False),
        sa.Column("delivery_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["commitment_id"], ["commitments.id"], name=op.f("fk_commitment_items_commitment_id")),
        sa.ForeignKeyConstraint(["delivery_id"], ["deliveries.id"], name=op.f("fk_commitment_items_delivery_id")),
        sa.PrimaryKeyConstraint("commitment_id", "delivery_id", name=op.f("pk_commitment_items")),
    )
    op.create_index(op.f("ix_commitment_items_delivery_id"), "commitment_items", ["delivery_id"])
    leased = sa.text("lease_expires_at IS NOT NULL")
    op.create_index(
        "ix_deliveries_lease_expires_at",
        "deliveries",
        ["lease_expires_at"],
        postgresql_where=leased,
        sqlite_where=leased,
    )
    op.add_column("deliveries", sa.Column("proofs", sa.Integer(), server_default="0", nullable=False))
    with op.batch_alter_table("screenings", schema=None) as batch_op:
        batch_op.add_column(sa.Column("round", sa.Integer(), server_default="1", nullable=False))
        batch_op.add_column(sa.Column("replaced_by", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("report_id", sa.Integer(), nullable=True))
        batch_op.create_foreign_key(op.f("fk_screenings_replaced_by"), "screenings", ["replaced_by"], ["id"])
        batch_op.create_foreign_key(op.f("fk_screenings_report_id"), "reports", ["report_id"], ["id"])
        batch_op.drop_constraint(op.f("uq_screenings_instance_id_release_id_purpose"), type_="unique")
        batch_op.create_unique_constraint(
            op.f("uq_screenings_instance_id_release_id_purpose_round"), [*_OLD_KEY, "round"]
        )
        batch_op.create_index("ix_screenings_state_report_id", ["state", "report_id"])
    with op.batch_alter_table("objects", schema=None) as batch_op:
        batch_op.add_column(sa.Column("report_id", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("retraction_id", sa.Integer(), nullable=True))
        batch_op.alter_column("screening_id", existing_type=sa.Integer(), nullable=True)
        batch_op.create_foreign_key(op.f("fk_objects_report_id"), "reports", ["report_id"], ["id"])
        batch_op.create_foreign_key(op.f("fk_objects_retraction_id"), "retractions", ["retraction_id"], ["id"])
        batch_op.create_unique_constraint(op.f("uq_objects_report_id_name"), ["report_id", "name"])
    _adopt_reports_of_images()
    # The end of a delivery until now; from now on one whose proof is to come, which nobody may ask for all that was
    # ever sent while new results wait.
    op.execute("UPDATE deliveries SET state = 'unproven' WHERE state = 'sent'")


def _adopt_reports_of_images() -> None:
    """What told of one image becomes a report of its study that tells of that image alone.

    A process of the version before may still write such an object until it is replaced: a report of the study follows
    it, and does not name it.
    """
    op.execute(
        """
        INSERT INTO reports (id, study_instance_uid, release_id, purpose, version, issued_at)
        SELECT objects.id, instances.study_instance_uid, screenings.release_id, screenings.purpose,
               ROW_NUMBER() OVER (
                   PARTITION BY instances.study_instance_uid, screenings.release_id, screenings.purpose
                   ORDER BY objects.id
               ),
               objects.created_at
        FROM objects
        JOIN screenings ON screenings.id = objects.screening_id
        JOIN instances ON instances.id = screenings.instance_id
        WHERE objects.kind = 'report'
        """
    )
    op.execute(
        """
        INSERT INTO report_sources (report_id, screening_id)
        SELECT id, screening_id FROM objects WHERE kind = 'report'
        """
    )
    op.execute(
        """
        UPDATE screenings SET report_id = (
            SELECT objects.id FROM objects WHERE objects.screening_id = screenings.id AND objects.kind = 'report'
        )
        """
    )
    op.execute("UPDATE objects SET report_id = id, name = sop_class_uid, screening_id = NULL WHERE kind = 'report'")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SELECT setval('reports_id_seq', (SELECT COALESCE(MAX(id), 0) + 1 FROM reports), false)")


def downgrade() -> None:
    op.execute(
        """
        UPDATE objects SET screening_id = (
            SELECT MIN(report_sources.screening_id) FROM report_sources
            WHERE report_sources.report_id = objects.report_id
        ), name = 'report'
        WHERE kind = 'report'
        AND id = (SELECT MIN(other.id) FROM objects AS other WHERE other.report_id = objects.report_id)
        """
    )
    op.drop_index(op.f("ix_commitment_items_delivery_id"), table_name="commitment_items")
    op.drop_table("commitment_items")
    op.drop_table("commitments")
    # What the version before cannot hold: further objects of a report, and rejection notes.
    op.execute(
        "DELETE FROM delivery_tries WHERE delivery_id IN (SELECT deliveries.id FROM deliveries "
        "JOIN objects ON objects.id = deliveries.object_id WHERE objects.screening_id IS NULL)"
    )
    op.execute("DELETE FROM deliveries WHERE object_id IN (SELECT id FROM objects WHERE screening_id IS NULL)")
    op.execute("DELETE FROM objects WHERE screening_id IS NULL")
    with op.batch_alter_table("objects", schema=None) as batch_op:
        batch_op.drop_constraint(op.f("uq_objects_report_id_name"), type_="unique")
        batch_op.drop_constraint(op.f("fk_objects_retraction_id"), type_="foreignkey")
        batch_op.drop_constraint(op.f("fk_objects_report_id"), type_="foreignkey")
        batch_op.alter_column("screening_id", existing_type=sa.Integer(), nullable=False)
        batch_op.drop_column("retraction_id")
        batch_op.drop_column("report_id")
    with op.batch_alter_table("screenings", schema=None) as batch_op:
        batch_op.drop_index("ix_screenings_state_report_id")
        batch_op.drop_constraint(op.f("uq_screenings_instance_id_release_id_purpose_round"), type_="unique")
        batch_op.create_unique_constraint(op.f("uq_screenings_instance_id_release_id_purpose"), _OLD_KEY)
        batch_op.drop_constraint(op.f("fk_screenings_report_id"), type_="foreignkey")
        batch_op.drop_constraint(op.f("fk_screenings_replaced_by"), type_="foreignkey")
        batch_op.drop_column("report_id")
        batch_op.drop_column("replaced_by")
        batch_op.drop_column("round")
    op.drop_index("ix_deliveries_lease_expires_at", table_name="deliveries")
    with op.batch_alter_table("deliveries", schema=None) as batch_op:
        batch_op.drop_column("proofs")
    op.drop_table("retractions")
    op.drop_index(op.f("ix_report_sources_screening_id"), table_name="report_sources")
    op.drop_table("report_sources")
    op.drop_table("reports")
