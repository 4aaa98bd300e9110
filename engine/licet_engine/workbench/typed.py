"""Values of a test, made into what Cedar reads by the types that the schema gives them.

Rules kept here:

- A text is a reference to an entity, or a value of an extension such as an address, where the schema says so, and nowhere else. So a
  test writes ``tenant: Tenant::northbank``, and no text is mistaken for something else.
- What does not fit its type is told with its place; Cedar, which has the last word, would say only that something does not.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Final

from licet_engine.workbench.errors import WorkbenchError

_CONSTRUCTOR: Final = {"ipaddr": "ip", "decimal": "decimal", "datetime": "datetime", "duration": "duration"}
_PLAIN: Final[Mapping[str, type]] = {"String": str, "Long": int, "Boolean": bool}
_WANTED: Final = {
    "String": "a text",
    "Long": "an integer",
    "Boolean": "true or false",
    "Set": "a list",
    "Record": "a mapping",
}
_ROLE: Final = "Role"
_ACTION: Final = "::Action::"


class CaseProblem(WorkbenchError):
    """A test cannot be run as it is written: its author mends it."""

    default_code = "invalid-test"


class Types:
    """The types of a schema in Cedar's JSON format."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._entities: dict[str, Mapping[str, Any]] = {}
        self._common: dict[str, Mapping[str, Any]] = {}
        self._contexts: dict[str, Mapping[str, Any]] = {}
        for space, body in schema.items():
            before = f"{space}::" if space else ""
            self._entities |= {before + name: member for name, member in body.get("entityTypes", {}).items()}
            self._common |= {before + name: member for name, member in body.get("commonTypes", {}).items()}
            action = f"{space}{_ACTION}" if space else ""
            self._contexts |= {
                action + name: member["appliesTo"]["context"] for name, member in body.get("actions", {}).items()
            }

    def uid(self, text: Any) -> dict[str, str]:
        """The entity that ``Type::id`` names.

        Raises:
            CaseProblem: It names none, or one of a type that the schema does not know.
        """
        if not isinstance(text, str) or "::" not in text:
            raise CaseProblem(f"{text!r:.100}: an entity is named as Type::id, such as Dataset::northbank/prices")
        named = text.removeprefix("@")
        # An id may hold colons as well: the longest type that the schema knows is the type.
        cuts = [at for at in range(len(named)) if named.startswith("::", at)]
        for at in reversed(cuts):
            if named[:at] in self._entities:
                return {"type": named[:at], "id": named[at + 2 :]}
        close = difflib.get_close_matches(named[: cuts[0]], self._entities, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise CaseProblem(f"{text!r:.100}: the schema has no entity type of that name{hint}")

    def verify_action(self, name: str) -> None:
        """Verify that the schema has an action.

        Raises:
            CaseProblem: It has not.
        """
        if name not in self._contexts:
            close = difflib.get_close_matches(name, self._contexts, n=1)
            raise CaseProblem(f"there is no action {name!r:.100}" + (f"; did you mean {close[0]}?" if close else ""))

    def entity(self, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """An entity in Cedar's JSON.

        Args:
            name: As ``Type::id``.
            body: Its attributes; ``roles`` and ``in`` say what it is in, where the type has no attribute of that name.

        Raises:
            CaseProblem: It is not what the schema says that it is.
        """
        uid = self.uid(name)
        declared = self._entities[uid["type"]]
        shape = self._resolved(declared.get("shape", {"type": "Record", "attributes": {}}))
        attributes = shape["attributes"]
        parents: list[dict[str, str]] = []
        attrs: dict[str, Any] = {}
        for key, value in body.items():
            if key == "roles" and key not in attributes:
                parents += [{"type": _ROLE, "id": str(role)} for role in _list(value, f"{name}.roles")]
            elif key == "in" and key not in attributes:
                parents += [self.uid(parent) for parent in _list(value, f"{name}.in")]
            else:
                attrs[key] = value
        for parent in parents:
            if parent["type"] not in declared.get("memberOfTypes", ()):
                raise CaseProblem(f"{name}: the schema has no {uid['type']} in a {parent['type']}")
        return {"uid": uid, "attrs": self._record(shape, attrs, name), "parents": parents}

    def context(self, action: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """The context of an action that the schema has, in Cedar's JSON.

        Raises:
            CaseProblem: It is not what the schema says that it is.
        """
        return self._record(self._resolved(self._contexts[action]), values, "context")

    def _resolved(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        while body["type"] in self._common:
            body = self._common[body["type"]]
        return body

    def _value(self, declared: Mapping[str, Any], value: Any, where: str) -> Any:
        body = self._resolved(declared)
        kind: str = body["type"]
        if kind == "Record" and isinstance(value, Mapping):
            return self._record(body, value, where)
        if kind == "Set" and isinstance(value, list):
            return [self._value(body["element"], item, f"{where}[{number}]") for number, item in enumerate(value)]
        if kind == "Entity" and isinstance(value, str):
            uid = self.uid(value)
            if uid["type"] == body["name"]:
                return {"__entity": uid}
        elif kind == "Extension" and isinstance(value, str):
            return {"__extn": {"fn": _CONSTRUCTOR[body["name"]], "arg": value}}
        elif kind in _PLAIN and type(value) is _PLAIN[kind]:
            return value
        wanted = _WANTED.get(kind) or str(body.get("name", kind))
        raise CaseProblem(f"{where}: the schema wants {wanted} here, found {value!r:.60}")

    def _record(self, body: Mapping[str, Any], values: Mapping[str, Any], where: str) -> dict[str, Any]:
        attributes: Mapping[str, Mapping[str, Any]] = body["attributes"]
        for key in values:
            if key not in attributes:
                close = difflib.get_close_matches(key, attributes, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise CaseProblem(f"{where}: the schema has no {key!r:.100} here{hint}")
        missing = sorted(key for key, one in attributes.items() if one.get("required", True) and key not in values)
        if missing:
            raise CaseProblem(f"{where}: the schema wants {', '.join(missing)} as well")
        return {key: self._value(attributes[key], value, f"{where}.{key}") for key, value in values.items()}


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise CaseProblem(f"{where}: must be a list")
    return value
