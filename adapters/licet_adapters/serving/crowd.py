"""Who is connected to the router, and whose bytes wait in it.

Rules kept here:

- No tenant has more than half of the places, nor of the bytes, whatever it sends; nor have those of whom it is not known yet
  who they are. So none of them leaves the others without.
- Where every place is taken, whoever was connected for longest without having become known makes room; after all of these, so does
  who was quiet for longest. Only where everybody is in the middle of something is a caller turned away.
"""

from __future__ import annotations

from collections import Counter
from typing import Generic, Protocol, TypeVar

NOBODY = ""


class Member(Protocol):
    """A connection, as far as it is seen here."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing is asked on it at present."""
        ...

    def give_way(self) -> None:
        """Close, since the place is needed."""
        ...


M = TypeVar("M", bound=Member)


class Crowd(Generic[M]):
    """The connections of one router; used by its event loop alone.

    Args:
        places: How many connections there may be.
        room_bytes: How many bytes of requests may wait to be whole or answered.
    """

    def __init__(self, places: int, room_bytes: int) -> None:
        self._places, self._room_bytes = places, room_bytes
        self._tenants: dict[M, str] = {}
        self._strangers: dict[M, None] = {}
        self._connected: Counter[str] = Counter()
        self._held: Counter[str] = Counter()
        self._all_held = 0

    def __len__(self) -> int:
        """How many are connected."""
        return len(self._tenants)

    def members(self) -> list[M]:
        """Who is connected."""
        return list(self._tenants)

    def enter(self, member: M) -> bool:
        """Take a place; return whether there was one."""
        if len(self._tenants) >= self._places and not self._make_room():
            return False
        if len(self._strangers) >= max(1, self._places // 2):
            self._send_away(next(iter(self._strangers)))
        self._tenants[member] = NOBODY
        self._strangers[member] = None
        return True

    def _make_room(self) -> bool:
        leaving = next(iter(self._strangers), None) or next((one for one in self._tenants if one.is_idle), None)
        if leaving is None:
            return False
        self._send_away(leaving)
        return True

    def _send_away(self, member: M) -> None:
        self.leave(member)
        member.give_way()

    def leave(self, member: M) -> None:
        """Give up a place; of one that has none, nothing is changed."""
        tenant = self._tenants.pop(member, None)
        self._strangers.pop(member, None)
        if tenant:
            self._count(tenant, -1)

    def know(self, member: M, tenant: str) -> bool:
        """Note for whom a connection speaks; return whether its tenant may have one more."""
        before = self._tenants.get(member)
        if before is None:
            return False  # It was sent away meanwhile.
        if before != tenant:
            if self._connected[tenant] >= max(1, self._places // 2):
                return False
            if before:
                self._count(before, -1)
            self._count(tenant, 1)
            self._strangers.pop(member, None)
        # The order is that of who spoke last: `_make_room` begins with who did so longest ago.
        self._tenants.pop(member)
        self._tenants[member] = tenant
        return True

    def _count(self, tenant: str, by: int) -> None:
        self._connected[tenant] += by
        if not self._connected[tenant]:
            del self._connected[tenant]

    def hold(self, tenant: str, size: int) -> bool:
        """Take room for ``size`` bytes of a tenant's, or of nobody's; return whether there was."""
        if self._all_held + size > self._room_bytes or self._held[tenant] + size > self._room_bytes // 2:
            return False
        self._held[tenant] += size
        self._all_held += size
        return True

    def let_go(self, tenant: str, size: int) -> None:
        """Give room back."""
        self._all_held -= size
        self._held[tenant] -= size
        if not self._held[tenant]:
            del self._held[tenant]
