"""Run the migrations on the connection that `upgrade` and `downgrade` hand over; logging is left as it is."""

from alembic import context
from sqlmodel import SQLModel

from licet_engine.store.migrations import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=SQLModel.metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
