"""What waits for one person is found among many requests, within bounds that are told where they are hit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from licet_engine.app import build_services
from licet_engine.init import OPERATOR_TOKEN_FILE, initialise
from licet_engine.lifecycle.asked import parse_asked
from licet_engine.lifecycle.catalogue import VERBS
from licet_engine.lifecycle.inbox import Inbox, inbox
from licet_engine.lifecycle.tenants import Tenants
from licet_engine.lifecycle.verbs import Who
from licet_engine.settings import load_settings
from licet_engine.store import tables
from licet_engine.store.db import tenant_session

T = {"tenant_id": "northbank"}
MEI = Who(tenant="northbank", name="mei", kind="person")
FAR_MS = 4_000_000_000_000


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenants]:
    """A tenant with four versions; of each, in turn, there are three requests: two for legal, one for model-risk."""
    settings = load_settings({}, data=tmp_path_factory.mktemp("inbox") / "data")
    initialise(settings)
    services = build_services(settings)
    token = Path(settings.data / OPERATOR_TOKEN_FILE).read_text().strip()
    asked = parse_asked(VERBS["tenant.create"], "northbank", {"region": "us", "administrator": "ada"})
    assert services.desk.ask(lambda: services.tenants.identify(token), asked).decision.allowed
    stamped = {**T, "created_at_ms": 1}
    with tenant_session(services.engine, "northbank", write=True) as session:
        session.add(tables.Principal(**stamped, name="mei", kind="person", roles=["model-risk"]))
        session.add(
            tables.Dataset(
                **stamped,
                name="d",
                classification="internal",
                expires_at_ms=FAR_MS,
                object_id="o",
                digest_hex="",
                state="ready",
                registered_by="ana",
                registered_by_kind="person",
            )
        )
        run = {"use": "u", "environment": "e", "region": "us", "started_by": "ana", "started_by_kind": "person"}
        session.add(tables.Run(**stamped, **run, name="r", state="done", datasets=["d"]))
        session.flush()
        for number in range(1, 5):
            version = {"model": "m", "version": number}
            of_run = {"run": "r", "tier": "high", "use": "u", "state": "ready", "datasets": ["d"], "authors": ["ana"]}
            session.add(tables.ModelVersion(**stamped, **version, **of_run))
            session.flush()
            for turn, track in enumerate(("legal", "legal", "model-risk")):
                request = {"track": track, "binding": "b", "requested_by": "ana", "expires_at_ms": FAR_MS}
                session.add(tables.ApprovalRequest(**T, **version, **request, id=f"{number}-{turn}", at_ms=number))
    yield services.tenants
    services.sequencer.close()
    services.threads.shutdown()
    services.engine.dispose()


def waits(tenants: Tenants, limit: int = 50, **bounds: int) -> tuple[list[str], bool]:
    with tenants.view("northbank") as found:
        assert found is not None
        told: Inbox = inbox(*found, MEI, limit, **bounds)
    return [row["request"] for row in told.rows], told.is_cut


def test_what_may_be_answered_is_found_behind_what_may_not(tenants: Tenants, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = ["1-2", "2-2", "3-2", "4-2"]
    assert waits(tenants) == (everything, False)
    # However the pages fall, also in the middle of those of one moment.
    for rows in range(1, 13):
        monkeypatch.setattr("licet_engine.lifecycle.inbox._PAGE", rows)
        assert waits(tenants) == (everything, False), rows


def test_no_more_are_listed_than_asked_and_that_is_no_bound_that_was_hit(tenants: Tenants) -> None:
    assert waits(tenants, limit=2) == (["1-2", "2-2"], False)


@pytest.mark.parametrize(
    ("most", "found", "is_cut"), [(2, [], True), (3, ["1-2"], True), (11, ["1-2", "2-2", "3-2"], True)]
)
def test_beyond_so_many_requests_none_is_looked_at_and_that_is_told(
    tenants: Tenants, most: int, found: list[str], *, is_cut: bool
) -> None:
    assert waits(tenants, most=most) == (found, is_cut)


def test_where_there_are_just_as_many_as_are_looked_at_nothing_is_missing(tenants: Tenants) -> None:
    assert waits(tenants, most=12, most_versions=4) == (["1-2", "2-2", "3-2", "4-2"], False)


def test_beyond_so_many_versions_none_is_read_and_that_is_told(tenants: Tenants) -> None:
    assert waits(tenants, most_versions=2) == (["1-2", "2-2"], True)
