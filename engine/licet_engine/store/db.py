"""Engines, transactions and sessions: the one place that knows which database is behind them.

Rules kept here:

- A tenant is a wall (law 4). A `TenantSession` reads and writes the rows of its own tenant: statements through mapped classes are
  narrowed to the tenant, everything it cannot narrow (plain tables, text, statement inserts) is refused, and so is a row of
  another tenant. What must see every tenant says so by `UnsafeAllTenants`.
- What is committed is durable: SQLite runs in WAL mode with ``synchronous=FULL``.
- Writers queue. On SQLite a writer takes an ``flock`` and then ``BEGIN IMMEDIATE``, so processes wait in the kernel instead of
  polling, and no transaction that began as a reader is ever turned into a writer. A writer must not open a second write
  transaction within the first: it would wait for itself. On PostgreSQL writers do not wait for each other as such: they lock the rows
  that they rest on (`licet_engine.store.postgres`).
- A transaction says which tenants it is about. PostgreSQL holds it to that; SQLite has no such wall.
"""

import fcntl
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from sqlalchemy import Alias, Connection, Engine, Insert, Select, Table, TextClause, create_engine, event, inspect
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import ORMExecuteState, UOWTransaction, with_loader_criteria
from sqlalchemy.sql.base import ExecutableOption
from sqlalchemy.sql.expression import ColumnClause, Executable, TableClause
from sqlmodel import Session, select

from licet_engine.domain.errors import LicetError
from licet_engine.store import postgres
from licet_engine.store.tables import TenantRow

logger = logging.getLogger(__name__)

DEFAULT_BUSY_TIMEOUT_MS: Final = 10_000
"""How long SQLite waits for a writer that takes no part in our lock file, such as the workflow engine."""

_WRITE: Final = "licet_write"
_LOCK_PATH: Final = "licet_lock_path"


class StoreError(LicetError):
    """Root of the store's errors."""

    default_code = "store-error"


class TenantScopeError(StoreError):
    """A statement or row would have left its tenant. A defect of the caller; never an answer to a user."""

    default_code = "tenant-scope"


# --- Engines and transactions -------------------------------------------------------------------------------------------


def open_engine(
    database: str | Path | URL,
    *,
    busy_timeout_ms: int = DEFAULT_BUSY_TIMEOUT_MS,
    pool_size: int = 8,
    every_tenant: bool = False,
) -> Engine:
    """Open an engine on a database.

    Args:
        database: Path of a SQLite file (made where there is none), or the URL of a SQLite or PostgreSQL database.
        busy_timeout_ms: How long SQLite waits for a foreign writer.
        pool_size: Connections kept open; as many again may be opened under load.
        every_tenant: Whether a transaction that names no tenant is about all of them, as for migrations and fsck; else PostgreSQL shows
            it nothing and lets it write nothing.

    Returns:
        An engine whose write transactions are to be opened by `write_transaction`.

    Raises:
        StoreError: The database is of a kind that is not supported.
    """
    if isinstance(database, URL):
        url = database
    elif isinstance(database, str) and "://" in database:
        url = make_url(database)
    else:
        url = URL.create("sqlite", database=str(database))
    if url.get_backend_name() == "postgresql":
        return postgres.open_postgres(url, pool_size=pool_size, every_tenant=every_tenant)
    if url.get_backend_name() != "sqlite":
        raise StoreError(
            f"database {url.get_backend_name()!r} is not supported: give the path of a SQLite file, or the URL of a PostgreSQL database"
        )
    if url.database in {None, "", ":memory:"} or str(url.database).startswith("file:"):
        raise StoreError("an in-memory database keeps nothing: give the path of a SQLite file")
    path = Path(str(url.database)).absolute()
    engine = create_engine(
        url.set(database=str(path)),
        pool_size=pool_size,
        max_overflow=pool_size,
        connect_args={"check_same_thread": False, "timeout": busy_timeout_ms / 1000},
        execution_options={_LOCK_PATH: f"{path}.lock"},
    )

    def on_connect(dbapi_connection: Any, _record: Any) -> None:
        # The driver must not open transactions by itself: the "begin" event below does.
        dbapi_connection.isolation_level = None
        cursor = dbapi_connection.cursor()
        for pragma in (
            f"busy_timeout={int(busy_timeout_ms)}",
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "trusted_schema=OFF",
            # What is erased is written over where it stood, and not only let go.
            "secure_delete=ON",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    def on_begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(_WRITE, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "begin", on_begin)
    return engine


def always_writing(engine: Engine) -> Engine:
    """The same engine for whoever does not say which of its transactions write, such as the workflow engine.

    Every transaction then begins as a writer. On SQLite one that begins as a reader and writes later fails at once where
    somebody else wrote in between, however long it would be willing to wait.
    """
    return engine.execution_options(**{_WRITE: True})


@contextmanager
def write_lock(engine: Engine) -> Iterator[None]:
    """Hold the lock of the database's writers, where the database needs one beside its own."""
    lock_path = engine.get_execution_options().get(_LOCK_PATH)
    if lock_path is None:
        yield
        return
    # A descriptor of its own for every holder: flock then keeps threads apart as well as processes. The kernel lets go of it when the
    # holder dies; the file itself stays.
    descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def write_transaction(engine: Engine, *tenants: str) -> Iterator[Connection]:
    """Open a transaction that writes: committed at the end of the block, rolled back by an exception.

    Args:
        engine: From `open_engine`.
        tenants: Which tenants it is about; it must not touch a row of another.

    Raises:
        DatabaseUnavailable: PostgreSQL does not answer.
    """
    if postgres.is_postgres(engine):
        with postgres.transaction(engine, tenants, write=True) as connection:
            yield connection
        return
    with write_lock(engine), engine.connect().execution_options(**{_WRITE: True}) as connection, connection.begin():
        yield connection


@contextmanager
def read_transaction(engine: Engine, *tenants: str) -> Iterator[Connection]:
    """Open a transaction that reads one consistent state of the database.

    Args:
        engine: From `open_engine`.
        tenants: Which tenants it is about.

    Raises:
        DatabaseUnavailable: PostgreSQL does not answer.
    """
    if postgres.is_postgres(engine):
        with postgres.transaction(engine, tenants, write=False) as connection:
            yield connection
        return
    with engine.connect() as connection, connection.begin():
        yield connection


def overwrite_what_failed(connection: Connection) -> None:
    """Have this transaction write over what a commit left behind that failed, so that nobody finds it.

    A commit of SQLite whose sync fails is not seen by those who have the database open, but it stands whole in the write-ahead log: whoever
    recovers that after a crash would take it for committed. The next commit is written in its place. PostgreSQL ends where a sync
    fails, and knows after its recovery what was committed.
    """
    if not postgres.is_postgres(connection.engine):
        # Writes the first page of the database, whatever else there is to write.
        version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
        connection.exec_driver_sql(f"PRAGMA user_version = {int(version)}")


def forget_what_was_overwritten(engine: Engine) -> bool:
    """Have the database's write-ahead log emptied, where what was erased since may still stand; whether it was.

    Only SQLite's: what PostgreSQL keeps of it goes as `VACUUM` and its own log go. It gives up at once where somebody reads or writes.
    """
    if postgres.is_postgres(engine):
        return True
    with write_lock(engine), engine.connect() as connection:
        raw: Any = connection.connection.driver_connection
        timeout_ms = raw.execute("PRAGMA busy_timeout").fetchone()[0]
        raw.execute("PRAGMA busy_timeout=0")
        try:
            busy, _, _ = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            raw.execute(f"PRAGMA busy_timeout={int(timeout_ms)}")
    return not busy


def insert_if_absent(connection: Connection, table: Table) -> Insert:
    """Build an insert that leaves a row alone whose key is already there: for rows addressed by their content.

    Args:
        connection: Tells which database the statement is for.
        table: The table to insert into.

    Returns:
        The statement; rows are given when it is executed.
    """
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table).on_conflict_do_nothing()
    return sqlite.insert(table).on_conflict_do_nothing()


def insert_or_add(connection: Connection, table: Table, *, add: Iterable[str], replace: Iterable[str] = ()) -> Insert:
    """Build an insert that adds to the row that is there already: for what several processes count.

    Args:
        connection: Tells which database the statement is for.
        table: The table to insert into.
        add: Columns whose value is added to what stands there.
        replace: Columns whose value takes its place.

    Returns:
        The statement; rows are given when it is executed.
    """
    statement: Any = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)
    values = {name: table.c[name] + statement.excluded[name] for name in add}
    values |= {name: statement.excluded[name] for name in replace}
    made: Insert = statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=values)
    return made


# --- Sessions -----------------------------------------------------------------------------------------------------------


class TenantSession(Session):
    """A session that cannot leave its tenant. Opened by `tenant_session`.

    ``exec``/``execute`` take selects, updates and deletes over mapped classes; rows are inserted by ``add``.
    """

    def __init__(self, bind: Connection, tenant_id: str, *, writable: bool) -> None:
        super().__init__(bind=bind, expire_on_commit=False)
        self.tenant_id = tenant_id
        self.writable = writable

    def connection(self, *_args: Any, **_kwargs: Any) -> Connection:
        """Refuse: a connection knows no tenant."""
        raise TenantScopeError("a tenant session gives no bare connection: use its statements, or UnsafeAllTenants")

    def get(self, entity: Any, ident: Any, **_kwargs: Any) -> Any:
        """Get a row by its whole primary key, tenant first; ``None`` where the tenant has no such row."""
        columns = inspect(entity).primary_key
        values = ident if isinstance(ident, tuple) else (ident,)
        if len(columns) != len(values):
            raise TenantScopeError(f"{entity.__name__} is found by {len(columns)} key values, tenant first")
        wanted = (getattr(entity, column.key) == value for column, value in zip(columns, values, strict=True))
        return self.exec(select(entity).where(*wanted)).first()

    def _refuse_bulk(self, *_args: Any, **_kwargs: Any) -> None:
        raise TenantScopeError("bulk methods pass the tenant check by: use add_all, or UnsafeAllTenants")

    bulk_save_objects = _refuse_bulk
    bulk_insert_mappings = _refuse_bulk
    bulk_update_mappings = _refuse_bulk


@contextmanager
def tenant_session(engine: Engine, tenant_id: str, *, write: bool = False) -> Iterator[TenantSession]:
    """Open a session on the rows of one tenant, in one transaction.

    Args:
        engine: From `open_engine`.
        tenant_id: The tenant whose rows are seen; empty is refused.
        write: Whether the session may change rows; it commits when the block ends. On SQLite it holds the writers' lock until then; on
            PostgreSQL whatever a change rests on is to be read ``with_for_update``. Facts are not written this way but by the
            sequencer, which raises the facts version; this is for telemetry and the like.

    Yields:
        The session. What it loaded stays usable after the block.
    """
    if not tenant_id:
        raise TenantScopeError("a session needs a tenant")
    opened = write_transaction(engine, tenant_id) if write else read_transaction(engine, tenant_id)
    with opened as connection, TenantSession(connection, tenant_id, writable=write) as session:
        yield session
        if write:
            session.flush()
        session.expunge_all()


@event.listens_for(TenantSession, "do_orm_execute")
def _narrow(state: ORMExecuteState) -> None:
    """Narrow a statement to the session's tenant, or refuse it."""
    session = state.session
    if not isinstance(session, TenantSession):
        raise TenantScopeError("not a tenant session")
    if not (state.is_select or state.is_update or state.is_delete) or not state.is_orm_statement:
        raise TenantScopeError(
            "a tenant session executes selects, updates and deletes over mapped classes; rows are inserted by add()"
        )
    if not state.is_select and not session.writable:
        raise TenantScopeError("this tenant session only reads: open it with write=True")
    row_classes = _mapped_classes(state.statement)
    if not state.is_select and state.parameters:
        # An update by a list of primary keys is made without criteria.
        raise TenantScopeError("a tenant session executes no bulk update: change the rows, or use values() and where()")
    if state.is_update:
        changed = {getattr(column, "key", column) for column, _ in _set_clauses(state.statement)}
        if "tenant_id" in changed:
            raise TenantScopeError("a row never changes its tenant")
    state.statement = state.statement.options(*_criteria(session.tenant_id, row_classes))


@lru_cache(maxsize=4096)
def _criteria(tenant_id: str, row_classes: frozenset[type[TenantRow]]) -> tuple[ExecutableOption, ...]:
    # NOTE: A lambda, not an expression: only a lambda is given the alias where a class appears under one.
    return tuple(
        with_loader_criteria(row_class, lambda cls: cls.tenant_id == tenant_id, include_aliases=True)
        for row_class in row_classes
    )


def _set_clauses(statement: Any) -> list[tuple[Any, Any]]:
    values = dict(statement._values or {})  # noqa: SLF001  # SQLAlchemy offers no public view of an update's SET clause.
    ordered = dict(statement._ordered_values or ()) if hasattr(statement, "_ordered_values") else {}  # noqa: SLF001  # As above.
    return [*values.items(), *ordered.items()]


def _mapped_classes(statement: Executable) -> frozenset[type[TenantRow]]:
    """Find the mapped classes that a statement names, at any depth.

    Raises:
        TenantScopeError: It names a plain table, text or literal SQL, which loader criteria do not reach, or no mapped class at all.
    """
    pending: list[Any] = [statement]
    seen: dict[int, Any] = {}
    found: set[type[TenantRow]] = set()
    while pending:
        element = pending.pop()
        if id(element) in seen:
            continue
        seen[id(element)] = element
        annotations: dict[str, Any] = getattr(element, "_annotations", {})
        entity = annotations.get("parententity") or annotations.get("parentmapper")
        if entity is not None:
            found.add(entity.mapper.class_)
        pending.extend(_children(element, mapped=entity is not None))
    if not found or not all(issubclass(row_class, TenantRow) for row_class in found):
        raise TenantScopeError("a statement of a tenant session names mapped classes of ours, and at least one")
    return frozenset(found)


def _children(element: Any, *, mapped: bool) -> Iterable[Any]:
    if isinstance(element, TextClause) or (
        isinstance(element, ColumnClause) and element.is_literal and element.name != "*"
    ):
        raise TenantScopeError("text in a statement cannot be narrowed to a tenant")
    if isinstance(element, TableClause):
        if not mapped:
            raise TenantScopeError(f"table {element.name!r} is named outside its mapped class")
        return ()
    if isinstance(element, ColumnClause):
        # A column does not count its table among its children, and may be the only mention of a subquery.
        return () if element.table is None or (mapped and _is_table(element.table)) else (element.table,)
    if isinstance(element, Alias) and mapped and _is_table(element):
        return ()
    if isinstance(element, Select):
        # A select counts the bare tables of its columns among its children; the columns themselves tell more.
        return super(Select, element).get_children(omit_attrs=("_correlate", "_correlate_except"))
    children: Iterable[Any] = element.get_children()
    return children


def _is_table(element: Any) -> bool:
    while isinstance(element, Alias):
        element = element.element
    return isinstance(element, Table)


@event.listens_for(TenantSession, "before_flush")
def _refuse_foreign_rows(session: Session, _context: UOWTransaction, _instances: Any) -> None:
    """Let only rows of the session's tenant be written."""
    if not isinstance(session, TenantSession):
        raise TenantScopeError("not a tenant session")
    for row in (*session.new, *session.dirty, *session.deleted):
        if not session.writable:
            raise TenantScopeError("this tenant session only reads: open it with write=True")
        if getattr(row, "tenant_id", None) != session.tenant_id:
            raise TenantScopeError(f"a {type(row).__name__} of another tenant cannot be written in this session")


class UnsafeAllTenants:
    """A session that sees the rows of EVERY tenant: only for identity look-up, migrations, fsck and the platform's own listing.

    Args:
        engine: From `open_engine`.
        reason: Why no tenant can be named; it is logged once per process.
        write: As for `tenant_session`.
    """

    _reasons_warned: Final[set[str]] = set()

    def __init__(self, engine: Engine, reason: str, *, write: bool = False) -> None:
        if not reason:
            raise TenantScopeError("a session over all tenants needs a reason")
        if reason not in self._reasons_warned:
            self._reasons_warned.add(reason)
            # Each of them is known and meant; to an operator, who sees warnings, it is none.
            logger.info("session over all tenants", extra={"reason": reason})
        everyone = postgres.EVERY_TENANT
        self._opened = write_transaction(engine, everyone) if write else read_transaction(engine, everyone)
        self._session: Session | None = None

    def __enter__(self) -> Session:
        self._session = Session(bind=self._opened.__enter__(), expire_on_commit=False)
        return self._session

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        session = self._session
        if session is None:
            raise UnboundExecutionError("the session was never entered")
        try:
            if error is None:
                session.flush()
            session.expunge_all()
        except BaseException as flush_error:
            if not self._opened.__exit__(type(flush_error), flush_error, flush_error.__traceback__):
                raise
        else:
            self._opened.__exit__(kind, error, trace)
        finally:
            session.close()
            self._session = None
