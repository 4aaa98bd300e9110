"""Counting and keeping within bounds: what a report remembers does not grow with the log.

Rules kept here:

- What is left out is counted: whoever shows a list can say how much more there is.
- The same entries in the same order give the same result.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from licet_engine.evidence.report.text import cut

T = TypeVar("T")

MAX_NAMES: Final = 5_000
_MAX_NAME_CHARS: Final = 160

WIDTHS_MS: Final = tuple(
    1000 * seconds
    for seconds in (1, 5, 15, 60, 300, 900, 3600, 10_800, 21_600, 43_200, 86_400, 604_800, 2_419_200, 29_030_400)
)
"""How wide a bucket of time can be: each a multiple of the one before, from a second to 48 weeks."""


@dataclass(frozen=True, slots=True)
class Counted:
    """How often a name was met, by outcome."""

    name: str
    outcomes: Counter[str]

    @property
    def total(self) -> int:
        """Over all outcomes."""
        return self.outcomes.total()


@dataclass(slots=True)
class Tally:
    """Counts by name and outcome, of the first ``MAX_NAMES`` names that are met; what bears others is counted together.

    Outcomes are words of ours, so there are few.
    """

    names: dict[str, Counter[str]] = field(default_factory=dict)
    unnamed: int = 0

    def add(self, name: str, outcome: str = "", times: int = 1) -> None:
        """Count one more."""
        name = cut(name, _MAX_NAME_CHARS)
        if name not in self.names and len(self.names) >= MAX_NAMES:
            self.unnamed += times
            return
        self.names.setdefault(name, Counter())[outcome] += times

    def top(self, most: int) -> tuple[list[Counted], int, int]:
        """The most frequent names, how many more names there are, and how many entries bear these or were not counted by name."""
        ordered = sorted(self.names.items(), key=lambda item: (-item[1].total(), item[0]))
        rest = ordered[most:]
        shown = [Counted(name, counts) for name, counts in ordered[:most]]
        return shown, len(rest), sum(counts.total() for _, counts in rest) + self.unnamed


@dataclass(slots=True)
class Kept(Generic[T]):
    """The newest of something, in the order of the log, and how many there were."""

    most: int
    total: int = 0
    _items: deque[T] = field(default_factory=deque)

    def add(self, item: T) -> None:
        """One more."""
        self.total += 1
        self._items.append(item)
        if len(self._items) > self.most:
            self._items.popleft()

    def __iter__(self) -> Iterator[T]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    @property
    def more(self) -> int:
        """How many older ones are left out."""
        return self.total - len(self._items)


@dataclass(slots=True)
class Buckets:
    """Counts by time, in buckets that widen as the time gets longer: never more than ``most``."""

    most: int = 96
    width_ms: int = WIDTHS_MS[0]
    counts: dict[int, Counter[str]] = field(default_factory=dict)

    def add(self, time_ms: int, outcome: str) -> None:
        """Count one more."""
        self.counts.setdefault(time_ms // self.width_ms, Counter())[outcome] += 1
        while self._span() > self.most and self.width_ms < WIDTHS_MS[-1]:
            self._widen()

    def _span(self) -> int:
        return max(self.counts) - min(self.counts) + 1

    def _widen(self) -> None:
        wider = WIDTHS_MS[WIDTHS_MS.index(self.width_ms) + 1]
        merged: dict[int, Counter[str]] = {}
        for number, counts in self.counts.items():
            merged.setdefault(number * self.width_ms // wider, Counter()).update(counts)
        self.width_ms, self.counts = wider, merged

    def each(self) -> list[tuple[int, Counter[str]]]:
        """Beginning of each bucket that has something, in order, with its counts; the newest ``most`` of them."""
        found = [(number * self.width_ms, counts) for number, counts in sorted(self.counts.items())]
        return found[-self.most :]
