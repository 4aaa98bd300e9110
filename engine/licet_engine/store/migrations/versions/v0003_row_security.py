"""Row security on every table there is; see `licet_engine.store.walls`. Changes nothing on SQLite."""

from alembic import op

from licet_engine.store.walls import protect, unprotect

revision = "0003_row_security"
down_revision = "0002_ops"
branch_labels = None
depends_on = None

TABLES = (
    *(
        "api_token",
        "approval",
        "approval_request",
        "attestation",
        "break_glass",
        "budget",
        "check_result",
        "dataset",
        "decision",
    ),
    *("environment", "fact_blob", "hold", "idempotency_key", "log_checkpoint", "log_head", "log_leaf", "log_record"),
    *("log_tile", "metric", "model_version", "operation", "policy_bundle", "principal", "promotion", "run", "tenant"),
)


def upgrade() -> None:
    """Force row security."""
    protect(op.get_bind(), *TABLES)


def downgrade() -> None:
    """Lift it."""
    unprotect(op.get_bind(), *TABLES)
