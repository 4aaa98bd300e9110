"""A question is decided on facts that are true when its decision commits, however fast they change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from licet_engine.api.services import Services
from licet_engine.app import Enqueuer, build_services
from licet_engine.domain.errors import Busy
from licet_engine.init import OPERATOR_TOKEN_FILE, initialise
from licet_engine.lifecycle.asked import Asked, parse_asked
from licet_engine.lifecycle.asking import Desk
from licet_engine.lifecycle.catalogue import VERBS
from licet_engine.lifecycle.verbs import Who
from licet_engine.log.fsck import fsck
from licet_engine.log.sequencer import MAX_TRIES, Sequencer
from licet_engine.log.submission import NewEntry, Receipt, Submission, UnderLock
from licet_engine.settings import load_settings
from licet_engine.store import tables
from licet_engine.store.db import tenant_session

CREATE = {"region": "us", "administrator": "ada"}


class Overtaken(Sequencer):
    """A sequencer before which another changes the platform's facts, each time that something is handed in."""

    other: Sequencer
    changes = 0
    put = 0
    under_lock = 0

    def _overtake(self, handed_in: Submission | UnderLock) -> None:
        self.put += 1
        self.under_lock += isinstance(handed_in, UnderLock)
        if self.changes:
            self.changes -= 1
            facts = NewEntry("platform", "facts", "platform", "platform", b"{}")
            self.other.append(Submission([facts], bump=("platform",)))

    def append(self, submission: Submission | UnderLock, timeout_s: float | None = None) -> Receipt:
        self._overtake(submission)
        return super().append(submission, timeout_s)

    def submit_async(self, submission: Submission | UnderLock) -> asyncio.Future[Receipt]:
        self._overtake(submission)
        return super().submit_async(submission)


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    settings = load_settings({}, data=tmp_path / "data")
    initialise(settings)
    services = build_services(settings)
    yield services
    services.sequencer.close()
    assert [report.problems for report in fsck(services.engine) if report.problems] == []
    services.threads.shutdown()
    services.engine.dispose()


@pytest.fixture
def overtaken(services: Services) -> Iterator[Overtaken]:
    sequencer = Overtaken(services.engine, enqueue=Enqueuer(services.engine))
    sequencer.other = services.sequencer
    yield sequencer
    sequencer.close()


@pytest.fixture
def desk(services: Services, overtaken: Overtaken) -> Desk:
    return Desk(services.engine, overtaken, services.tenants)


@pytest.fixture
def operator(services: Services) -> Callable[[], Who]:
    token = (services.settings.data / OPERATOR_TOKEN_FILE).read_text().strip()
    return lambda: services.tenants.identify(token)


def test_a_question_says_what_an_allow_would_not_make_possible(desk: Desk, operator: Callable[[], Who]) -> None:
    asked = parse_asked(VERBS["tenant.create"], "ours", CREATE, is_dry=True)
    assert ask_async(desk, operator, asked).conflict is None
    desk.ask(operator, replace(asked, is_dry=False, key="once"))
    told = ask_async(desk, operator, asked)
    assert told.decision.allowed
    assert told.conflict_json() == {"code": "conflict", "detail": str(told.conflict)}
    # Nothing is told to who is denied.
    denied = ask_async(desk, operator, parse_asked(VERBS["key.destroy"], "ours", {"reason": "r"}, is_dry=True))
    assert (denied.decision.allowed, denied.conflict_json()) == (False, None)


def test_what_rests_on_more_than_facts_is_not_answered_from_memory(
    services: Services, operator: Callable[[], Who]
) -> None:
    in_thread = Counted()
    desk = Desk(services.engine, services.sequencer, services.tenants)
    row = {"id": "b", "operator": "platform/otto", "reason": "r", "duration_ms": 60_000, "requested_at_ms": 1}
    with tenant_session(services.engine, "platform", write=True) as session:
        session.add(tables.BreakGlass(tenant_id="platform", **row))
    times = {}
    for action, parameters in (("catalogue.read", {}), ("tenant.request-break-glass", {"reason": "r"})):
        asked = parse_asked(VERBS[action], "platform", parameters, is_dry=True)
        before = in_thread.calls
        for _ in range(3):
            asyncio.run(desk.ask_async(operator, asked, in_thread))
        times[action] = in_thread.calls - before
    # Whether an earlier one is unreviewed is a matter of time.
    assert times == {"catalogue.read": 1, "tenant.request-break-glass": 3}


class Counted:
    """Runs what blocks on a thread, and counts how often something had to be read."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, call: Callable[..., Any], *args: Any) -> Any:
        self.calls += 1
        return await asyncio.to_thread(call, *args)


def decisions(services: Services) -> list[str]:
    with tenant_session(services.engine, "platform") as session:
        return [row.action for row in session.exec(select(tables.Decision)).all()]


def ask(desk: Desk, operator: Callable[[], Who], asked: Asked) -> Any:
    return desk.ask(operator, asked)


def ask_async(desk: Desk, operator: Callable[[], Who], asked: Asked) -> Any:
    return asyncio.run(desk.ask_async(operator, asked, asyncio.to_thread))


@pytest.mark.parametrize("changes", range(MAX_TRIES + 1))
@pytest.mark.parametrize("way", [ask, ask_async])
def test_whoever_is_overtaken_again_and_again_is_decided_under_the_lock(
    services: Services, desk: Desk, *, operator: Callable[[], Who], overtaken: Overtaken, way: Any, changes: int
) -> None:
    overtaken.changes = changes
    answer = way(desk, operator, parse_asked(VERBS["tenant.create"], "northbank", CREATE, is_dry=True))
    assert answer.decision.allowed
    assert overtaken.put == changes + 1
    assert overtaken.under_lock == (changes == MAX_TRIES)
    # Decided again as often as need be, and remembered once.
    assert decisions(services) == ["tenant.create"]


def test_what_is_done_under_the_lock_is_done_once_and_answered_alike_to_its_key(
    services: Services, desk: Desk, operator: Callable[[], Who], overtaken: Overtaken
) -> None:
    asked = parse_asked(VERBS["tenant.create"], "northbank", CREATE, key="once")
    overtaken.changes = MAX_TRIES
    first = desk.ask(operator, asked)
    assert (first.decision.allowed, overtaken.under_lock) == (True, 1)
    assert desk.ask(operator, asked).decision_id == first.decision_id
    assert services.tenants.exists("northbank")
    assert decisions(services) == ["tenant.create"]


def test_what_was_done_meanwhile_under_the_same_key_is_answered_from_under_the_lock(
    services: Services, desk: Desk, operator: Callable[[], Who], overtaken: Overtaken, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = parse_asked(VERBS["tenant.create"], "northbank", CREATE, key="once")
    overtaken.changes = MAX_TRIES - 1
    done: list[Any] = []
    overtake = overtaken._overtake

    def by_the_same_request(handed_in: Submission | UnderLock) -> None:
        if isinstance(handed_in, UnderLock):
            done.append(services.desk.ask(operator, asked))
        elif overtaken.put == MAX_TRIES - 1:
            overtaken.changes = 1
        overtake(handed_in)

    monkeypatch.setattr(overtaken, "_overtake", by_the_same_request)
    answer = desk.ask(operator, asked)
    assert answer.decision_id == done[0].decision_id
    assert decisions(services) == ["tenant.create"]


def test_what_is_costly_to_propose_is_given_up_rather_than_decided_under_the_lock(
    services: Services, desk: Desk, operator: Callable[[], Who], overtaken: Overtaken
) -> None:
    asked = parse_asked(VERBS["policy.publish"], "platform", {"packs": [], "policies": ""})
    overtaken.changes = 100
    with pytest.raises(Busy, match="the facts of platform change too fast"):
        desk.ask(operator, asked)
    assert overtaken.under_lock == 0
    assert overtaken.put > MAX_TRIES
    assert decisions(services) == []


def test_what_was_done_is_answered_also_where_its_secret_cannot_be_shown(
    services: Services, operator: Callable[[], Who]
) -> None:
    # No signer runs here.
    made = services.desk.ask(operator, parse_asked(VERBS["tenant.create"], "northbank", CREATE))
    token = made.to_json()["result"]["token"]
    asked = parse_asked(VERBS["webhook.create"], "northbank/ops", {"url": "https://hooks.example/in"})
    answer = services.desk.ask(lambda: services.tenants.identify(token), asked)
    assert answer.decision.allowed
    told = answer.to_json()["result"]
    assert (told["webhook"], told["secret"]) == ("northbank/ops", None)
    assert "licet webhook rotate" in told["note"]
    with tenant_session(services.engine, "northbank") as session:
        assert [row.name for row in session.exec(select(tables.Webhook)).all()] == ["ops"]
