"""Cedar's types, read from a schema in Cedar's JSON format, and the request environments that the schema allows.

Rules kept:

- Names are resolved as Cedar does: within their namespace first, common types before entity types, then in the empty
  namespace, then what is built in.
- A part of the format that is not known is refused, never skipped: a type that was read too wide would prove too much.
- What may be an ancestor of what is the transitive closure of ``memberOfTypes``; that of actions, of ``memberOf``.

Source: https://docs.cedarpolicy.com/schema/json-schema.html.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from licet_engine.workbench.symbolic.errors import SchemaError

__all__ = [
    "BOOL",
    "LONG",
    "STRING",
    "ActionInfo",
    "Attribute",
    "EntityInfo",
    "EntityType",
    "ExtensionType",
    "Primitive",
    "RecordType",
    "RequestEnvironment",
    "Schema",
    "SetType",
    "Type",
]


@dataclass(frozen=True, slots=True)
class Primitive:
    """``Bool``, ``Long`` or ``String``."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class EntityType:
    """A reference to an entity of the type ``name``, namespace included."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class ExtensionType:
    """``decimal``, ``ipaddr``, ``datetime`` or ``duration``."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class SetType:
    """A set; ``element`` is None where nothing is known of it, as of the literal ``[]``."""

    element: Type | None

    def __str__(self) -> str:
        return f"Set<{self.element or 'nothing'}>"


@dataclass(frozen=True, slots=True)
class Attribute:
    """An attribute of a record or an entity."""

    type: Type
    required: bool


@dataclass(frozen=True, slots=True)
class RecordType:
    """A record, which holds these attributes and no others; sorted by name."""

    attributes: tuple[tuple[str, Attribute], ...]

    def __str__(self) -> str:
        return "{" + ", ".join(f"{name}{'' if a.required else '?'}: {a.type}" for name, a in self.attributes) + "}"

    def get(self, name: str) -> Attribute | None:
        """The attribute called ``name``."""
        return next((attribute for own, attribute in self.attributes if own == name), None)


Type = Primitive | EntityType | ExtensionType | SetType | RecordType

BOOL: Final = Primitive("Bool")
LONG: Final = Primitive("Long")
STRING: Final = Primitive("String")
_BUILT_IN: Final[Mapping[str, Type]] = {
    "Bool": BOOL,
    "Boolean": BOOL,
    "Long": LONG,
    "String": STRING,
    **{name: ExtensionType(name) for name in ("decimal", "ipaddr", "datetime", "duration")},
}
_EMPTY: Final = RecordType(())
T = TypeVar("T")
_MAX_DEPTH: Final = 32
"""Levels of records, sets and common types within one type."""


@dataclass(frozen=True, slots=True)
class EntityInfo:
    """What the schema says of one entity type.

    Attributes:
        name: With its namespace.
        attributes: Its shape.
        ancestors: Types that an ancestor of such an entity may have.
        tags: Type of its tags; None if it has none.
        members: All ids there are, of an enumerated type; else None.
    """

    name: str
    attributes: RecordType = _EMPTY
    ancestors: frozenset[str] = frozenset()
    tags: Type | None = None
    members: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class ActionInfo:
    """What the schema says of one action: ``type`` and ``id`` name it, ``ancestors`` are the groups it is in."""

    type: str
    id: str
    ancestors: frozenset[tuple[str, str]]
    principals: tuple[str, ...]
    resources: tuple[str, ...]
    context: RecordType


@dataclass(frozen=True, slots=True)
class RequestEnvironment:
    """One kind of request that the schema allows: who, what, on what, with which context."""

    principal: str
    action: tuple[str, str]
    resource: str
    context: RecordType = field(repr=False, compare=False)

    def __str__(self) -> str:
        return f'{self.principal}, {self.action[0]}::"{self.action[1]}", {self.resource}'


@dataclass(frozen=True)
class Schema:
    """A schema as the prover needs it.

    Attributes:
        source: The JSON it was read from, for Cedar itself.
        entities: By name of the type; the types of actions are not among them.
        actions: By type and id.
    """

    source: Mapping[str, Any] = field(repr=False, compare=False)
    entities: Mapping[str, EntityInfo]
    actions: Mapping[tuple[str, str], ActionInfo]

    @classmethod
    def parse(cls, source: Mapping[str, Any]) -> Schema:
        """Read a schema in Cedar's JSON format.

        Raises:
            SchemaError: A name that is not declared, a part that is not known, or types that nest too deep.
        """
        return _Reader(source).schema()

    def environments(self) -> Iterator[RequestEnvironment]:
        """Every request environment, in the schema's order."""
        for key, action in self.actions.items():
            for principal in action.principals:
                for resource in action.resources:
                    yield RequestEnvironment(principal, key, resource, action.context)

    def ancestor_types(self, entity_type: str) -> frozenset[str]:
        """Types that an ancestor of an ``entity_type`` may have; none for a type that is not declared."""
        info = self.entities.get(entity_type)
        return info.ancestors if info else frozenset()


class _Reader:
    def __init__(self, source: Mapping[str, Any]) -> None:
        self._source = source
        self._commons: dict[str, tuple[str, Mapping[str, Any]]] = {}
        self._entities: dict[str, tuple[str, Mapping[str, Any]]] = {}
        for space, body in source.items():
            _only(body, {"commonTypes", "entityTypes", "actions", "annotations"}, f"namespace {space!r}")
            for name, declared in body.get("commonTypes", {}).items():
                self._commons[_join(space, name)] = (space, declared)
            for name, declared in body.get("entityTypes", {}).items():
                self._entities[_join(space, name)] = (space, declared)

    def schema(self) -> Schema:
        direct = {
            name: {self._entity_name(space, parent) for parent in body.get("memberOfTypes", [])}
            for name, (space, body) in self._entities.items()
        }
        closed = _closure(direct)
        entities = {name: self._entity(name, *declared, closed[name]) for name, declared in self._entities.items()}
        return Schema(self._source, entities, self._actions())

    def _entity(self, name: str, space: str, body: Mapping[str, Any], ancestors: frozenset[str]) -> EntityInfo:
        where = f"entity type {name}"
        _only(body, {"memberOfTypes", "shape", "tags", "enum", "annotations"}, where)
        if "enum" in body:
            return EntityInfo(name, members=tuple(body["enum"]))
        shape = self._type(space, body["shape"], where) if "shape" in body else _EMPTY
        if not isinstance(shape, RecordType):
            raise SchemaError(f"{where}: its shape is {shape}, not a record")
        tags = self._type(space, body["tags"], where) if "tags" in body else None
        return EntityInfo(name, shape, ancestors, tags)

    def _actions(self) -> dict[tuple[str, str], ActionInfo]:
        declared = {
            (_join(space, "Action"), name): (space, action)
            for space, body in self._source.items()
            for name, action in body.get("actions", {}).items()
        }
        direct = {}
        for key, (space, action) in declared.items():
            _only(action, {"appliesTo", "memberOf", "attributes", "annotations"}, f"action {key[1]!r}")
            direct[key] = {
                (self._action_type(space, parent.get("type"), declared), parent["id"])
                for parent in action.get("memberOf") or []
            }
            for parent in direct[key]:
                if parent not in declared:
                    raise SchemaError(f"action {key[1]!r}: is in {parent[1]!r}, which is not declared")
        closed = _closure(direct)
        return {key: self._action(key, *action, closed[key]) for key, action in declared.items()}

    @staticmethod
    def _action_type(space: str, given: str | None, declared: Mapping[tuple[str, str], object]) -> str:
        if given is None:
            return _join(space, "Action")
        local = _join(space, given)
        return local if any(kind == local for kind, _ in declared) else given

    def _action(
        self, key: tuple[str, str], space: str, body: Mapping[str, Any], ancestors: frozenset[tuple[str, str]]
    ) -> ActionInfo:
        where = f"action {key[1]!r}"
        applies = body.get("appliesTo") or {"principalTypes": [], "resourceTypes": []}
        _only(applies, {"principalTypes", "resourceTypes", "context"}, where)
        context = self._type(space, applies["context"], where) if "context" in applies else _EMPTY
        if not isinstance(context, RecordType):
            raise SchemaError(f"{where}: its context is {context}, not a record")
        sides = [
            tuple(self._entity_name(space, name) for name in applies[side])
            for side in ("principalTypes", "resourceTypes")
        ]
        return ActionInfo(*key, ancestors, sides[0], sides[1], context)

    def _entity_name(self, space: str, name: str) -> str:
        for candidate in _candidates(space, name):
            if candidate in self._entities:
                return candidate
        raise SchemaError(f"entity type {name!r} is not declared")

    def _type(self, space: str, body: Mapping[str, Any], where: str, depth: int = 0) -> Type:
        if depth > _MAX_DEPTH:
            raise SchemaError(f"{where}: types nest more than {_MAX_DEPTH} deep")
        kind = body["type"]
        _only(body, {"type", "required", "annotations", *_KEYS.get(kind, ())}, where)
        if kind == "Set":
            return SetType(self._type(space, body["element"], where, depth + 1))
        if kind == "Record":
            if body.get("additionalAttributes"):
                raise SchemaError(f"{where}: a record with attributes that are not declared is not supported")
            read = {
                name: Attribute(self._type(space, inner, where, depth + 1), inner.get("required", True))
                for name, inner in body["attributes"].items()
            }
            return RecordType(tuple(sorted(read.items())))
        if kind == "Entity":
            return EntityType(self._entity_name(space, body["name"]))
        if kind == "Extension":
            return self._named(space, "__cedar::" + body["name"], where, depth)
        return self._named(space, body["name"] if kind == "EntityOrCommon" else kind, where, depth)

    def _named(self, space: str, name: str, where: str, depth: int) -> Type:
        for candidate in _candidates(space, name):
            if candidate in self._commons:
                return self._type(*self._commons[candidate], where, depth + 1)
            if candidate in self._entities:
                return EntityType(candidate)
        built_in = _BUILT_IN.get(name.removeprefix("__cedar::"))
        if built_in is None:
            raise SchemaError(f"{where}: type {name!r} is not declared")
        return built_in


_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "Set": ("element",),
    "Record": ("attributes", "additionalAttributes"),
    "Entity": ("name",),
    "Extension": ("name",),
    "EntityOrCommon": ("name",),
}


def _only(value: Mapping[str, Any], known: set[str], where: str) -> None:
    if unknown := set(value) - known:
        raise SchemaError(f"{where}: {', '.join(sorted(unknown))} is not known here")


def _join(space: str, name: str) -> str:
    return f"{space}::{name}" if space else name


def _candidates(space: str, name: str) -> tuple[str, ...]:
    # What is written with a namespace is meant from the root; what is not, from within first.
    return (name,) if "::" in name or not space else (_join(space, name), name)


def _closure(direct: Mapping[T, set[T]]) -> dict[T, frozenset[T]]:
    closed = {}
    for start in direct:
        reached: set[T] = set()
        waiting = list(direct[start])
        while waiting:
            one = waiting.pop()
            if one not in reached:
                reached.add(one)
                waiting += direct.get(one, ())
        closed[start] = frozenset(reached)
    return closed
