"""Devices: what a tenant is allotted, what the pool has and who has it, and who waits."""

import sqlalchemy as sa
from alembic import op

from licet_engine.store.walls import protect

revision = "0006_devices"
down_revision = "0005_desk"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "device_allotment",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("devices", sa.Integer(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.tenant_id"]),
        sa.PrimaryKeyConstraint("tenant_id"),
    )
    op.create_table(
        "device",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("uuid", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("memory_mib", sa.Integer(), nullable=False),
        sa.Column("driver", sa.String(), nullable=False),
        sa.Column("worker", sa.String(), nullable=False),
        sa.Column("seen_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("operation_id", sa.String(), nullable=True),
        sa.Column("of_tenant", sa.String(), nullable=True),
        sa.Column("leased_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("renewed_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "uuid"),
    )
    op.create_table(
        "device_wait",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("operation_id", sa.String(), nullable=False),
        sa.Column("of_tenant", sa.String(), nullable=False),
        sa.Column("worker", sa.String(), nullable=False),
        sa.Column("wanted", sa.Integer(), nullable=False),
        sa.Column("by_quota", sa.Boolean(), nullable=False),
        sa.Column("since_ms", sa.BigInteger(), nullable=False),
        sa.Column("seen_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "operation_id"),
    )
    protect(op.get_bind(), "device_allotment", "device", "device_wait")


def downgrade() -> None:
    """Take the tables away."""
    for table in ("device_wait", "device", "device_allotment"):
        op.drop_table(table)
