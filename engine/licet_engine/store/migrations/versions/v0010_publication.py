"""Publications of policies, with what was found, and who brought a bundle into force."""

import sqlalchemy as sa
from alembic import op

from licet_engine.store.walls import protect

revision = "0010_publication"
down_revision = "0009_shadow"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table and the column. What was published before was not examined, and says so: it is published again to be activated."""
    op.create_table(
        "publication",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("project_hex", sa.String(), nullable=False),
        sa.Column("bundle_hex", sa.String(), nullable=True),
        sa.Column("published_by", sa.String(), nullable=False),
        sa.Column("author", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("report", sa.Text(), nullable=True),
        sa.Column("attestation_hex", sa.String(), nullable=True),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("ended_at_ms", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.tenant_id"]),
        sa.PrimaryKeyConstraint("tenant_id", "id"),
    )
    op.create_index("ix_publication_bundle", "publication", ["tenant_id", "bundle_hex"])
    op.create_index("ix_publication_created", "publication", ["tenant_id", "created_at_ms"])
    op.add_column("policy_bundle", sa.Column("activated_by", sa.String(), nullable=True))
    protect(op.get_bind(), "publication")


def downgrade() -> None:
    """Take them away."""
    op.drop_column("policy_bundle", "activated_by")
    op.drop_table("publication")
