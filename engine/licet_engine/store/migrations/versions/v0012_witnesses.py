"""Cosignatures of checkpoints."""

import sqlalchemy as sa
from alembic import op

from licet_engine.store.walls import protect

revision = "0012_witnesses"
down_revision = "0011_workload"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table. Checkpoints of before have no cosignatures; witnesses are asked about the next."""
    op.create_table(
        "log_cosignature",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("keyid", sa.String(), nullable=False),
        sa.Column("time_s", sa.BigInteger(), nullable=False),
        sa.Column("line", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "size", "keyid"),
    )
    protect(op.get_bind(), "log_cosignature")


def downgrade() -> None:
    """Drop the table."""
    op.drop_table("log_cosignature")
