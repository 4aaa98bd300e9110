"""The pairs of a tenant's log: who acted on whose things, as a sparse map that anybody with the leaves can make again.

Rules kept here:

- The map is made of leaf headers alone, which are never erased. It tells who stands in the log, never what was decided.
- A key is the SHA-256 of actor and owner, under a tag of its own. A value is canonical JSON: how many entries, the first and the last of
  them with their times, and how many of each kind.
- That a pair is absent says that the log, up to the size at hand, has no entry of that actor on that owner's things.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from licet_attestations import canonical
from licet_attestations.errors import FormatError
from licet_attestations.leaf import is_tenant
from licet_attestations.sparsemap import MapProof, SparseMap, verify_absent, verify_present

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from licet_attestations.leaf import Leaf

_KEY = b"licet:pair:v1\x00"
_FIELDS = frozenset({"v", "actor", "owner", "count", "first", "last", "first_ms", "last_ms", "kinds"})


def pair_key(actor: str, owner: str) -> bytes:
    """The key of a pair. A tenant's name holds no NUL, so no two pairs have one text.

    Raises:
        FormatError: One of them is no tenant.
    """
    if not is_tenant(actor) or not is_tenant(owner):
        raise FormatError(f"{actor!r} or {owner!r} is not a tenant")
    return hashlib.sha256(_KEY + actor.encode() + b"\x00" + owner.encode()).digest()


@dataclass(frozen=True, slots=True)
class Pair:
    """The entries of one actor on one owner's things.

    Attributes:
        actor: Tenant of whoever acted.
        owner: Tenant of what was acted on.
        count: How many entries.
        first: Index of the first.
        last: Index of the last.
        first_ms: Time of the first.
        last_ms: Time of the last.
        kinds: How many of each kind.
    """

    actor: str
    owner: str
    count: int
    first: int
    last: int
    first_ms: int
    last_ms: int
    kinds: Mapping[str, int]

    @property
    def key(self) -> bytes:
        """Its key in the map."""
        return pair_key(self.actor, self.owner)

    def to_dict(self) -> dict[str, Any]:
        """Its value in the map, as a JSON object."""
        numbers = {name: getattr(self, name) for name in ("count", "first", "last", "first_ms", "last_ms")}
        return {"v": 1, "actor": self.actor, "owner": self.owner, **numbers, "kinds": dict(self.kinds)}

    def to_bytes(self) -> bytes:
        """Its value in the map."""
        return canonical.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, value: object) -> Pair:
        """Read what `to_dict` wrote.

        Raises:
            FormatError: It is something else.
        """
        if not isinstance(value, dict) or set(value) != _FIELDS or value["v"] != 1:
            raise FormatError("not a pair of version 1")
        kinds, numbers = value["kinds"], [value[n] for n in ("count", "first", "last", "first_ms", "last_ms")]
        if not is_tenant(value["actor"]) or not is_tenant(value["owner"]):
            raise FormatError("a pair is of two tenants")
        if any(type(number) is not int or number < 0 for number in numbers) or not isinstance(kinds, dict):
            raise FormatError("a pair has counts, indices and times from 0")
        if any(type(count) is not int or count < 1 for count in kinds.values()) or sum(kinds.values()) != numbers[0]:
            raise FormatError("the kinds of a pair add up to its entries")
        return cls(**{name: value[name] for name in _FIELDS - {"v"}})


class PairsMap:
    """The pairs of one log, up to some size.

    Args:
        size: Entries that were counted already.
        pairs: What they came to.
    """

    def __init__(self, size: int = 0, pairs: Iterable[Pair] = ()) -> None:
        self.size = size
        self._pairs = {(pair.actor, pair.owner): pair for pair in pairs}
        self._map = SparseMap({pair.key: pair.to_bytes() for pair in self._pairs.values()})
        self._grown: set[tuple[str, str]] = set()

    @classmethod
    def of(cls, leaves: Iterable[Leaf]) -> PairsMap:
        """The pairs of a whole log."""
        pairs = cls()
        for leaf in leaves:
            pairs.add(leaf)
        return pairs

    def copy(self) -> PairsMap:
        """An independent copy, to go on with."""
        self._settle()
        copy = PairsMap(self.size)
        copy._pairs, copy._map = dict(self._pairs), self._map.copy()
        return copy

    def add(self, leaf: Leaf) -> None:
        """Count the next entry."""
        self.count(leaf.actor, leaf.owner, leaf.kind, leaf.time_ms)

    def count(self, actor: str, owner: str, kind: str, time_ms: int) -> None:
        """Count the next entry, by what its header says."""
        names, index = (actor, owner), self.size
        known = self._pairs.get(names)
        if known is None:
            self._pairs[names] = Pair(actor, owner, 1, index, index, time_ms, time_ms, {kind: 1})
        else:
            kinds = {**known.kinds, kind: known.kinds.get(kind, 0) + 1}
            self._pairs[names] = replace(known, count=known.count + 1, last=index, last_ms=time_ms, kinds=kinds)
        self._grown.add(names)
        self.size += 1

    def get(self, actor: str, owner: str) -> Pair | None:
        """A pair, or None where the log has no entry of it."""
        return self._pairs.get((actor, owner))

    def pairs(self) -> list[Pair]:
        """All pairs, by name."""
        return [self._pairs[names] for names in sorted(self._pairs)]

    def root(self) -> bytes:
        """Root of the map."""
        self._settle()
        return self._map.root()

    def prove(self, actor: str, owner: str) -> MapProof:
        """The proof that a pair is there as it is, or that it is not."""
        self._settle()
        return self._map.prove(pair_key(actor, owner))

    def _settle(self) -> None:
        """Put into the map what was counted since: once for each pair, however many entries it had."""
        for names in self._grown:
            pair = self._pairs[names]
            self._map.put(pair.key, pair.to_bytes())
        self._grown.clear()


def verify_pair(root: bytes, actor: str, owner: str, pair: Pair | None, proof: MapProof) -> None:
    """Verify that the map under ``root`` has ``pair`` for these two, or that it has none.

    Raises:
        VerificationError: The proof does not show it.
        FormatError: One of the two is no tenant, or the pair is of others.
    """
    if pair is None:
        verify_absent(root, pair_key(actor, owner), proof)
        return
    if (pair.actor, pair.owner) != (actor, owner):
        raise FormatError(f"the pair is of {pair.actor!r} on {pair.owner!r}, not of {actor!r} on {owner!r}")
    verify_present(root, pair.key, pair.to_bytes(), proof)
