"""Issuers of ID tokens, those that were exchanged, and what is known of the workload that a token was given to."""

import sqlalchemy as sa
from alembic import op

from licet_engine.store.walls import protect

revision = "0011_workload"
down_revision = "0010_publication"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables and the column. Tokens of before were given to nobody but their account."""
    op.create_table(
        "issuer",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("audience", sa.Text(), nullable=False),
        sa.Column("account", sa.String(), nullable=False),
        sa.Column("claims", sa.Text(), nullable=False),
        sa.Column("keys", sa.Text(), nullable=False),
        sa.Column("keys_as_of_ms", sa.BigInteger(), nullable=False),
        sa.Column("fetched", sa.Boolean(), nullable=False),
        sa.Column("unsafe_http", sa.Boolean(), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("removed_at_ms", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.tenant_id"]),
        sa.ForeignKeyConstraint(["tenant_id", "account"], ["principal.tenant_id", "principal.name"]),
        sa.PrimaryKeyConstraint("tenant_id", "name"),
    )
    op.create_table(
        "used_id_token",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("digest_hex", sa.String(), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.tenant_id"]),
        sa.PrimaryKeyConstraint("tenant_id", "digest_hex"),
    )
    op.add_column("api_token", sa.Column("workload", sa.Text(), nullable=False, server_default="{}"))
    protect(op.get_bind(), "issuer", "used_id_token")


def downgrade() -> None:
    """Take them away."""
    op.drop_column("api_token", "workload")
    for table in ("used_id_token", "issuer"):
        op.drop_table(table)
