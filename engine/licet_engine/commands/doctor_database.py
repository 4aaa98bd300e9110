"""The database as ``licet doctor`` sees it: SQLite or PostgreSQL, for reading alone.

Rules kept here:

- Nothing is written: SQLite is opened ``mode=ro``, PostgreSQL by transactions that are READ ONLY.
- PostgreSQL is looked at as the api, which needs no right that the service has not. Tables that the api may not see of all tenants at
  once are asked for in the name of every tenant.
- What the server says of a refused connection is told to whoever runs the doctor, the password never.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from licet_engine.settings import Settings

    Ask = Callable[..., Sequence[tuple[Any, ...]]]
    """Gives the rows of a query; values are given by name."""


@contextmanager
def looked_into(settings: Settings) -> Iterator[Ask | None]:
    """A way to ask the database; None where it is not there or does not answer, which another look tells."""
    if settings.database_urls:
        yield from _postgres(settings)
    elif settings.database.is_file():
        file = f"file:{settings.database.absolute()}?mode=ro"
        with closing(sqlite3.connect(file, uri=True, timeout=5)) as database:
            yield lambda query, **values: database.execute(query, values).fetchall()
    else:
        yield None


def _postgres(settings: Settings) -> Iterator[Ask | None]:
    from sqlalchemy import text  # noqa: PLC0415  # Servers only.

    from licet_engine.domain.errors import LicetError  # noqa: PLC0415  # As above.
    from licet_engine.store.access import Role, open_database, verify_access  # noqa: PLC0415  # As above.
    from licet_engine.store.db import read_transaction  # noqa: PLC0415  # As above.
    from licet_engine.store.postgres import EVERY_TENANT  # noqa: PLC0415  # As above.

    try:
        verify_access(settings, Role.API)
    except LicetError:
        yield None
        return
    engine = open_database(settings, Role.API)
    try:
        with read_transaction(engine, EVERY_TENANT) as connection:
            tenants = connection.execute(text("SELECT tenant_id FROM tenant")).scalars().all()
        with read_transaction(engine, EVERY_TENANT, *tenants) as connection:
            yield lambda query, **values: [tuple(row) for row in connection.execute(text(query), values)]
    finally:
        engine.dispose()
