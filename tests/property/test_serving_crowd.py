"""Whatever tenants and strangers do, none of them has more than its share of the router."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from licet_adapters.serving import counting
from licet_adapters.serving.counting import InvocationCounter
from licet_adapters.serving.crowd import NOBODY, Crowd

PLACES, ROOM = 8, 100
TENANTS = st.sampled_from(["a", "b", "c"])


class Guest:
    def __init__(self, *, is_idle: bool) -> None:
        self.is_idle = is_idle
        self.was_sent_away = False

    def give_way(self) -> None:
        self.was_sent_away = True


class CrowdMachine(RuleBasedStateMachine):
    """A crowd, and what is known of it without looking into it."""

    def __init__(self) -> None:
        super().__init__()
        self.crowd: Crowd[Guest] = Crowd(PLACES, ROOM)
        self.guests: list[Guest] = []
        self.speaks: dict[Guest, str] = {}
        self.held: list[tuple[str, int]] = []

    @rule(is_idle=st.booleans())
    def enter(self, is_idle: bool) -> None:  # noqa: FBT001  # Drawn by name.
        guest = Guest(is_idle=is_idle)
        if self.crowd.enter(guest):
            self.guests.append(guest)
            self.speaks[guest] = NOBODY
        else:
            assert all(self.speaks[one] and not one.is_idle for one in self.crowd.members())

    @precondition(lambda self: self.guests)
    @rule(which=st.integers(0, 50), tenant=TENANTS)
    def know(self, which: int, tenant: str) -> None:
        guest = self.guests[which % len(self.guests)]
        if self.crowd.know(guest, tenant):
            self.speaks[guest] = tenant

    @precondition(lambda self: self.guests)
    @rule(which=st.integers(0, 50))
    def leave(self, which: int) -> None:
        self.crowd.leave(self.guests[which % len(self.guests)])

    @rule(owner=TENANTS | st.just(NOBODY), size=st.integers(1, 60))
    def hold(self, owner: str, size: int) -> None:
        if self.crowd.hold(owner, size):
            self.held.append((owner, size))

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 50))
    def let_go(self, which: int) -> None:
        self.crowd.let_go(*self.held.pop(which % len(self.held)))

    @invariant()
    def nobody_has_more_than_half(self) -> None:
        here = self.crowd.members()
        assert len(here) == len(self.crowd) <= PLACES
        assert not any(guest.was_sent_away for guest in here)
        assert max(Counter(self.speaks[guest] for guest in here).values(), default=0) <= PLACES // 2
        waiting: Counter[str] = Counter()
        for owner, size in self.held:
            waiting[owner] += size
        assert waiting.total() <= ROOM
        assert max(waiting.values(), default=0) <= ROOM // 2

    def teardown(self) -> None:
        for owner, size in self.held:
            self.crowd.let_go(owner, size)
        assert self.crowd.hold("a", ROOM // 2)
        assert self.crowd.hold("b", ROOM // 2)


TestNobodyHasMoreThanHalf = CrowdMachine.TestCase
TestNobodyHasMoreThanHalf.settings = settings(deadline=None, max_examples=60)


def test_room_is_made_by_who_was_quiet_for_longest_and_never_by_who_is_in_the_middle_of_something() -> None:
    crowd: Crowd[Guest] = Crowd(4, ROOM)
    guests = [Guest(is_idle=number != 0) for number in range(4)]
    for guest, tenant in zip(guests, "aabb", strict=True):
        assert crowd.enter(guest)
        assert crowd.know(guest, tenant)
    assert crowd.know(guests[1], "a")
    assert crowd.enter(Guest(is_idle=True))
    assert [guest.was_sent_away for guest in guests] == [False, False, True, False]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("counter")


@given(st.lists(st.integers(0, 30), min_size=1, max_size=200), st.integers(1, 6))
@settings(deadline=None, max_examples=50)
def test_batches_are_bounded_and_each_names_who_its_numbers_were_given_to(
    folder: Path, sessions: list[int], most: int
) -> None:
    path = folder / "counter.json"
    path.unlink(missing_ok=True)
    before, counting.MAX_GROUPS = counting.MAX_GROUPS, most
    try:
        counter = InvocationCounter(path, "router")
        counter.align(0)
        counter.reserve()
        given_to = {counter.take(f"{session:032x}", 1, "ok"): f"{session:032x}" for session in sessions}
        told = 0
        while (batch := counter.cut()) is not None:
            assert batch["first"] == told + 1
            told = batch["last"]
            assert len(batch["groups"]) <= most
            covered = Counter(given_to[number] for number in range(batch["first"], told + 1))
            assert {group["session"]: group["count"] for group in batch["groups"]} == covered
            counter.acknowledge()
        assert told == len(sessions)
        assert not counter.has_full
    finally:
        counting.MAX_GROUPS = before
