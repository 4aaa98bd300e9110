"""Which installation a database is of."""

import sqlalchemy as sa
from alembic import op

from licet_engine.store.walls import protect

revision = "0007_installation"
down_revision = "0006_devices"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table; the row is written by whoever has the keys."""
    op.create_table(
        "installation",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("instance", sa.String(), nullable=False),
        sa.Column("trust_root_digest_hex", sa.String(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id"),
    )
    protect(op.get_bind(), "installation")


def downgrade() -> None:
    """Drop the table."""
    op.drop_table("installation")
