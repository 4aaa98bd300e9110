"""A real S3 server for all tests that misuse it, and for each a proxy and a bucket of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from s3_place import Place  # The line above finds it.
from s3_proxy import Proxy

from s3_server import S3Server


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
