"""A real S3 server for all tests that misuse it, and for each a proxy and a bucket of its own; two supervisors on one database."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from s3_place import Place  # The line above finds it.
from s3_proxy import Proxy

from postgres_server import PostgresServer
from s3_server import S3Server

if TYPE_CHECKING:
    from test_postgres_kill import Slots


@pytest.fixture(scope="session")
def server() -> Iterator[S3Server]:
    s3 = S3Server()
    try:
        s3.start()
        yield s3
    finally:
        s3.close()


@pytest.fixture
def proxy(server: S3Server) -> Iterator[Proxy]:
    between = Proxy(server.port)
    yield between
    between.close()


@pytest.fixture
def place(tmp_path: Path, server: S3Server, proxy: Proxy) -> Place:
    return Place(tmp_path, server, proxy)


@pytest.fixture
def slots(postgres: PostgresServer, tmp_path: Path) -> Iterator[Slots]:
    from test_postgres_kill import Slots  # noqa: PLC0415  # A module of tests, which is not to be imported before they are collected.

    with tempfile.TemporaryDirectory(prefix="lc-") as folder:
        made = Slots(Path(folder), postgres.write_urls(postgres.create(), tmp_path / "urls"))
        try:
            yield made
        finally:
            made.stop()
