"""Latencies and outcomes of a version, over all time and over the last seconds. Pure; time is handed in.

Rules kept here:

- Memory is fixed: a histogram has ``BUCKETS`` counts, a window one histogram a second of its length (at most
  ``_MAX_SLOTS``; a longer window has slots of several seconds).
- Buckets grow by a constant factor, so a percentile read off them is at most 5 % above the true one and never below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence  # noqa: TC003  # Cheap, and read by tools.
from typing import Literal

Outcome = Literal["ok", "client-error", "server-error", "timeout"]
OUTCOMES: tuple[Outcome, ...] = ("ok", "client-error", "server-error", "timeout")
_FACTOR = 1.05
_LEAST_US = 20
BUCKETS = 360  # 20 us * 1.05 ** 359 is more than half an hour.
_LOG_FACTOR = math.log(_FACTOR)
_MAX_SLOTS = 120


def bucket_of(latency_us: float) -> int:
    """Number of the bucket that holds a latency."""
    if latency_us <= _LEAST_US:
        return 0
    return min(math.ceil(math.log(latency_us / _LEAST_US) / _LOG_FACTOR), BUCKETS - 1)


def upper_us(bucket: int) -> int:
    """The largest latency of a bucket, rounded up."""
    return math.ceil(_LEAST_US * _FACTOR**bucket)


def percentile_us(counts: Sequence[int], permille: int) -> int | None:
    """A percentile read off bucket counts; None if there are none."""
    total = sum(counts)
    if not total:
        return None
    rank = max(1, math.ceil(total * permille / 1000))
    seen = 0
    for bucket, count in enumerate(counts):
        seen += count
        if seen >= rank:
            return upper_us(bucket)
    raise AssertionError("the counts changed while they were read")


class Tally:
    """Latencies and outcomes of some requests."""

    __slots__ = ("counts", "outcomes")

    def __init__(self) -> None:
        self.counts = [0] * BUCKETS
        self.outcomes = dict.fromkeys(OUTCOMES, 0)

    def add(self, latency_us: float, outcome: Outcome) -> None:
        """Count one request."""
        self.counts[bucket_of(latency_us)] += 1
        self.outcomes[outcome] += 1

    def drop(self, other: Tally) -> None:
        """Forget all of another tally, which was counted here before."""
        self.counts = [mine - its for mine, its in zip(self.counts, other.counts, strict=True)]
        for outcome in OUTCOMES:
            self.outcomes[outcome] -= other.outcomes[outcome]

    @property
    def count(self) -> int:
        """How many requests."""
        return sum(self.outcomes.values())

    @property
    def failed(self) -> int:
        """How many failed, not by the caller's fault."""
        return self.outcomes["server-error"] + self.outcomes["timeout"]

    def figures(self) -> dict[str, int]:
        """Canonical JSON: percentiles where there are any, and the outcomes."""
        found = {f"p{permille // 10}_us": percentile_us(self.counts, permille) for permille in (500, 950, 990)}
        figures = {name: value for name, value in found.items() if value is not None}
        return {"count": self.count, **figures, **{name.replace("-", "_"): n for name, n in self.outcomes.items()}}


class Window:
    """The requests of the last ``length_s`` seconds.

    Args:
        length_s: At least; what falls out does so by slots.
    """

    def __init__(self, length_s: int) -> None:
        self._slot_s = max(1, math.ceil(length_s / _MAX_SLOTS))
        self._kept = math.ceil(length_s / self._slot_s)
        self._slots: dict[int, Tally] = {}
        self._newest: tuple[int, Tally] = (-1, Tally())
        self._sum = Tally()

    def add(self, now_s: float, latency_us: float, outcome: Outcome) -> None:
        """Count one request at ``now_s``."""
        slot = int(now_s // self._slot_s)
        if slot != self._newest[0]:
            self._newest = (slot, self._slots.setdefault(slot, Tally()))
            self._forget(slot)
        self._newest[1].add(latency_us, outcome)
        self._sum.add(latency_us, outcome)

    def sum(self, now_s: float) -> Tally:
        """All that is still in the window."""
        self._forget(int(now_s // self._slot_s))
        return self._sum

    def _forget(self, newest: int) -> None:
        for slot in [slot for slot in self._slots if slot <= newest - self._kept]:
            self._sum.drop(self._slots.pop(slot))
            if slot == self._newest[0]:
                self._newest = (-1, Tally())
