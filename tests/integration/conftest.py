"""One real installation for the tests that walk it as its users do."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from service_world import UUIDS, Installation, table  # The line above finds it.

from databases import KINDS
from postgres_server import PostgresServer

ON_EVERY_KIND = frozenset(
    {
        *(
            "test_approvers_day",
            "test_bad_input",
            "test_break_glass",
            "test_device_runs",
            "test_first_steps",
            "test_idempotency",
        ),
        *(
            "test_isolation",
            "test_operations",
            "test_policies_in_force",
            "test_publication",
            "test_walls",
            "test_workload",
        ),
    }
)
"""Modules whose tests run on every kind of database: of what one asks of a store, everything is in them. The others run on the first."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Say on which kinds of database a test walks its world."""
    if "world" in metafunc.fixturenames:
        kinds = KINDS if metafunc.module.__name__.rpartition(".")[2] in ON_EVERY_KIND else KINDS[:1]
        metafunc.parametrize("world", kinds, indirect=True, scope="session")


@pytest.fixture(scope="session")
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Two tenants with their people and one dataset each, on a database of the kind that is asked for."""
    urls = ""
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        urls = str(server.write_urls(server.create(), tmp_path_factory.mktemp("database") / "urls"))
    installation = Installation(
        max_body_bytes=64 << 10,
        max_upload_bytes=4 << 20,
        examination_s=30,
        database_urls=urls,
        devices=",".join(UUIDS),
    )
    try:
        installation.start()
        for tenant, region in (("northbank", "us"), ("lakeside", "eu")):
            installation.people(tenant, region)
            assert installation.register(f"{tenant}/ana", "loans", table()).state == "done"
        yield installation
    finally:
        installation.stop()


@pytest.fixture(scope="session")
def trained(world: Installation) -> str:
    """A model version of northbank, trained by its pipeline and registered, in no stage."""
    ci = world.client("northbank/ci")
    launch = {"dataset": "northbank/loans", "environment": "us-east", "use": "credit-risk", "spec": {"epochs": 20}}
    assert world.done(ci, ci.act("training.launch", "northbank/run-1", launch)).state == "done"
    answer = ci.act("model.register", "northbank/risk", {"run": "northbank/run-1", "tier": "high"})
    assert world.done(ci, answer).state == "done"
    version: str = answer.result["version"]
    assert version == "northbank/risk@1"
    return version
