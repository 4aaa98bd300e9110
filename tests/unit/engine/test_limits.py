"""Rates, places and turns: what is promised to who floods, and to who does not."""

from __future__ import annotations

import asyncio

import pytest

from licet_engine.api.limits import Places
from licet_engine.domain import rates
from licet_engine.domain.errors import Busy, TooManyRequests
from licet_engine.domain.rates import BURST_S, Buckets


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_caller_may_send_its_burst_and_then_its_rate() -> None:
    clock = Clock()
    buckets = Buckets(10, clock)
    assert [buckets.take("a") for _ in range(10 * BURST_S)] == [0.0] * (10 * BURST_S)
    assert buckets.take("a") == pytest.approx(0.1)
    clock.now_s += 1.0
    assert sum(buckets.take("a") == 0 for _ in range(100)) == 10


def test_callers_have_buckets_of_their_own_and_a_bounded_number_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_MAX_BUCKETS", 3)
    buckets = Buckets(1, Clock())
    for _ in range(BURST_S):
        buckets.take("a")
    assert buckets.take("a") > 0
    assert buckets.take("b") == 0
    for name in "cdef":
        buckets.take(name)
    assert len(buckets._buckets) == 3


def test_a_bucket_is_never_fuller_than_its_burst() -> None:
    clock = Clock()
    buckets = Buckets(5, clock)
    buckets.take("a")
    clock.now_s += 1e6
    assert sum(buckets.take("a") == 0 for _ in range(100)) == 5 * BURST_S


async def hold(places: Places, tenant: str, until: asyncio.Event, served: list[str]) -> None:
    async with places.place(tenant):
        served.append(tenant)
        await until.wait()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_no_tenant_takes_more_than_half_of_the_places() -> None:
    async def play() -> None:
        places, until, served = Places(4, 100), asyncio.Event(), []
        flood = [asyncio.create_task(hold(places, "flood", until, served)) for _ in range(10)]
        await settle()
        assert served == ["flood", "flood"]
        assert (places.active, places.waiting) == (2, 8)
        # Another tenant finds a place at once, however many wait.
        other = asyncio.create_task(hold(places, "other", until, served))
        await settle()
        assert served == ["flood", "flood", "other"]
        until.set()
        await asyncio.gather(*flood, other)
        assert (places.active, places.waiting, len(served)) == (0, 0, 11)

    asyncio.run(play())


def test_those_who_wait_are_let_in_turn_by_turn() -> None:
    async def play() -> None:
        places, served = Places(2, 100), []
        gates = [asyncio.Event() for _ in range(2)]
        first = [asyncio.create_task(hold(places, name, gates[0], served)) for name in ("x", "y")]
        await settle()
        waiting = [asyncio.create_task(hold(places, name, gates[1], served)) for name in ("a", "a", "a", "b", "c")]
        await settle()
        gates[1].set()
        gates[0].set()
        await asyncio.gather(*first, *waiting)
        assert served[2:5] == ["a", "b", "c"]

    asyncio.run(play())


def test_a_full_queue_refuses_the_tenant_that_filled_it_and_then_everybody() -> None:
    async def play() -> None:
        places, until, served = Places(2, 4), asyncio.Event(), []
        tasks = [asyncio.create_task(hold(places, name, until, served)) for name in ("a", "a", "a", "b", "b", "b")]
        await settle()
        # Two of each wait behind the one that has a place: each has its half of the queue.
        with pytest.raises(TooManyRequests):
            await hold(places, "a", until, served)
        with pytest.raises(Busy):
            await hold(places, "c", until, served)
        until.set()
        await asyncio.gather(*tasks)
        assert (places.active, places.waiting) == (0, 0)

    asyncio.run(play())


def test_who_waits_too_long_or_goes_away_leaves_nothing_behind() -> None:
    async def play() -> None:
        places, until, served = Places(2, 100, longest_wait_s=0.01), asyncio.Event(), []
        first = asyncio.create_task(hold(places, "a", until, served))
        await settle()
        with pytest.raises(Busy):
            await hold(places, "a", until, served)
        gone = asyncio.create_task(hold(places, "a", until, served))
        await settle()
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        until.set()
        await first
        assert (places.active, places.waiting) == (0, 0)
        await hold(places, "a", until, served)
        assert served == ["a", "a"]

    asyncio.run(play())
