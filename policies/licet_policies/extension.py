"""What a tenant adds to the schema: entity types and actions of its own, in namespaces of its own.

Rules kept:

- Nothing of the platform changes. An extension declares non-empty namespaces alone, and what it declares there takes no name of
  the platform's; a platform type appears in it only as the type of an attribute.
- A tenant is a wall for the tenant's own types too: each entity type is a record with the required attribute ``tenant`` of the
  type ``Tenant``, so that the guardrail of isolation reads it as it reads every other.
- Hierarchies stay apart. An own type is a member of own types only: were it in ``Role``, a role's grants could speak of it. No
  platform type becomes a member of anything, and no own action a member of a group of the platform's.
- Who asks is the platform's: an own action is asked by ``Person`` and ``ServiceAccount``, on own types, and on ``Elsewhere``,
  which stands for what is unknown or foreign and is added where it is not named. An own action on a platform type is refused:
  what is done to that is the platform's to name. Its context has ``now_ms`` and ``claimed`` as every action's has.
- No own action bears the id of a platform's, so that a safety valve is never mistaken.
- An extension is bounded in text, declarations and depth before anything is made of it. Cedar's own reader has the last word on
  the merged schema.

Text in Cedar's schema syntax and JSON in Cedar's JSON format are read into one form, in which every name is written out whole.

Source: the Cedar schema grammar, https://docs.cedarpolicy.com/schema/human-readable-schema-grammar.html.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import cedarpy

from licet_attestations import canonical
from licet_policies.errors import SchemaExtensionError
from licet_policies.schema import load_schema
from licet_policies.schema_text import Declared, read_namespaces

__all__ = ["ACTION_SEPARATOR", "Extension", "merge", "read_extension"]

ACTION_SEPARATOR: Final = "::Action::"
"""Between the namespace and the id in the name of an own action: ``Acme::Action::vendor.onboard``."""

MAX_FILES: Final = 8
MAX_CHARS: Final = 64 * 1024
MAX_NAMESPACES: Final = 8
MAX_DECLARATIONS: Final = 200
MAX_ATTRIBUTES: Final = 100
MAX_DEPTH: Final = 16
MAX_NAME_CHARS: Final = 128
_PRINCIPALS: Final = ("Person", "ServiceAccount")
_ELSEWHERE: Final = "Elsewhere"
_TENANT: Final = {"type": "Entity", "name": "Tenant"}
_CONTEXT: Final[Mapping[str, Any]] = {
    "now_ms": {"type": "Long"},
    "claimed": {"type": "Set", "element": {"type": "Claim"}},
}
_PRIMITIVE: Final = {"String": "String", "Long": "Long", "Bool": "Boolean", "Boolean": "Boolean"}
_CEDAR_EXTENSIONS: Final = frozenset({"datetime", "decimal", "duration", "ipaddr"})


@dataclass(frozen=True)
class Extension:
    """What a tenant adds to the schema.

    Attributes:
        namespaces: By name, in Cedar's JSON format, every name in it written out whole. Not to be changed.
    """

    namespaces: Mapping[str, Any]

    @property
    def actions(self) -> tuple[str, ...]:
        """The names of its actions, as a request names them."""
        return tuple(
            f"{space}{ACTION_SEPARATOR}{name}" for space, body in self.namespaces.items() for name in body["actions"]
        )


def read_extension(files: Sequence[tuple[str, str]]) -> Extension:
    """Read an extension.

    Args:
        files: Name and text of each; one whose name ends in ``.json`` is in Cedar's JSON format, others in its own syntax.

    Raises:
        SchemaExtensionError: It is out of bounds, no schema, or breaks one of the rules of this module.
    """
    if not files or len(files) > MAX_FILES:
        raise SchemaExtensionError(f"a schema extension has 1 to {MAX_FILES} files, found {len(files)}")
    if sum(len(text) for _, text in files) > MAX_CHARS:
        raise SchemaExtensionError(f"a schema extension has at most {MAX_CHARS} characters in all")
    declared: list[Declared] = []
    for name, text in files:
        declared += _from_json(name, text) if name.endswith(".json") else read_namespaces(name, text)
    extension = Extension(_Names(declared).written_out())
    # Cedar reads the whole, as it will in force.
    try:
        cedarpy.Schema.from_json_str(json.dumps(merge(extension)))
    except ValueError as error:
        named = ", ".join(name for name, _ in files)
        raise SchemaExtensionError(f"{named}: is no Cedar schema beside the platform's: {error}") from error
    return extension


def merge(extension: Extension) -> dict[str, Any]:
    """The platform's schema with an extension beside it, in Cedar's JSON format; a fresh value."""
    added: dict[str, Any] = canonical.loads(canonical.dumps(dict(extension.namespaces)))
    return {**load_schema(), **added}


def _from_json(where: str, text: str) -> list[Declared]:
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise SchemaExtensionError(f"{where}: is not JSON: {error}") from error
    if not isinstance(value, dict) or not value:
        raise SchemaExtensionError(f"{where}: a schema in JSON is an object of namespaces")
    found: list[Declared] = []
    for space, body in value.items():
        at = f"{where}: namespace {space[:MAX_NAME_CHARS]!r}"
        _only(body, ("entityTypes", "actions", "commonTypes"), at)
        for kind in ("commonTypes", "entityTypes", "actions"):
            members = body.get(kind, {})
            if not isinstance(members, dict):
                raise SchemaExtensionError(f"{at}: {kind} is an object, by name")
            found += [
                Declared(kind, space, name, member, f"{at}: {name[:MAX_NAME_CHARS]}")
                for name, member in members.items()
            ]
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The members of an object; a name that stands twice would be read in one of two ways."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


class _Names:
    """Everything that an extension declares, and what each name in it means."""

    def __init__(self, declared: Sequence[Declared]) -> None:
        if not declared:
            raise SchemaExtensionError("a schema extension declares at least one entity type or action")
        if len(declared) > MAX_DECLARATIONS:
            raise SchemaExtensionError(f"a schema extension declares at most {MAX_DECLARATIONS} types and actions")
        platform = load_schema()[""]
        self._declared = declared
        self._platform_entities = frozenset(platform["entityTypes"])
        self._platform_common = frozenset(platform["commonTypes"])
        self._platform_actions = frozenset(platform["actions"])
        self._own: dict[str, dict[str, Declared]] = {"entityTypes": {}, "commonTypes": {}, "actions": {}}
        taken = self._platform_entities | self._platform_common | _CEDAR_EXTENSIONS | _PRIMITIVE.keys()
        for one in declared:
            self._verify_name(one, taken)
            whole = f"{one.namespace}::{one.name}"
            if whole in self._own[one.kind]:
                raise SchemaExtensionError(f"{one.where}: is declared twice")
            self._own[one.kind][whole] = one
        if len({one.namespace for one in declared}) > MAX_NAMESPACES:
            raise SchemaExtensionError(f"a schema extension has at most {MAX_NAMESPACES} namespaces")

    def _verify_name(self, one: Declared, taken: Iterable[str]) -> None:
        parts = one.namespace.split("::")
        if not all(part.isascii() and part.isidentifier() for part in parts) or len(one.namespace) > MAX_NAME_CHARS:
            raise SchemaExtensionError(
                f"{one.where}: what a tenant declares stands in a namespace of its own, such as `namespace Acme {{ ... }}`"
            )
        # Cedar keeps what begins with two underscores; "Action" would make a type of an action's.
        if any(part.startswith("__") or part == "Action" or part in taken for part in (*parts, one.name)):
            raise SchemaExtensionError(f"{one.where}: the name is Cedar's or the platform's; choose another")
        if one.kind == "actions":
            if one.name in self._platform_actions:
                raise SchemaExtensionError(f"{one.where}: the platform has an action of that id; choose another")
            is_word = all(c.isascii() and (c.isalnum() or c in ".-_") for c in one.name)
            if not one.name or not is_word or len(one.name) > MAX_NAME_CHARS:
                raise SchemaExtensionError(f"{one.where}: an action's id is of letters, digits, `.`, `-` and `_`")
        elif not (one.name.isascii() and one.name.isidentifier()) or len(one.name) > MAX_NAME_CHARS:
            raise SchemaExtensionError(f"{one.where}: a type is named by a word, such as Vendor")

    def written_out(self) -> dict[str, Any]:
        """All namespaces, every name in them written out whole."""
        found: dict[str, Any] = {}
        writers = {"entityTypes": self._entity, "commonTypes": self._common, "actions": self._action}
        for one in self._declared:
            space = found.setdefault(one.namespace, {"commonTypes": {}, "entityTypes": {}, "actions": {}})
            space[one.kind][one.name] = writers[one.kind](one)
        return found

    def _common(self, one: Declared) -> dict[str, Any]:
        return self._type(one, one.body, MAX_DEPTH)

    def _entity(self, one: Declared) -> dict[str, Any]:
        _only(one.body, ("memberOfTypes", "shape"), one.where)
        shape = self._type(one, one.body.get("shape", {"type": "Record", "attributes": {}}), MAX_DEPTH)
        if shape["type"] != "Record" or shape["attributes"].get("tenant") != _TENANT:
            raise SchemaExtensionError(
                f"{one.where}: an entity type bears the required attribute `tenant: Tenant` in a record of its own: the"
                " wall between tenants is told by it"
            )
        parents = [self._own_entity(one, name) for name in _texts(one.body.get("memberOfTypes", []), one.where)]
        return {"memberOfTypes": parents, "shape": shape} if parents else {"shape": shape}

    def _action(self, one: Declared) -> dict[str, Any]:
        _only(one.body, ("appliesTo", "memberOf"), one.where)
        applies = one.body.get("appliesTo", {})
        _only(applies, ("principalTypes", "resourceTypes", "context"), one.where)
        principals = _texts(applies.get("principalTypes", []), one.where)
        if not principals or not set(principals) <= set(_PRINCIPALS):
            raise SchemaExtensionError(f"{one.where}: who asks is a Person, a ServiceAccount or both")
        resources = [
            name if name == _ELSEWHERE else self._own_entity(one, name)
            for name in _texts(applies.get("resourceTypes", []), one.where)
        ]
        if set(resources) <= {_ELSEWHERE}:
            raise SchemaExtensionError(f"{one.where}: names the own entity types that it is asked on")
        body: dict[str, Any] = {
            "appliesTo": {
                "principalTypes": list(dict.fromkeys(principals)),
                "resourceTypes": list(dict.fromkeys([*resources, _ELSEWHERE])),
                "context": self._context(one, applies.get("context", {"type": "Record", "attributes": {}})),
            }
        }
        groups = [self._group(one, group) for group in one.body.get("memberOf", [])]
        return {"memberOf": groups, **body} if groups else body

    def _context(self, one: Declared, given: Any) -> dict[str, Any]:
        context = self._type(one, given, MAX_DEPTH)
        if context["type"] != "Record":
            raise SchemaExtensionError(f"{one.where}: its context is a record of its own")
        for name, body in _CONTEXT.items():
            if context["attributes"].get(name, body) != body:
                raise SchemaExtensionError(f"{one.where}: context.{name} has the type that every action has there")
        return {"type": "Record", "attributes": {**_CONTEXT, **context["attributes"]}}

    def _group(self, one: Declared, group: Any) -> dict[str, str]:
        _only(group, ("id", "type"), one.where)
        kind, name = str(group.get("type", f"{one.namespace}::Action")), str(group.get("id", ""))
        if f"{kind.removesuffix('::Action')}::{name}" not in self._own["actions"]:
            raise SchemaExtensionError(f"{one.where}: an own action is a member of own actions only")
        return {"id": name, "type": kind}

    def _own_entity(self, one: Declared, name: str) -> str:
        whole = self._whole(one, name, "entityTypes")
        if whole is None:
            raise SchemaExtensionError(
                f"{one.where}: {name[:MAX_NAME_CHARS]!r} is no entity type of the extension; an own type or action speaks of"
                " own types here, and of platform types only in attributes"
            )
        return whole

    def _whole(self, one: Declared, name: str, kind: str) -> str | None:
        return next((w for w in (f"{one.namespace}::{name}", name) if w in self._own[kind]), None)

    def _type(self, one: Declared, body: Any, depth: int) -> dict[str, Any]:
        if depth == 0:
            raise SchemaExtensionError(f"{one.where}: types stand at most {MAX_DEPTH} deep in one another")
        if not isinstance(body, Mapping) or not isinstance(body.get("type"), str):
            raise SchemaExtensionError(f"{one.where}: a type is an object with `type`")
        kind: str = body["type"]
        if kind == "Record":
            _only(body, ("type", "attributes", "required"), one.where)
            return {"type": "Record", "attributes": dict(self._attributes(one, body.get("attributes", {}), depth))}
        if kind == "Set":
            _only(body, ("type", "element", "required"), one.where)
            return {"type": "Set", "element": self._type(one, body.get("element"), depth - 1)}
        if kind in ("Entity", "EntityOrCommon", "Extension"):
            _only(body, ("type", "name", "required"), one.where)
            return self._named(one, str(body.get("name", "")), kind)
        _only(body, ("type", "required"), one.where)
        return self._named(one, kind, "EntityOrCommon") if kind not in _PRIMITIVE else {"type": _PRIMITIVE[kind]}

    def _attributes(self, one: Declared, attributes: Any, depth: int) -> Iterator[tuple[str, dict[str, Any]]]:
        if not isinstance(attributes, Mapping) or len(attributes) > MAX_ATTRIBUTES:
            raise SchemaExtensionError(f"{one.where}: a record has at most {MAX_ATTRIBUTES} attributes, by name")
        for name, body in attributes.items():
            if not name or len(name) > MAX_NAME_CHARS or not name.isascii():
                raise SchemaExtensionError(
                    f"{one.where}: an attribute's name is of 1 to {MAX_NAME_CHARS} ASCII characters"
                )
            written = self._type(one, body, depth - 1)
            yield name, written if body.get("required", True) else {**written, "required": False}

    def _named(self, one: Declared, name: str, kind: str) -> dict[str, Any]:
        """What a name means: the extension's own first, as Cedar reads it within a namespace."""
        if kind != "Extension":
            if kind == "EntityOrCommon" and (whole := self._whole(one, name, "commonTypes")) is not None:
                return {"type": whole}
            if (whole := self._whole(one, name, "entityTypes")) is not None:
                return {"type": "Entity", "name": whole}
            if kind == "EntityOrCommon" and name in _PRIMITIVE:
                return {"type": _PRIMITIVE[name]}
            if kind == "EntityOrCommon" and name in self._platform_common:
                return {"type": name}
            if name in self._platform_entities:
                return {"type": "Entity", "name": name}
        if kind != "Entity" and name in _CEDAR_EXTENSIONS:
            return {"type": "Extension", "name": name}
        raise SchemaExtensionError(
            f"{one.where}: {name[:MAX_NAME_CHARS]!r} is no type of the extension, the platform or Cedar"
        )


def _texts(value: Any, where: str) -> list[str]:
    if not isinstance(value, list) or len(value) > MAX_DECLARATIONS or not all(isinstance(v, str) for v in value):
        raise SchemaExtensionError(f"{where}: expected a list of names")
    return value


def _only(value: Any, known: Sequence[str], where: str) -> None:
    if not isinstance(value, Mapping):
        raise SchemaExtensionError(f"{where}: expected an object of {', '.join(known)}")
    unknown = sorted(str(key) for key in value.keys() - set(known))
    if unknown:
        raise SchemaExtensionError(
            f"{where}: {', '.join(unknown)[:MAX_NAME_CHARS]} cannot stand in an extension; there may be {', '.join(known)}"
        )
