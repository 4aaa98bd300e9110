"""The migrations: every change of the tables, in order, forward and back.

Rules kept here: a migration runs in one write transaction, so a crash leaves the schema before it or after it; it names columns in
plain SQL types and imports nothing of the tables, which move on. One that makes a table with a tenant calls
`licet_engine.store.walls.protect` on it. Of several processes that migrate one database at once, one does and the others wait.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from licet_engine.store.db import StoreError, read_transaction, write_transaction

VERSION_TABLE = "licet_schema_version"
_LOCK = 7_162_453_981
"""Number of the lock under which PostgreSQL is migrated; it only must be always the same."""
_WAIT_S = 120.0
_PREPARING = 7_162_453_982
"""Number of the lock under which all is done that a start does to the database; another, since migrating is a part of it."""


@contextmanager
def alone(engine: Engine) -> Iterator[None]:
    """Of several that prepare a database at once, one does and the others wait; SQLite has one supervisor.

    Raises:
        StoreError: Another is at it for too long.
    """
    if engine.dialect.name != "postgresql":
        yield
        return
    # Not in a transaction: it would be idle for too long.
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        until_s = time.monotonic() + _WAIT_S
        # Asked again and again: a statement that waits holds a snapshot, for the end of which the workflow engine's migrations would wait,
        # who build indexes concurrently.
        while not connection.execute(text("SELECT pg_try_advisory_lock(:number)"), {"number": _PREPARING}).scalar():
            if time.monotonic() > until_s:
                raise StoreError(
                    f"another process has been preparing this database for {_WAIT_S:.0f} s: see what it waits for"
                )
            time.sleep(0.1)
        try:
            yield
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:number)"), {"number": _PREPARING})


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Bring the database's tables up to a revision.

    Args:
        engine: From `open_engine`.
        revision: ``head``, or the id of a revision.
    """
    with write_transaction(engine) as connection:
        _lock(connection)
        command.upgrade(_config(connection), revision)


def downgrade(engine: Engine, revision: str = "base") -> None:
    """Take the database's tables back to a revision; what newer tables held is lost.

    Args:
        engine: From `open_engine`.
        revision: ``base`` for none at all, or the id of a revision.
    """
    with write_transaction(engine) as connection:
        _lock(connection)
        command.downgrade(_config(connection), revision)


def is_current(engine: Engine) -> bool:
    """Whether the database's tables are at the newest revision."""
    newest = ScriptDirectory(str(Path(__file__).parent)).get_current_head()
    with read_transaction(engine) as connection:
        return (
            MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()
            == newest
        )


def _lock(connection: Connection) -> None:
    # SQLite has its writers' lock.
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK})


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
