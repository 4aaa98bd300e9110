"""What is true: facts, addressed by digest, and the handles Cedar evaluates them through.

Rules kept here:

- A fact is one Cedar entity as canonical JSON; its name is the SHA-256 of those bytes. The bytes that are hashed are the
  bytes that Cedar parses: nothing is written a second time in between.
- Cedar parses facts against the schema. What the schema does not know is no fact, and a decision on it is a deny.
- Two different facts about one entity are a contradiction: a deny, never a choice between them.
- Handles live in the compiled bundle of one tenant: no cache is shared across the wall.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cedarpy import _internal

from licet_attestations import canonical
from licet_attestations.errors import FormatError
from licet_engine.decide.cache import BoundedCache
from licet_engine.decide.errors import FactError

if TYPE_CHECKING:
    from cedarpy import Schema

UidKey = tuple[str, str]
"""Type and id of an entity, as the indexes compare it."""

_FACT_KEYS = frozenset({"uid", "attrs", "parents"})
_MAX_HANDLES = 4096
_MAX_HANDLE_BYTES = 64 * 1024 * 1024
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t", "\0": "\\0"}


def quoted(text: str) -> str:
    """``text`` as a Cedar string literal."""
    return '"' + "".join(_ESCAPES.get(c) or (c if c.isprintable() else f"\\u{{{ord(c):x}}}") for c in text) + '"'


@dataclass(frozen=True, slots=True)
class EntityUid:
    """Names one entity: ``Dataset::"northbank/hmda"``."""

    type: str
    id: str

    @classmethod
    def from_json(cls, value: Any) -> EntityUid:
        """Read ``{"type": ..., "id": ...}``.

        Raises:
            FactError: ``value`` is anything else.
        """
        if (
            isinstance(value, Mapping)
            and value.keys() == {"type", "id"}
            and isinstance(value["type"], str)
            and isinstance(value["id"], str)
        ):
            return cls(value["type"], value["id"])
        raise FactError(f"an entity is named by an object of two strings, type and id; this is {value!r:.200}")

    @property
    def key(self) -> UidKey:
        """Type and id."""
        return (self.type, self.id)

    def to_json(self) -> dict[str, str]:
        """As an entity is named in a request and in a record."""
        return {"type": self.type, "id": self.id}

    def __str__(self) -> str:
        return f"{self.type}::{quoted(self.id)}"


@dataclass(frozen=True, slots=True, eq=False)
class Fact:
    """One entity as it was at one moment.

    Attributes:
        uid: Which entity.
        parents: The entities it stands directly in.
        data: Canonical JSON.
        digest_hex: SHA-256 of ``data``: the name of this fact.
        entity: The parsed value of ``data``. Not to be changed.
    """

    uid: EntityUid
    parents: tuple[EntityUid, ...]
    data: bytes
    digest_hex: str
    entity: Mapping[str, Any]

    @classmethod
    def from_entity(cls, entity: Mapping[str, Any]) -> Fact:
        """Freeze a Cedar JSON entity.

        Raises:
            FactError: Not an entity, or outside of the canonical subset (a float, an integer of 2**53 or more).
        """
        try:
            data = canonical.dumps(dict(entity))
        except FormatError as error:
            raise FactError(f"a fact has no canonical JSON: {error}") from error
        # Read back, so that what the caller does to ``entity`` later cannot reach what was hashed.
        return cls.from_bytes(data)

    @classmethod
    def from_bytes(cls, data: bytes) -> Fact:
        """Read the canonical JSON of an entity.

        Raises:
            FactError: Not canonical JSON, or not an entity.
        """
        try:
            entity = canonical.loads(data, canonical=True)
        except FormatError as error:
            raise FactError(f"a fact is not canonical JSON: {error}") from error
        if not isinstance(entity, dict) or entity.keys() != _FACT_KEYS:
            raise FactError("a fact is an object with uid, attrs and parents, and nothing else")
        if not isinstance(entity["attrs"], dict) or not isinstance(entity["parents"], list):
            raise FactError("a fact has an object of attrs and a list of parents")
        return cls(
            uid=EntityUid.from_json(entity["uid"]),
            parents=tuple(EntityUid.from_json(parent) for parent in entity["parents"]),
            data=data,
            digest_hex=hashlib.sha256(data).hexdigest(),
            entity=entity,
        )


class FactSet:
    """The facts one decision rests on, in any order, each once.

    Attributes:
        digests: The names of the facts, sorted: what the record names, and what handles are cached under.
        problem: Why no decision can rest on these facts, or None.
    """

    __slots__ = ("_ancestors", "_by_uid", "_facts", "digests", "problem")

    def __init__(self, facts: Iterable[Fact]) -> None:
        by_digest = {fact.digest_hex: fact for fact in facts}
        self.digests: tuple[str, ...] = tuple(sorted(by_digest))
        self._facts = by_digest
        self._by_uid: dict[UidKey, Fact] = {fact.uid.key: fact for fact in by_digest.values()}
        self._ancestors: dict[UidKey, tuple[UidKey, ...]] = {}
        self.problem: str | None = None
        if len(self._by_uid) != len(by_digest):
            twice = sorted(str(f.uid) for f in by_digest.values() if self._by_uid[f.uid.key] is not f)
            self.problem = f"two different facts are given about {', '.join(twice)}"

    def __iter__(self) -> Iterator[Fact]:
        return iter(self._facts.values())

    def __len__(self) -> int:
        return len(self._facts)

    def get(self, uid: UidKey) -> Fact | None:
        """The fact about an entity, or None."""
        return self._by_uid.get(uid)

    def ancestors(self, uid: UidKey) -> tuple[UidKey, ...]:
        """The entity itself and everything it is in, sorted: what Cedar's ``in`` is true for.

        An entity that no fact is about is in itself alone; a parent that no fact is about ends its branch.
        """
        known = self._ancestors.get(uid)
        if known is not None:
            return known
        seen = {uid}
        todo = [uid]
        while todo:
            fact = self._by_uid.get(todo.pop())
            if fact is not None:
                for parent in fact.parents:
                    if parent.key not in seen:
                        seen.add(parent.key)
                        todo.append(parent.key)
        # Written without a lock: two threads write the same value.
        known = self._ancestors[uid] = tuple(sorted(seen))
        return known

    def data(self) -> bytes:
        """All facts as one Cedar JSON entities document."""
        return b"[" + b",".join(self._facts[digest].data for digest in self.digests) + b"]"


class EntityHandles:
    """Parsed entity sets of one schema, remembered by the exact digests they were parsed from."""

    __slots__ = ("_cache", "_schema")

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._cache: BoundedCache[tuple[str, ...], _internal.Entities] = BoundedCache(
            max_entries=_MAX_HANDLES, max_weight=_MAX_HANDLE_BYTES
        )

    def get(self, facts: FactSet, *, remember: bool = True) -> _internal.Entities:
        """The handle of ``facts``, parsed against the schema the first time.

        Args:
            facts: Without a ``problem``.
            remember: False for facts that are only supposed and will not come again.

        Raises:
            FactError: The facts do not conform to the schema.
        """
        handle = self._cache.get(facts.digests)
        if handle is None:
            data = facts.data()
            try:
                handle = _internal.Entities.from_json_str(data.decode(), self._schema)
            except ValueError as error:
                raise FactError(f"the facts do not conform to the schema: {error}") from error
            if remember:
                self._cache.put(facts.digests, handle, len(data))
        return handle
