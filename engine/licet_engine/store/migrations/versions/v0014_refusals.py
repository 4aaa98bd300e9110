"""What was refused of an issuer last; a publication is examined, and no longer checked."""

import sqlalchemy as sa
from alembic import op

revision = "0014_refusals"
down_revision = "0013_directory"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns, and the index by which keys that grow old are found. What was refused before, the log tells."""
    op.add_column("issuer", sa.Column("refused_at_ms", sa.BigInteger(), nullable=True))
    op.add_column("issuer", sa.Column("refused_because", sa.Text(), nullable=False, server_default=""))
    op.execute("UPDATE publication SET state = 'examining' WHERE state = 'checking'")
    op.create_index("ix_issuer_keys_as_of", "issuer", ["keys_as_of_ms"])


def downgrade() -> None:
    """Drop them."""
    op.execute("UPDATE publication SET state = 'checking' WHERE state = 'examining'")
    op.drop_index("ix_issuer_keys_as_of", table_name="issuer")
    op.drop_column("issuer", "refused_because")
    op.drop_column("issuer", "refused_at_ms")
