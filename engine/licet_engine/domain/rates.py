"""How often somebody may come: a bucket for each, which refills with time."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

BURST_S: Final = 2
"""How many seconds' worth of its rate a caller that was quiet may send at once."""
_MAX_BUCKETS: Final = 100_000


class Buckets:
    """Token buckets, one for each caller.

    Args:
        per_s: What each refills with in a second.
        clock_s: Seconds that never run backwards.
    """

    def __init__(self, per_s: int, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._most = float(per_s * BURST_S)
        self._clock_s = clock_s
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str) -> float:
        """Take one request out of a caller's bucket; return how many seconds it must wait first, 0 if none."""
        now_s = self._clock_s()
        left, at_s = self._buckets.get(caller, (self._most, now_s))
        left = min(self._most, left + (now_s - at_s) * self._per_s)
        wait_s = 0.0 if left >= 1 else (1 - left) / self._per_s
        self._buckets[caller] = (left if wait_s else left - 1, now_s)
        self._buckets.move_to_end(caller)
        # The one that was not used for longest is full again, or nearly so: forgetting it gives away next to nothing.
        while len(self._buckets) > _MAX_BUCKETS:
            self._buckets.popitem(last=False)
        return wait_s
