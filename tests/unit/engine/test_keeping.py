"""How long evidence is kept: a time that is made shorter counts for what comes then, a longer one for everything."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from licet_engine.domain.keeping import DAY_MS, changed, kept_until_ms


@pytest.mark.parametrize(
    ("days", "before", "until_day"),
    [
        (7, [], 7),
        # Logged while 30 days were in force.
        (7, [[30, DAY_MS]], 30),
        # Logged after it.
        (7, [[30, 0]], 7),
        (40, [[30, DAY_MS]], 40),
    ],
)
def test_an_entry_is_kept_for_the_longest_time_since_it_was_logged(
    days: int, before: list[list[int]], until_day: int
) -> None:
    assert kept_until_ms(0, days, before) == until_day * DAY_MS


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 5)), max_size=12), st.integers(0, 70))
def test_no_change_lets_anything_go_earlier(changes: list[tuple[int, int]], time_ms: int) -> None:
    days, before, now_ms, in_force = 10, [], 0, [(10, 0)]
    for new_days, step_ms in changes:
        now_ms += step_ms
        before = changed(days, before, new_days, now_ms)
        days = new_days
        in_force.append((days, now_ms))
    # A time counts for an entry if it was in force when that was logged, or at any moment since.
    ends = [since_ms for _, since_ms in in_force[1:]] + [float("inf")]
    longest = max(days_then for (days_then, _), until_ms in zip(in_force, ends, strict=True) if time_ms < until_ms)
    assert kept_until_ms(time_ms, days, before) == time_ms + longest * DAY_MS
