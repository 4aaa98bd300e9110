"""How long a tenant's evidence is kept."""

import sqlalchemy as sa
from alembic import op

revision = "0015_erasure"
down_revision = "0014_refusals"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns: seven years, unless a tenant says otherwise."""
    op.add_column(
        "tenant", sa.Column("evidence_retention_days", sa.BigInteger(), nullable=False, server_default="2557")
    )
    op.add_column("tenant", sa.Column("evidence_retained", sa.Text(), nullable=False, server_default="[]"))


def downgrade() -> None:
    """Drop them, and the walls that came with them. What was erased stays so."""
    if op.get_bind().dialect.name == "postgresql":
        for table in ("decision", "log_record"):
            op.execute(f"DROP POLICY IF EXISTS licet_emptied ON {table}")
    op.drop_column("tenant", "evidence_retained")
    op.drop_column("tenant", "evidence_retention_days")
