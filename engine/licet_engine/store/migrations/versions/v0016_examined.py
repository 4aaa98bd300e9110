"""Which attestation says what was examined of a policy bundle."""

import sqlalchemy as sa
from alembic import op

revision = "0016_examined"
down_revision = "0015_erasure"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column. What is in force without one is examined once the service runs."""
    op.add_column("policy_bundle", sa.Column("attestation_hex", sa.String(), nullable=True))


def downgrade() -> None:
    """Drop it. The attestations stay."""
    op.drop_column("policy_bundle", "attestation_hex")
