"""A database of one test, of whichever kind. Found through ``sys.path`` by ``tests/conftest.py``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.engine import URL

from licet_engine.log import store
from licet_engine.store import db
from licet_engine.store.postgres import is_postgres
from postgres_server import PostgresServer

KINDS = tuple(kind for kind in os.environ.get("TEST_DATABASES", "sqlite,postgresql").split(",") if kind)
"""The kinds that tests run on. A test that makes an installation of its own runs on the first."""


@cache
def shared_server() -> PostgresServer:
    """One server for all tests that only need a database on it; ``conftest`` stops it."""
    return PostgresServer()


def own_database(folder: Path) -> str:
    """A database for an installation of a test's own, as ``LICET_DATABASE_URLS`` names it: on the first kind of `KINDS`."""
    if KINDS[0] == "sqlite":
        return ""
    server = shared_server()
    return str(server.write_urls(server.create(), folder))


class Database:
    """A database.

    Attributes:
        kind: ``sqlite`` or ``postgresql``.
        url: A path; or a URL of its owner, a plain role for whom row security is forced.
    """

    def __init__(self, kind: str, url: Path | URL) -> None:
        self.kind = kind
        self.url = url

    def open(self, **options: Any) -> Engine:
        """Open an engine on it that may look at every tenant."""
        return db.open_engine(self.url, every_tenant=True, **options)

    def write(self, path: Path) -> Path:
        """Write what `open_engine` takes into a file, for a process of the test's own."""
        path.touch(0o600)
        path.write_text(self.url.render_as_string(hide_password=False) if isinstance(self.url, URL) else str(self.url))
        return path


@contextmanager
def writers_held(engine: Engine, *tenants: str) -> Iterator[None]:
    """Let no sequencer write to these tenants' logs (on SQLite: to any) while in the block."""
    if not is_postgres(engine):
        with db.write_lock(engine):
            yield
        return
    # An engine of its own: whoever watches or breaks the statements of the other is not to count these.
    own = db.open_engine(engine.url, every_tenant=True)
    with db.write_transaction(own) as connection:
        store.ensure_heads(connection, tenants)
        store.read_heads(connection, tenants, lock=True)
        yield
    own.dispose()
