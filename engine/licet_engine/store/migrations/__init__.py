"""The migrations: every change of the tables, in order, forward and back.

Rules kept here: a migration runs in one write transaction, so a crash leaves the schema before it or after it; it names columns in
plain SQL types and imports nothing of the tables, which move on.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine

from licet_engine.store.db import write_transaction

VERSION_TABLE = "licet_schema_version"


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Bring the database's tables up to a revision.

    Args:
        engine: From `open_engine`.
        revision: ``head``, or the id of a revision.
    """
    with write_transaction(engine) as connection:
        command.upgrade(_config(connection), revision)


def downgrade(engine: Engine, revision: str = "base") -> None:
    """Take the database's tables back to a revision; what newer tables held is lost.

    Args:
        engine: From `open_engine`.
        revision: ``base`` for none at all, or the id of a revision.
    """
    with write_transaction(engine) as connection:
        command.downgrade(_config(connection), revision)


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
