"""What a bundle took the place of, so that one can roll back to it."""

import sqlalchemy as sa
from alembic import op

revision = "0008_rollback"
down_revision = "0007_installation"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column. What came into force before now has nothing to roll back to: nobody wrote down what it replaced."""
    op.add_column("policy_bundle", sa.Column("before_hex", sa.String(), nullable=True))


def downgrade() -> None:
    """Drop the column."""
    op.drop_column("policy_bundle", "before_hex")
