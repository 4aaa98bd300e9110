"""Candidates beside the policies in force, and what a decision's observed policies would have denied."""

import sqlalchemy as sa
from alembic import op

from licet_engine.store.walls import protect

revision = "0009_shadow"
down_revision = "0008_rollback"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables and the column. Decisions of before stand without it; their records say what was observed."""
    op.create_table(
        "policy_shadow",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("bundle_hex", sa.String(), nullable=False),
        sa.Column("active_hex", sa.String(), nullable=False),
        sa.Column("set_by", sa.String(), nullable=False),
        sa.Column("since_ms", sa.BigInteger(), nullable=False),
        sa.Column("ended_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("ended", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.tenant_id"]),
        sa.PrimaryKeyConstraint("tenant_id", "id"),
    )
    op.create_index("ix_policy_shadow_since", "policy_shadow", ["tenant_id", "since_ms"])
    counted = ("same", "other_reasons", "to_deny", "to_allow", "dropped", "at_ms")
    op.create_table(
        "policy_shadow_count",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("shadow", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in counted),
        sa.PrimaryKeyConstraint("tenant_id", "shadow", "kind", "name"),
    )
    op.create_table(
        "policy_flip",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("shadow", sa.String(), nullable=False),
        sa.Column("decision", sa.String(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("principal", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("resource", sa.String(), nullable=False),
        sa.Column("before", sa.Text(), nullable=False),
        sa.Column("after", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "shadow", "decision"),
    )
    op.create_index("ix_policy_flip_at", "policy_flip", ["tenant_id", "shadow", "at_ms"])
    op.add_column("decision", sa.Column("observed", sa.Text(), nullable=False, server_default="[]"))
    protect(op.get_bind(), "policy_shadow", "policy_shadow_count", "policy_flip")


def downgrade() -> None:
    """Take them away."""
    op.drop_column("decision", "observed")
    for table in ("policy_flip", "policy_shadow_count", "policy_shadow"):
        op.drop_table(table)
