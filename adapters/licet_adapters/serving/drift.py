"""Whether what a version is asked looks like what it was trained on. Pure.

Rules kept here:

- Each feature is compared by the greatest gap of the two cumulative shares (Kolmogorov-Smirnov). Its chance is bounded by
  the two-sample Dvoretzky-Kiefer-Wolfowitz inequality with the constant that holds at every sample size and for every
  distribution, ties included: a small sample must show a large gap, a large one may show a small one.
- Many features are many chances: Holm's correction. Looking again and again is, too: the looks at a version in one life of
  the router share its ``alpha``, the n-th being given ``alpha * 6 / (pi * n) ** 2``. So a model whose inputs never change
  has at most the chance ``alpha`` of being called drifted, however long that life is; the next has a chance of its own.
- A look is taken only at rows of which enough are new, so that looks are not wasted.
- A gap that is certain and too small to matter is not drift.

Source: Wei and Dudley, Two-sample Dvoretzky-Kiefer-Wolfowitz inequalities, 2012, for the constant e; Holm, 1979.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from licet_adapters.serving.reference import sketch_error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from licet_adapters.jobs.oip import Floats
    from licet_adapters.serving.reference import Doubles, Reference

CAPACITY = 4096
"""Rows that are kept of a version; older ones make room."""
MAX_CELLS = 1 << 18
"""Values that one look compares at most; of more, rows are left out evenly."""


def greatest_gap(first: Doubles, second: Doubles) -> float:
    """Greatest gap of the cumulative shares of two sorted samples, ``[any]`` each."""
    # Between two neighbours of one sample its share stands still and the other's only rises, so the gap is greatest at a
    # value of the shorter sample, or just below one.
    points = min(first, second, key=len)
    gap = 0.0
    for side in ("left", "right"):
        shares = [np.searchsorted(sample, points, side=side) / len(sample) for sample in (first, second)]
        gap = max(gap, float(np.abs(shares[0] - shares[1]).max()))
    return gap


def chance_of_gap(gap: float, first_rows: int, second_rows: int) -> float:
    """Bound of the chance that two samples of one distribution have at least this gap."""
    return min(1.0, math.e * math.exp(-2 * gap**2 * first_rows * second_rows / (first_rows + second_rows)))


def holm(chances: Sequence[float]) -> list[float]:
    """Chances corrected for their number."""
    order = sorted(range(len(chances)), key=chances.__getitem__)
    adjusted = [0.0] * len(chances)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(chances) - rank) * chances[index]))
        adjusted[index] = running
    return adjusted


def alpha_of_look(alpha: float, look: int) -> float:
    """The part of ``alpha`` that the ``look``-th look (from 1) may spend; all of them together spend no more."""
    return alpha * 6 / (math.pi * look) ** 2


@dataclass(frozen=True, slots=True)
class FeatureDrift:
    """One feature at one look.

    Attributes:
        gap: Greatest gap of the cumulative shares, less what the sketch may be wrong by.
        chance: Corrected for the number of features.
    """

    gap: float
    chance: float


def compare(rows: Floats, reference: Reference, names: Sequence[str]) -> dict[str, FeatureDrift]:
    """Compare rows (float32 ``[rows, names]``) with the reference, feature by feature."""
    gaps = []
    for index, name in enumerate(names):
        sample = np.sort(rows[:, index].astype(np.float64))
        gaps.append(max(0.0, greatest_gap(sample, reference.features[name]) - sketch_error(reference, name)))
    chances = holm([chance_of_gap(gap, len(rows), reference.rows) for gap in gaps])
    return {name: FeatureDrift(gap, chance) for name, gap, chance in zip(names, gaps, chances, strict=True)}


def drifted(found: Mapping[str, FeatureDrift], alpha: float, effect_min: float) -> dict[str, FeatureDrift]:
    """Those features that drifted beyond chance and beyond what does not matter."""
    return {name: one for name, one in found.items() if one.chance < alpha and one.gap >= effect_min}


def spread(count: int, most: int) -> NDArray[np.intp]:
    """At most ``most`` of the indices below ``count``, evenly spread."""
    return np.arange(count) if count <= most else np.linspace(0, count - 1, most).astype(np.intp)


class RowWindow:
    """The last rows of a version and how sure it was of them, at most ``CAPACITY``.

    Args:
        features: How many columns a row has.
    """

    def __init__(self, features: int) -> None:
        self._rows = np.zeros((CAPACITY, features), dtype=np.float32)
        self._confidence = np.zeros(CAPACITY, dtype=np.float32)
        self._at_s = np.full(CAPACITY, -math.inf)
        self._next = 0
        self.seen = 0

    def add(self, now_s: float, rows: Floats, probabilities: Floats) -> None:
        """Keep rows (float32 ``[n, features]``) and the probabilities they were given (``[n]``)."""
        rows, probabilities = rows[-CAPACITY:], probabilities[-CAPACITY:]
        at = (self._next + np.arange(len(rows))) % CAPACITY
        self._rows[at] = rows
        self._confidence[at] = np.maximum(probabilities, 1 - probabilities)
        self._at_s[at] = now_s
        self._next = (self._next + len(rows)) % CAPACITY
        self.seen += len(rows)

    def count_since(self, begin_s: float) -> int:
        """How many rows came at ``begin_s`` or later."""
        return int(np.count_nonzero(self._at_s >= begin_s))

    def rows_since(self, begin_s: float, max_rows: int = CAPACITY) -> Floats:
        """A copy of the rows that came at ``begin_s`` or later; of more than ``max_rows``, so many, evenly spread."""
        kept = np.flatnonzero(self._at_s >= begin_s)
        return self._rows[kept[spread(len(kept), max_rows)]]

    def confidence_since(self, begin_s: float) -> Floats:
        """How sure it was of what came at ``begin_s`` or later."""
        return self._confidence[self._at_s >= begin_s]
