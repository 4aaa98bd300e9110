"""Serving: endpoints, deployments, traffic, and the account of invocations."""

import sqlalchemy as sa
from alembic import op

from licet_engine.store.walls import protect

revision = "0004_serving"
down_revision = "0003_row_security"
branch_labels = None
depends_on = None


def _to_endpoint() -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["tenant_id", "endpoint"], ["endpoint.tenant_id", "endpoint.name"])


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "endpoint",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("region", sa.String(), nullable=False),
        sa.Column("use", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("weights", sa.Text(), nullable=False),
        sa.Column("shadow", sa.String(), nullable=False),
        sa.Column("alarmed", sa.Boolean(), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("updated_at_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.tenant_id"]),
        sa.PrimaryKeyConstraint("tenant_id", "name"),
    )
    op.create_table(
        "deployment",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("endpoint", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("model_digest_hex", sa.String(), nullable=False),
        sa.Column("strategy", sa.String(), nullable=False),
        sa.Column("fallback", sa.String(), nullable=False),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=True),
        sa.Column("deployed_by", sa.String(), nullable=False),
        sa.Column("decision_id", sa.String(), nullable=False),
        sa.Column("attestation_digest_hex", sa.String(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("ended_at_ms", sa.BigInteger(), nullable=True),
        _to_endpoint(),
        sa.ForeignKeyConstraint(
            ["tenant_id", "model", "version"],
            ["model_version.tenant_id", "model_version.model", "model_version.version"],
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id"),
    )
    op.create_index("ix_deployment_endpoint", "deployment", ["tenant_id", "endpoint", "created_at_ms"], unique=False)
    op.create_table(
        "traffic_event",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("endpoint", sa.String(), nullable=False),
        sa.Column("operation_id", sa.String(), nullable=False),
        sa.Column("serial", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("weights", sa.Text(), nullable=False),
        sa.Column("shadow", sa.String(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        _to_endpoint(),
        sa.PrimaryKeyConstraint("tenant_id", "endpoint", "operation_id", "serial"),
    )
    op.create_index("ix_traffic_event_at", "traffic_event", ["tenant_id", "endpoint", "at_ms"], unique=False)
    op.create_table(
        "invocation_count",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("endpoint", sa.String(), nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.Column("lost", sa.BigInteger(), nullable=False),
        sa.Column("totals", sa.Text(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        _to_endpoint(),
        sa.PrimaryKeyConstraint("tenant_id", "endpoint"),
    )
    op.create_table(
        "invocation_batch",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("endpoint", sa.String(), nullable=False),
        sa.Column("first", sa.BigInteger(), nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.Column("lost", sa.BigInteger(), nullable=False),
        sa.Column("router", sa.String(), nullable=False),
        sa.Column("epoch", sa.String(), nullable=False),
        sa.Column("groups", sa.Text(), nullable=False),
        sa.Column("leaf_index", sa.BigInteger(), nullable=True),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        _to_endpoint(),
        sa.PrimaryKeyConstraint("tenant_id", "endpoint", "first"),
    )
    protect(op.get_bind(), "endpoint", "deployment", "traffic_event", "invocation_count", "invocation_batch")


def downgrade() -> None:
    """Drop the tables."""
    op.drop_table("invocation_batch")
    op.drop_table("invocation_count")
    op.drop_index("ix_traffic_event_at", table_name="traffic_event")
    op.drop_table("traffic_event")
    op.drop_index("ix_deployment_endpoint", table_name="deployment")
    op.drop_table("deployment")
    op.drop_table("endpoint")
