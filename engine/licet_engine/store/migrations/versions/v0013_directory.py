"""The directory of all logs, and the pairs of each."""

import sqlalchemy as sa
from alembic import op

from licet_engine.store.walls import protect

revision = "0013_directory"
down_revision = "0012_witnesses"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables. They fill by themselves from the logs that are there, a piece of each at a time."""
    op.create_table(
        "directory_head",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("leaf_index", sa.BigInteger(), nullable=False),
        sa.Column("seed", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id"),
    )
    op.create_table(
        "directory_state",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("of_tenant", sa.String(), nullable=False),
        sa.Column("leaf_index", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("root", sa.LargeBinary(), nullable=False),
        sa.Column("pairs_root", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "of_tenant"),
    )
    op.create_table(
        "directory_pair",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("of_tenant", sa.String(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        *(
            sa.Column(name, sa.BigInteger(), nullable=False)
            for name in ("count", "first", "last", "first_ms", "last_ms")
        ),
        sa.Column("kinds", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "of_tenant", "actor", "owner"),
    )
    protect(op.get_bind(), "directory_head", "directory_state", "directory_pair")


def downgrade() -> None:
    """Take them away. What the directory log says stays, and can no longer be opened."""
    for table in ("directory_pair", "directory_state", "directory_head"):
        op.drop_table(table)
