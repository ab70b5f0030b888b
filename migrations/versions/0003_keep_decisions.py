"""Keep decisions, remarks and the site's thresholds.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Both with defaults, for processes of the version before write on until they are replaced; where one of them wrote,
    # the empty decision says that `flagged` holds all that there is to know.
    op.add_column("outcomes", sa.Column("decision", sa.String(length=32), server_default="", nullable=False))
    op.execute("UPDATE outcomes SET decision = CASE WHEN flagged THEN 'flagged' ELSE 'not_flagged' END")
    op.add_column("screenings", sa.Column("remarks", sa.JSON(), server_default="[]", nullable=False))
    op.create_table(
        "thresholds",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("release_id", sa.Integer(), nullable=False),
        sa.Column("target", sa.String(length=32), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("threshold", sa.Float(), nullable=False),
        sa.Column("set_by", sa.String(length=64), nullable=False),
        sa.Column("basis", sa.Text(), nullable=False),
        sa.Column("set_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("threshold >= 0 AND threshold <= 1", name="ck_thresholds_probability"),
        sa.CheckConstraint("version >= 1", name="ck_thresholds_version"),
        sa.ForeignKeyConstraint(["release_id"], ["releases.id"], name=op.f("fk_thresholds_release_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_thresholds")),
        sa.UniqueConstraint("release_id", "target", "version", name=op.f("uq_thresholds_release_id_target_version")),
    )


def downgrade() -> None:
    op.drop_table("thresholds")
    with op.batch_alter_table("screenings", schema=None) as batch_op:
        batch_op.drop_column("remarks")

    with op.batch_alter_table("outcomes", schema=None) as batch_op:
        batch_op.drop_column("decision")
