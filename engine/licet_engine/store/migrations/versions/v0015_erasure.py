"""How long a tenant's evidence is kept; and that what is logged can be emptied, and not changed."""

import sqlalchemy as sa
from alembic import op

from licet_engine.store import walls

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
    walls.let_be_emptied(op.get_bind())


def downgrade() -> None:
    """Drop them. What was erased stays so."""
    walls.let_be_emptied(op.get_bind(), undo=True)
    op.drop_column("tenant", "evidence_retained")
    op.drop_column("tenant", "evidence_retention_days")
