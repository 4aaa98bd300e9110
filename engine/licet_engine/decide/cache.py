"""A bounded cache that many threads may share.

Rules kept here:

- Bounded twice: by entries, and by the weight the caller gives each, so that a few huge values cannot fill the memory.
- The least recently used goes first. The newest always stays, however heavy: what was just made is about to be used.
- A value is made outside the lock. Two threads may make the same value; one of the two is kept, and both are right.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """Least recently used first out, bounded by entries and by weight."""

    __slots__ = ("_entries", "_lock", "_max_entries", "_max_weight", "_weight")

    def __init__(self, *, max_entries: int, max_weight: int) -> None:
        self._max_entries = max_entries
        self._max_weight = max_weight
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._weight = 0
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        """The value of ``key``, or None."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry[0]

    def put(self, key: K, value: V, weight: int) -> None:
        """Remember ``value``, and forget what no longer fits beside it."""
        with self._lock:
            if (old := self._entries.pop(key, None)) is not None:
                self._weight -= old[1]
            self._entries[key] = (value, weight)
            self._weight += weight
            while len(self._entries) > 1 and (
                len(self._entries) > self._max_entries or self._weight > self._max_weight
            ):
                _, (_, gone) = self._entries.popitem(last=False)
                self._weight -= gone

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def weight(self) -> int:
        """Weight of all that is held now."""
        return self._weight
