"""How many replicas a version should have. Pure.

Rules kept here:

- Up at once when requests wait: one replica for each full load that waits, at most the maximum.
- Down slowly: one at a time, and only after the load would have fitted into one fewer for a while.
- To zero only where that was decided, and only after ``idle_s`` without a request; a waiting request wakes one at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from licet_adapters.serving.plan import Replicas

CALM_S = 10.0
"""For how long fewer replicas must have been enough before one is stopped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What a version has to do.

    Attributes:
        replicas: Ready or starting.
        waiting: Requests without a replica.
        in_flight: Requests on a replica.
        capacity: Requests that one replica takes at a time.
        idle_s: Since the last request.
        calm_s: For how long one replica fewer would have been enough.
        is_needed: It has traffic, is a shadow, or is what traffic may return to.
        is_fallback: It is what traffic may return to at once: one replica stays warm.
    """

    replicas: int
    waiting: int
    in_flight: int
    capacity: int
    idle_s: float
    calm_s: float
    is_needed: bool
    is_fallback: bool


def fits_in_fewer(load: Load) -> bool:
    """Whether one replica fewer would be enough, with a quarter to spare."""
    return load.waiting == 0 and load.in_flight * 4 <= (load.replicas - 1) * load.capacity * 3


def wanted_replicas(load: Load, bounds: Replicas) -> int:
    """How many replicas there should be now."""
    if not load.is_needed:
        # What takes no traffic any more ends what it has in flight.
        return load.replicas if load.waiting or load.in_flight else 0
    least = max(bounds.min, 1 if load.is_fallback else 0)
    if load.waiting:
        more = math.ceil(load.waiting / load.capacity)
        # Those that start already will take their share.
        busy = math.ceil(load.in_flight / load.capacity)
        return min(max(load.replicas, busy + more, least, 1), bounds.max)
    if load.replicas > max(least, 1) and load.calm_s >= CALM_S:
        return max(load.replicas - 1, least)
    if load.replicas == 1 and least == 0 and bounds.idle_s and not load.in_flight and load.idle_s >= bounds.idle_s:
        return 0
    return min(max(load.replicas, least), bounds.max)
