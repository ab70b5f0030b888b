"""Name the ledger, and the holder of a delivery.

Revision ID: 0002
Revises: 0001
"""

import uuid
from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    node = op.create_table(
        "node",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("ledger_id", sa.String(length=36), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("id = 1", name="ck_node_one_row"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_node")),
    )
    op.bulk_insert(node, [{"id": 1, "ledger_id": str(uuid.uuid4()), "created_at": datetime.now(UTC)}])
    op.add_column("deliveries", sa.Column("holder", sa.String(length=64), nullable=True))
    op.create_index("ix_deliveries_state_destination", "deliveries", ["state", "destination", "id"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_deliveries_state_destination", table_name="deliveries")
    with op.batch_alter_table("deliveries", schema=None) as batch_op:
        batch_op.drop_column("holder")

    op.drop_table("node")
