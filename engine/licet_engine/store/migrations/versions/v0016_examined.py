"""Which attestation says what was examined of a policy bundle."""

import sqlalchemy as sa
from alembic import op

revision = "0016_examined"
down_revision = "0015_erasure"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; of what was published it is known. What else is in force is examined once the service runs."""
    op.add_column("policy_bundle", sa.Column("attestation_hex", sa.String(), nullable=True))
    op.execute(
        "UPDATE policy_bundle SET attestation_hex = (SELECT max(p.attestation_hex) FROM publication p"
        " WHERE p.tenant_id = policy_bundle.tenant_id AND p.bundle_hex = policy_bundle.digest_hex"
        " AND p.state = 'published')"
    )


def downgrade() -> None:
    """Drop it. The attestations stay."""
    op.drop_column("policy_bundle", "attestation_hex")
