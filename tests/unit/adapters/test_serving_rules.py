"""What decides in serving: plans, the split of traffic, advance, scaling, latencies."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from licet_adapters.errors import InputRefused, IntegrityError
from licet_adapters.serving.histogram import Tally, Window, bucket_of, percentile_us, upper_us
from licet_adapters.serving.plan import Replicas, parse_plan
from licet_adapters.serving.rollout import Rollout
from licet_adapters.serving.scaling import CALM_S, Load, wanted_replicas
from licet_adapters.serving.split import TrafficSplit
from licet_adapters.serving.state import Deployed, EndpointState
from licet_attestations import canonical

PLAN: dict[str, Any] = {
    "endpoint": "northbank/credit",
    "version": "northbank/credit-risk@2",
    "model_digest_hex": "a" * 64,
    "region": "local",
    "strategy": "canary",
    "steps": [10, 50, 100],
    "bake_s": 5,
    "fallback": "northbank/credit-risk@1",
    "replicas": {"min": 1, "max": 2, "idle_s": 0},
    "alarms": [{"kind": "p95-latency", "threshold_us": 1000}],
}


# --- plans -----------------------------------------------------------------------------------------------------------


def test_a_plan_is_read_as_it_was_decided() -> None:
    plan = parse_plan(PLAN)
    assert (plan.weights, plan.bake_s, plan.alarms[0].kind) == ([10, 50, 100], 5, "p95-latency")
    assert parse_plan(PLAN | {"strategy": "blue-green", "steps": []}).weights == [100]
    assert parse_plan(PLAN | {"strategy": "shadow", "steps": []}).weights == []


@pytest.mark.parametrize(
    "change",
    [
        {"steps": [10, 50]},
        {"steps": [50, 10, 100]},
        {"steps": [0, 100]},
        {"steps": []},
        {"fallback": ""},
        {"fallback": "northbank/credit-risk@2"},
        {"fallback": "northbank/other@1"},
        {"strategy": "direct"},
        {"strategy": "all"},
        {"replicas": {"min": 3, "max": 2, "idle_s": 0}},
        {"replicas": {"min": 0, "max": 2, "idle_s": 0}},
        {"replicas": {"min": 1, "max": 2, "idle_s": 5}},
        {"alarms": [{"kind": "feeling"}]},
        {"alarms": [{"kind": "error-rate", "threshold_micro": 1_000_001}]},
        {"alarms": [{"kind": "error-rate", "threshold_micro": 1, "unknown": 1}]},
        {"timeout_ms": 1.5},
        {"timeout_ms": True},
        {"unknown": 1},
    ],
)
def test_a_plan_that_is_not_understood_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputRefused) as refused:
        parse_plan(PLAN | change)
    assert refused.value.code == "input.plan"


# --- traffic -----------------------------------------------------------------------------------------------------------


@given(
    st.dictionaries(st.integers(1, 50), st.integers(0, 100), min_size=1, max_size=6).filter(lambda w: sum(w.values()))
)
def test_every_window_of_the_sum_has_each_version_its_weight_give_or_take_one(weights: dict[int, int]) -> None:
    split = TrafficSplit(weights)
    whole = sum(weights.values())
    chosen = [split.choose() for _ in range(2 * whole)]
    for number, weight in weights.items():
        assert chosen[:whole].count(number) == weight
        assert chosen.count(number) == 2 * weight
        shares = itertools.accumulate(one == number for one in chosen)
        assert all(abs(share - (at + 1) * weight / whole) <= len(weights) for at, share in enumerate(shares))


def test_a_canary_of_ten_percent_is_one_request_in_ten() -> None:
    split = TrafficSplit({1: 90, 2: 10})
    chosen = [split.choose() for _ in range(100)]
    assert all(chosen[at : at + 10].count(2) == 1 for at in range(0, 100, 10))


def test_without_weights_nobody_is_chosen() -> None:
    assert TrafficSplit({}).choose() is None
    assert TrafficSplit({1: 0}).choose() is None


# --- advance -----------------------------------------------------------------------------------------------------------


def rollout(**changes: Any) -> Rollout:
    whole: dict[str, Any] = {
        "operation_id": "op", "number": 2, "fallback": 1, "steps": (10, 50, 100), "index": 0, "state": "advancing", "bake_s": 5
    }  # fmt: skip
    return Rollout(**(whole | changes))


def test_a_canary_advances_by_its_steps_and_each_is_held() -> None:
    at = rollout()
    assert at.after(4.9) is at
    seen = []
    while at.state == "advancing":
        seen.append(at.weights)
        at = at.after(5)
    assert seen == [{1: 90, 2: 10}, {1: 50, 2: 50}, {2: 100}]
    assert (at.state, at.weights) == ("completed", {2: 100})


@pytest.mark.parametrize("state", ["advancing", "completed", "held"])
def test_an_alarm_returns_everything_to_the_fallback_once(state: Any) -> None:
    back = rollout(state=state, index=1).alarmed(serves=True)
    assert (back.state, back.weights) == ("rolled-back", {1: 100})
    assert back.alarmed(serves=True) is back
    assert back.after(1e9) is back
    assert not back.is_guarded


def test_without_a_fallback_there_is_nowhere_to_return_to() -> None:
    failed = rollout(fallback=0, steps=(100,)).alarmed(serves=True)
    assert (failed.state, failed.weights) == ("failed", None)


def test_a_shadow_is_taken_away_and_traffic_is_left_as_it_is() -> None:
    shadow = rollout(steps=())
    assert shadow.weights is None
    taken = shadow.alarmed(serves=False)
    assert (taken.state, taken.weights) == ("rolled-back", None)
    assert shadow.after(5).state == "completed"


def test_a_persons_hand_ends_the_advance_and_leaves_the_guard() -> None:
    held = rollout().by_hand()
    assert (held.state, held.weights, held.is_guarded) == ("held", None, True)
    assert held.after(1e9) is held
    assert rollout(state="rolled-back").by_hand().state == "rolled-back"


# --- guards ------------------------------------------------------------------------------------------------------------


def deployed(number: int) -> Deployed:
    return Deployed(
        number=number,
        operation_id=f"op{number}",
        parameters={"version": "x"},
        digests={"a": "0" * 64},
        deployed_at_ms=5,
    )


def state_after(*begun: tuple[int, int, tuple[int, ...]]) -> EndpointState:
    """An endpoint after deployments: each a number, its fallback and its steps; without steps a shadow."""
    state = EndpointState(tenant="northbank", endpoint="northbank/credit")
    for number, fallback, steps in begun:
        began = rollout(operation_id=f"op{number}", number=number, fallback=fallback, steps=steps)
        state.begin(began, deployed(number), is_shadow=not steps)
    return state


FIRST, SECOND = (1, 0, (100,)), (2, 1, (100,))


def test_a_shadow_does_not_take_the_guard_of_the_version_that_serves() -> None:
    state = state_after(FIRST, SECOND, (3, 2, ()))
    guard = state.rollout_of(2)
    assert guard is not None
    assert (guard.operation_id, guard.fallback, guard.state) == ("op2", 1, "held")
    assert set(state.deployed) == {1, 2, 3}
    assert state.alarm(2).state == "rolled-back"
    assert (state.weights, state.shadow) == ({1: 100}, 3)


def test_on_guard_is_what_has_traffic_or_copies_of_it_the_newest_first() -> None:
    state = state_after(FIRST, SECOND, (3, 2, ()))
    assert [one.number for one in state.on_guard()] == [3, 2]
    state.alarm(2)
    assert [one.number for one in state.on_guard()] == [3, 1]
    state.alarm(3)
    assert [one.number for one in state.on_guard()] == [1]


def test_what_the_fallback_returns_to_is_kept_and_what_came_before_that_is_not() -> None:
    state = state_after(FIRST, SECOND, (3, 2, (100,)), (4, 3, (10, 100)))
    assert set(state.deployed) == {2, 3, 4}
    second = state.rollout_of(2)
    assert second is not None
    assert second.fallback == 0
    assert state.alarm(4).state == "rolled-back"
    assert state.alarm(3).state == "rolled-back"
    assert state.weights == {2: 100}
    # There is nowhere left to return to, so it goes on.
    assert state.alarm(2).state == "failed"
    assert state.weights == {2: 100}


def test_an_alarm_of_the_version_before_ends_the_advance_of_the_newest() -> None:
    state = state_after(FIRST, SECOND, (3, 2, (10, 50, 100)))
    assert state.weights == {3: 10, 2: 90}
    state.alarm(2)
    assert (state.weights, state.rollout and state.rollout.state) == ({1: 100}, "held")
    # By hand it may have traffic still; its own alarm then returns past the version whose alarm fired.
    state.weights = {3: 100}
    state.alarm(3)
    assert state.weights == {1: 100}


def test_a_shadow_that_was_given_traffic_by_hand_returns_it() -> None:
    state = state_after(FIRST, (2, 1, ()))
    state.weights, state.shadow = {2: 100}, 1
    assert state.alarm(2).state == "rolled-back"
    assert (state.weights, state.shadow) == ({1: 100}, 0)


def test_guards_are_read_as_they_were_written_and_a_state_without_them_is_read_too() -> None:
    state = state_after(FIRST, SECOND, (3, 2, ()))
    assert EndpointState.from_bytes(state.to_bytes()) == state
    old = canonical.loads(state.to_bytes()) | {"v": 1}
    del old["guards"]
    read = EndpointState.from_bytes(canonical.dumps(old))
    assert (read.guards, read.rollout, read.weights) == ({}, state.rollout, {2: 100})
    for odd in (old | {"v": 2}, old | {"v": 3}):
        with pytest.raises(IntegrityError):
            EndpointState.from_bytes(canonical.dumps(odd))


# --- scaling -----------------------------------------------------------------------------------------------------------


def load(**changes: Any) -> Load:
    whole: dict[str, Any] = {
        "replicas": 1, "waiting": 0, "in_flight": 0, "capacity": 16, "idle_s": 0.0, "calm_s": 0.0, "is_needed": True,
        "is_fallback": False,
    }  # fmt: skip
    return Load(**(whole | changes))


@pytest.mark.parametrize(
    ("found", "bounds", "wanted"),
    [
        (load(replicas=0), Replicas(min=2, max=4), 2),
        (load(in_flight=16, waiting=1), Replicas(min=1, max=4), 2),
        (load(in_flight=16, waiting=40), Replicas(min=1, max=4), 4),
        (load(in_flight=16, waiting=400), Replicas(min=1, max=4), 4),
        (load(replicas=3, calm_s=CALM_S), Replicas(min=1, max=4), 2),
        (load(replicas=3, calm_s=CALM_S - 1), Replicas(min=1, max=4), 3),
        (load(replicas=1, calm_s=99.0), Replicas(min=1, max=4), 1),
        (load(idle_s=59.0), Replicas(min=0, max=2, idle_s=60), 1),
        (load(idle_s=60.0), Replicas(min=0, max=2, idle_s=60), 0),
        (load(idle_s=60.0, in_flight=1), Replicas(min=0, max=2, idle_s=60), 1),
        (load(idle_s=60.0, is_fallback=True), Replicas(min=0, max=2, idle_s=60), 1),
        (load(replicas=0, waiting=1), Replicas(min=0, max=2, idle_s=60), 1),
        (load(replicas=2, is_needed=False), Replicas(min=2, max=2), 0),
        (load(replicas=2, is_needed=False, in_flight=1), Replicas(min=2, max=2), 2),
    ],
)
def test_replicas_follow_the_load_within_their_bounds(found: Load, bounds: Replicas, wanted: int) -> None:
    assert wanted_replicas(found, bounds) == wanted


@given(
    st.builds(
        load, replicas=st.integers(0, 9), waiting=st.integers(0, 300), in_flight=st.integers(0, 300),
        idle_s=st.floats(0, 1e6), calm_s=st.floats(0, 1e6), is_fallback=st.booleans(),
    ),
    st.integers(0, 4),
    st.integers(0, 4),
)  # fmt: skip
def test_what_is_needed_has_never_fewer_than_its_minimum_nor_more_than_its_maximum(
    found: Load, least: int, more: int
) -> None:
    bounds = Replicas(min=least, max=max(1, least + more), idle_s=0 if least else 60)
    wanted = wanted_replicas(found, bounds)
    assert bounds.min <= wanted <= bounds.max or (wanted == found.replicas - 1 and found.replicas > bounds.max)
    if found.waiting or found.is_fallback:
        assert wanted >= 1


# --- latencies ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(1, 1e8), min_size=1, max_size=200), st.sampled_from([500, 950, 990]))
def test_a_percentile_is_never_below_the_true_one_and_at_most_a_twentieth_above(
    latencies: list[float], permille: int
) -> None:
    tally = Tally()
    for latency in latencies:
        tally.add(latency, "ok")
    true = sorted(latencies)[max(1, -(-len(latencies) * permille // 1000)) - 1]
    found = percentile_us(tally.counts, permille)
    assert found is not None
    assert true <= found <= max(true * 1.05 + 1, 21)


def test_buckets_are_ordered_and_without_latencies_there_is_no_percentile() -> None:
    assert [bucket_of(upper_us(bucket) - 1) for bucket in (0, 100, 300)] == [0, 100, 300]
    assert bucket_of(1e15) == bucket_of(1e14)
    assert percentile_us(Tally().counts, 950) is None


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(1, 1e6)), max_size=60), st.integers(1, 20))
def test_a_window_holds_what_came_within_it_and_forgets_the_rest(
    steps: list[tuple[float, float]], length_s: int
) -> None:
    window, now_s = Window(length_s), 0.0
    came = []
    for pause_s, latency_us in steps:
        now_s += pause_s
        window.add(now_s, latency_us, "ok")
        came.append((now_s, latency_us))
    kept = window.sum(now_s).count
    assert kept <= sum(at_s > now_s - length_s - 1 for at_s, _ in came)
    assert kept >= sum(at_s > now_s - length_s + 1 for at_s, _ in came)
    assert window.sum(now_s + length_s + 1).count == 0
