"""Which version a request goes to. Pure.

Rules kept here:

- Weights are kept exactly, not on average: of any hundred requests in a row each version has its percent, give or take
  one, and they are spread, not bunched. A canary of 10 % is one request in ten.
- A version of weight 0 is never chosen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class TrafficSplit:
    """Smooth weighted round robin over versions.

    Each choice every version earns its weight, the richest is chosen and pays the sum.

    Args:
        weights: Version number to weight, natural numbers; not all 0.
    """

    def __init__(self, weights: Mapping[int, int]) -> None:
        self._weights = {number: weight for number, weight in weights.items() if weight > 0}
        self._sum = sum(self._weights.values())
        self._earned = dict.fromkeys(self._weights, 0)
        self._only = next(iter(self._weights)) if len(self._weights) == 1 else None

    @property
    def numbers(self) -> frozenset[int]:
        """Versions that have traffic."""
        return frozenset(self._weights)

    def choose(self) -> int | None:
        """The version for the next request; None if no version has traffic."""
        if self._only is not None or not self._weights:
            return self._only
        earned = self._earned
        for number, weight in self._weights.items():
            earned[number] += weight
        chosen = max(earned, key=earned.__getitem__)
        earned[chosen] -= self._sum
        return chosen
