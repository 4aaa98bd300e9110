"""PostgreSQL: how its engines are opened and its transactions begun.

Rules kept here:

- Every transaction says first which tenants it is about; the database's row security (`licet_engine.store.walls`) holds it to
  that. A transaction that said nothing is not answered with nothing: its statements fail.
- A transaction that reads sees one state of the database (REPEATABLE READ), like one of SQLite. One that writes is READ COMMITTED:
  whatever it rests on it has locked, or states as a condition of the statement that writes.
- Nobody who sees through row security gets in: a superuser or a role with BYPASSRLS is refused at the connection. So is a role that is a
  member of another, whose rights it would have, or that can make roles or databases or copy the server's.
- What is committed is durable, whatever the server's default says.
- Neither the password nor the values of a statement appear in an error.
- A connection that was lost is found when the next transaction begins, and replaced there, before anything was done on it. What
  is lost in mid-transaction is told as `DatabaseUnavailable`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from psycopg import Error as PsycopgError
from psycopg import OperationalError as PsycopgOperationalError
from psycopg.types.string import StrDumperUnknown
from sqlalchemy import Connection, Dialect, Engine, create_engine, event, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from licet_engine.domain.errors import ConfigurationError, Unavailable

EVERY_TENANT: Final = "*"
"""Stands for all tenants where a transaction says which it is about; no tenant can be called so."""

SCOPE_SETTING: Final = "licet.tenants"
"""The setting of a transaction that names its tenants, as the text of an array."""

_DEFAULT_SCOPE: Final = "licet_default_scope"
_CONNECT_TIMEOUT_S: Final = 5
_POOL_TIMEOUT_S: Final = 10
_IDLE_IN_TRANSACTION_MS: Final = 60_000
LOCK_WAIT_S: Final = 90.0
"""How long whoever prepares the database waits for a lock: longer than a transaction of ours may be idle."""
_SET_SCOPE: Final = text(f"SELECT set_config('{SCOPE_SETTING}', CAST(CAST(:tenants AS text[]) AS text), true)")
# Not an empty array, which would hide every row without a word: this text is none, so that a policy which casts it fails.
_SET_NO_SCOPE: Final = text(f"SELECT set_config('{SCOPE_SETTING}', '', true)")
_INSPECT: Final = """
SELECT rolsuper OR rolbypassrls, rolname, current_setting('server_encoding'),
       CASE WHEN current_setting('synchronous_commit') = 'off' THEN set_config('synchronous_commit', 'on', false) END,
       concat_ws(', ', CASE WHEN rolcreaterole THEN 'CREATEROLE' END, CASE WHEN rolcreatedb THEN 'CREATEDB' END,
                       CASE WHEN rolreplication THEN 'REPLICATION' END),
       (SELECT string_agg(g.rolname, ', ' ORDER BY g.rolname)
        FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid WHERE m.member = r.oid)
FROM pg_roles r WHERE rolname = current_user
"""


class DatabaseUnavailable(Unavailable):
    """The database does not answer, or broke off. What was not acknowledged may be asked for again."""

    default_code = "database-unavailable"


class _Text(StrDumperUnknown):
    """Text as a parameter. A NUL, which PostgreSQL's texts cannot hold, becomes the replacement character.

    What is to be stored is refused long before if it has one; what is only looked for is then not found, as it should be.
    """

    def dump(self, obj: str) -> Any:
        return super().dump(obj.replace("\0", "\N{REPLACEMENT CHARACTER}"))


def open_postgres(url: URL, *, pool_size: int, every_tenant: bool) -> Engine:
    """Open an engine on a PostgreSQL database; see `licet_engine.store.db.open_engine`."""
    engine = create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=_POOL_TIMEOUT_S,
        hide_parameters=True,
        connect_args={
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "application_name": "licet",
            # A peer that vanished without a word is noticed within half a minute.
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            # A process that stopped in mid-transaction must not keep a head locked for ever.
            "options": f"-c idle_in_transaction_session_timeout={_IDLE_IN_TRANSACTION_MS}",
        },
        execution_options={_DEFAULT_SCOPE: (EVERY_TENANT,) if every_tenant else ()},
    )
    event.listen(engine, "do_connect", _connect)
    event.listen(engine, "connect", _on_connect)
    return engine


def _connect(dialect: Dialect, _record: Any, args: Any, options: Any) -> Any:
    try:
        return dialect.connect(*args, **options)
    except PsycopgOperationalError as error:
        raise _may_pass(error) from error


def _may_pass(error: PsycopgError) -> PsycopgOperationalError:
    """The same in words by which the workflow engine, which looks for them, takes it for what may pass.

    Else it would end an operation: the driver has other words where nobody listens at a Unix socket, or where a connection is lost before
    it was used.
    """
    return PsycopgOperationalError(f"connection failed: {str(error).removeprefix('connection failed: ')}")


def _on_connect(dbapi_connection: Any, _record: Any) -> None:
    # The pool does not close a connection that is refused here, or on which this breaks off.
    try:
        _prepare(dbapi_connection)
    except PsycopgError as error:
        dbapi_connection.close()
        raise _may_pass(error) from error
    except BaseException:
        dbapi_connection.close()
        raise


def _prepare(dbapi_connection: Any) -> None:
    dbapi_connection.adapters.register_dumper(str, _Text)
    with dbapi_connection.cursor() as cursor:
        cursor.execute(_INSPECT)
        sees_through, role, encoding, _, powers, groups = cursor.fetchone()
    # Committed: the pool rolls a connection back, which would undo the setting.
    dbapi_connection.commit()
    if sees_through:
        raise ConfigurationError(
            f"the database role {role!r} is a superuser or has BYPASSRLS, so no wall between tenants holds for it; "
            "connect as a plain role"
        )
    if powers:
        mend = " ".join(f"NO{power}" for power in powers.split(", "))
        raise ConfigurationError(
            f'the database role {role!r} has {powers}, and must be a plain role: ALTER ROLE "{role}" {mend}'
        )
    if groups:
        raise ConfigurationError(
            f"the database role {role!r} is a member of {groups}, and may do what that may; connect as a role that is a member of none"
            f' (as the administrator: REVOKE ... FROM "{role}")'
        )
    if encoding != "UTF8":
        raise ConfigurationError(f"the database is encoded as {encoding}; create one with ENCODING 'UTF8'")


def is_postgres(engine: Engine) -> bool:
    """Whether this is an engine on PostgreSQL."""
    return engine.dialect.name == "postgresql"


@contextmanager
def transaction(engine: Engine, tenants: Sequence[str], *, write: bool) -> Iterator[Connection]:
    """Open a transaction about some tenants: committed at the end of the block, rolled back by an exception.

    Raises:
        DatabaseUnavailable: The database does not answer. Where that is told of the commit, it may have been made or not.
    """
    try:
        # It was begun already: the second of these only ends it.
        with _begin(engine, tenants, write=write) as connection, connection.get_transaction() or connection.begin():
            yield connection
    except (OperationalError, InterfaceError, PoolTimeoutError) as error:
        raise DatabaseUnavailable("the database does not answer; try again, or see licet doctor") from error


def _begin(engine: Engine, tenants: Sequence[str], *, write: bool) -> Connection:
    try:
        return _begin_once(engine, tenants, write=write)
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
    # The connection had been lost while it lay in the pool, and with it all that lay there. Nothing was done on it.
    return _begin_once(engine, tenants, write=write)


def _begin_once(engine: Engine, tenants: Sequence[str], *, write: bool) -> Connection:
    connection = engine.connect()
    try:
        if not write:
            connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        connection.begin()
        scope: Sequence[str] = tenants or connection.get_execution_options()[_DEFAULT_SCOPE]
        if scope:
            connection.execute(_SET_SCOPE, {"tenants": list(scope)})
        else:
            connection.execute(_SET_NO_SCOPE)
    except BaseException:
        connection.close()
        raise
    return connection
