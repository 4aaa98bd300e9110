"""The approvers' day: ends of approvals and requests, delegations, webhooks with what is sent to them, change tickets."""

import sqlalchemy as sa
from alembic import op

from licet_engine.store.walls import protect

revision = "0005_desk"
down_revision = "0004_serving"
branch_labels = None
depends_on = None

_DAY_S = 86_400


def upgrade() -> None:
    """Add the columns and the tables; what was approved or asked for before ends as it would if it were new."""
    for name, default in (
        ("approval_ttl_s", 90 * _DAY_S),
        ("request_ttl_s", 14 * _DAY_S),
        ("remind_before_s", _DAY_S),
    ):
        op.add_column("tenant", sa.Column(name, sa.BigInteger(), nullable=False, server_default=sa.text(str(default))))
    for table, days in (("approval", 90), ("approval_request", 14)):
        op.add_column(table, sa.Column("expires_at_ms", sa.BigInteger(), nullable=False, server_default=sa.text("0")))
        op.add_column(table, sa.Column("parts", sa.Text(), nullable=False, server_default=sa.text("'{}'")))
        op.add_column(table, sa.Column("reminded_at_ms", sa.BigInteger(), nullable=True))
        rows = sa.table(table, sa.column("expires_at_ms"), sa.column("at_ms"))
        op.execute(rows.update().values(expires_at_ms=rows.c.at_ms + days * _DAY_S * 1000))
    op.add_column("principal", sa.Column("qualified", sa.Text(), nullable=False, server_default=sa.text("'[]'")))
    op.add_column("approval", sa.Column("on_behalf_of", sa.String(), nullable=True))
    op.add_column("approval", sa.Column("void_told_at_ms", sa.BigInteger(), nullable=True))
    op.create_table(
        "delegation",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("track", sa.String(), nullable=False),
        sa.Column("reviewer", sa.String(), nullable=False),
        sa.Column("delegate", sa.String(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("until_ms", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("revoked_by", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id", "delegate"], ["principal.tenant_id", "principal.name"]),
        sa.ForeignKeyConstraint(["tenant_id", "reviewer"], ["principal.tenant_id", "principal.name"]),
        sa.PrimaryKeyConstraint("tenant_id", "id"),
    )
    op.create_index("ix_delegation_delegate", "delegation", ["tenant_id", "delegate", "track"], unique=False)
    op.create_table(
        "webhook",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("events", sa.Text(), nullable=False),
        sa.Column("unsafe_http", sa.Boolean(), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("removed_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("secret", sa.String(), nullable=False),
        sa.Column("secret_before", sa.String(), nullable=True),
        sa.Column("secret_before_until_ms", sa.BigInteger(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("rest_until_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.tenant_id"]),
        sa.PrimaryKeyConstraint("tenant_id", "id"),
    )
    op.create_table(
        "webhook_message",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("webhook", sa.String(), nullable=False),
        sa.Column("event", sa.String(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("tries_before", sa.Integer(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("queued_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("next_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("claimed_until_ms", sa.BigInteger(), nullable=False),
        sa.Column("ended_at_ms", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id", "webhook"], ["webhook.tenant_id", "webhook.id"]),
        sa.PrimaryKeyConstraint("tenant_id", "id"),
    )
    op.create_index("ix_webhook_message_due", "webhook_message", ["state", "next_at_ms"], unique=False)
    op.create_index(
        "ix_webhook_message_waiting", "webhook_message", ["tenant_id", "state", "webhook", "next_at_ms"], unique=False
    )
    op.create_table(
        "webhook_try",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("took_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id", "message"], ["webhook_message.tenant_id", "webhook_message.id"]),
        sa.PrimaryKeyConstraint("tenant_id", "message", "number"),
    )
    op.create_table(
        "ticket",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("approved", sa.Boolean(), nullable=False),
        sa.Column("subjects", sa.Text(), nullable=False),
        sa.Column("as_of_ms", sa.BigInteger(), nullable=False),
        sa.Column("fresh_until_ms", sa.BigInteger(), nullable=False),
        sa.Column("fetched_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("operation_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.tenant_id"]),
        sa.PrimaryKeyConstraint("tenant_id", "id"),
    )
    protect(op.get_bind(), "delegation", "webhook", "webhook_message", "webhook_try", "ticket")


def downgrade() -> None:
    """Drop them."""
    op.drop_table("ticket")
    op.drop_table("webhook_try")
    op.drop_index("ix_webhook_message_waiting", table_name="webhook_message")
    op.drop_index("ix_webhook_message_due", table_name="webhook_message")
    op.drop_table("webhook_message")
    op.drop_table("webhook")
    op.drop_index("ix_delegation_delegate", table_name="delegation")
    op.drop_table("delegation")
    for name in ("void_told_at_ms", "on_behalf_of"):
        op.drop_column("approval", name)
    op.drop_column("principal", "qualified")
    for table in ("approval_request", "approval"):
        for name in ("reminded_at_ms", "parts", "expires_at_ms"):
            op.drop_column(table, name)
    for name in ("remind_before_s", "request_ttl_s", "approval_ttl_s"):
        op.drop_column("tenant", name)
