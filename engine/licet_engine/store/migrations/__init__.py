"""The migrations: every change of the tables, in order, forward and back.

Rules kept here: a migration runs in one write transaction, so a crash leaves the schema before it or after it; it names columns in
plain SQL types and imports nothing of the tables, which move on. One that makes a table with a tenant calls
`licet_engine.store.walls.protect` on it. Of several processes that migrate one database at once, one does and the others wait, within
bounds: any role may take such a lock, so whoever holds it and is not the owner is told by name.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from licet_engine.domain.errors import ConfigurationError
from licet_engine.store.db import StoreError, read_transaction, write_transaction
from licet_engine.store.postgres import LOCK_WAIT_S

VERSION_TABLE = "licet_schema_version"
_LOCK = 7_162_453_981
"""Number of the lock under which PostgreSQL is migrated; it only must be always the same."""
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
        _wait_for(connection, "pg_try_advisory_lock", _PREPARING)
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


def is_being_prepared(engine: Engine) -> bool:
    """Whether some process prepares the PostgreSQL database now."""
    with read_transaction(engine) as connection:
        return _holder(connection, _PREPARING) is not None


def _lock(connection: Connection) -> None:
    # SQLite has its writers' lock.
    if connection.dialect.name == "postgresql":
        _wait_for(connection, "pg_try_advisory_xact_lock", _LOCK)
        connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_WAIT_S:.0f}s'"))


def _wait_for(connection: Connection, take: str, number: int) -> None:
    until_s = time.monotonic() + LOCK_WAIT_S
    # Asked again and again: a statement that waits holds a snapshot, for the end of which the workflow engine's migrations would wait,
    # who build indexes concurrently.
    while not connection.execute(text(f"SELECT {take}(:number)"), {"number": number}).scalar():
        holder = _holder(connection, number)
        if holder is not None and not holder.is_owner:
            raise ConfigurationError(
                f"the role {holder.role!r} holds the lock under which this database is prepared, which no process of Licet but the"
                f" owner's takes; end its session, and find out why: SELECT pg_terminate_backend({holder.pid})"
            )
        if time.monotonic() > until_s:
            told = "in a prepared transaction" if holder is None else f"the database server's {holder.pid}"
            raise StoreError(
                f"another process ({told}) has been preparing this database for {LOCK_WAIT_S:.0f} s: see what it waits for"
            )
        time.sleep(0.1)


@dataclass(frozen=True, slots=True)
class _Holder:
    role: str
    pid: int
    is_owner: bool


def _holder(connection: Connection, number: int) -> _Holder | None:
    """Who holds an advisory lock of this database, if anybody does."""
    row = connection.execute(
        text(
            "SELECT r.rolname, l.pid, r.oid = d.datdba"
            " FROM pg_locks l JOIN pg_database d ON d.oid = l.database AND d.datname = current_database()"
            " JOIN pg_stat_activity s ON s.pid = l.pid JOIN pg_roles r ON r.oid = s.usesysid"
            " WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1"
            " AND l.classid::int8 = :number >> 32 AND l.objid::int8 = :number & 4294967295"
            " ORDER BY 3, 2"
        ),
        {"number": number},
    ).first()
    return None if row is None else _Holder(*row)


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
