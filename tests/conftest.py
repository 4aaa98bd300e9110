"""The databases that tests run on: every test that asks for ``database`` or ``prepared`` runs on each kind.

``TEST_DATABASES`` (``sqlite``, ``postgresql``, or both separated by a comma) names the kinds. Tests that make an installation of
their own run on the first; so ``TEST_DATABASES=postgresql`` runs everything on PostgreSQL.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from databases import KINDS, Database, shared_server
from licet_engine.init import prepare_database
from licet_engine.settings import load_settings
from licet_engine.store.access import Role
from licet_engine.store.migrations import upgrade
from postgres_server import PostgresServer  # The line above finds it, and the one before.


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """How many processes ``-n auto`` is: half as many again as processors, since much of the time others are waited for."""
    return max(2, (os.cpu_count() or 1) * 3 // 2)


@pytest.fixture(scope="session")
def postgres() -> PostgresServer:
    """One server for all tests that only need a database on it."""
    return shared_server()


def pytest_sessionfinish() -> None:
    """Stop the server, if any test needed one."""
    if shared_server.cache_info().currsize:
        shared_server().close()


@pytest.fixture(scope="session")
def migrated(postgres: PostgresServer) -> str:
    """Name of a database with all tables, walls and rights, to be copied and never written."""
    name = postgres.create()
    with tempfile.TemporaryDirectory() as folder:
        urls = postgres.write_urls(name, Path(folder) / "urls")
        prepare_database(load_settings({}, data=Path(folder), database_urls=str(urls)))
    return name


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite database with all tables, closed, to be copied and never written."""
    made = Database("sqlite", tmp_path_factory.mktemp("migrated") / "licet.db")
    engine = made.open()
    upgrade(engine)
    engine.dispose()
    assert isinstance(made.url, Path)
    assert not made.url.with_name("licet.db-wal").exists()
    return made.url


MakeDatabase = Callable[..., AbstractContextManager[Database]]


@pytest.fixture(scope="session")
def make_database(request: pytest.FixtureRequest) -> MakeDatabase:
    """Makes databases: ``with make_database(kind, migrated=...) as database``."""

    @contextmanager
    def make(kind: str, *, migrated: bool = True) -> Iterator[Database]:
        if kind == "sqlite":
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "licet.db"
                if migrated:
                    shutil.copyfile(request.getfixturevalue("migrated_file"), path)
                yield Database("sqlite", path)
            return
        server: PostgresServer = request.getfixturevalue("postgres")
        name = server.create(like=request.getfixturevalue("migrated")) if migrated else server.create()
        try:
            yield Database("postgresql", server.url(name, Role.OWNER))
        finally:
            server.drop(name)

    return make


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest, make_database: MakeDatabase) -> Iterator[Database]:
    """An empty database, of each kind in turn."""
    with make_database(request.param, migrated=False) as made:
        yield made


@pytest.fixture(params=KINDS)
def prepared(request: pytest.FixtureRequest, make_database: MakeDatabase) -> Iterator[Database]:
    """A database with all tables, of each kind in turn."""
    with make_database(request.param) as made:
        yield made
