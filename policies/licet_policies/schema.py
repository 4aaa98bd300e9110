"""The Cedar schema: ``schema.json`` is the source, ``schema.cedarschema`` is generated from it for people to read.

Rules kept: nothing is left out in silence. The generator knows the part of Cedar's JSON schema format that we use and
refuses any other key, so that the text always says what the source says.

``python -m licet_policies`` writes the text anew.
"""

import json
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any, Final

from licet_policies.errors import LicetPoliciesError

__all__ = ["extension_text", "generate_text", "load_schema", "resource_types", "schema_text"]

_BUILTIN: Final = {"String": "String", "Boolean": "Bool", "Long": "Long"}
_HEADER: Final = (
    "// Generated from schema.json by `python -m licet_policies`. Do not edit: edit schema.json.\n"
    "// A name that ends in _micro counts millionths, one that ends in _ms milliseconds since 1970.\n"
)


def load_schema() -> dict[str, Any]:
    """Read the schema in Cedar's JSON format; each call gives a fresh value."""
    text = resources.files("licet_policies").joinpath("schema.json").read_text("utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def resource_types() -> Mapping[str, frozenset[str]]:
    """What each action is about: its resource types, but for the stand-in of what is elsewhere."""
    actions = load_schema()[""]["actions"]
    return {name: frozenset(body["appliesTo"]["resourceTypes"]) - {"Elsewhere"} for name, body in actions.items()}


def schema_text() -> str:
    """Read the schema in Cedar's own syntax."""
    return resources.files("licet_policies").joinpath("schema.cedarschema").read_text("utf-8")


def generate_text(schema: Mapping[str, Any]) -> str:
    """Write a JSON schema in Cedar's own syntax.

    Args:
        schema: One that has the empty namespace alone.

    Raises:
        LicetPoliciesError: A part of the format that this generator does not know.
    """
    _only(schema, {""}, "schema")
    namespace = schema[""]
    _only(namespace, {"commonTypes", "entityTypes", "actions"}, "namespace")
    parts = [f"type {name} = {_type(body, '')};" for name, body in namespace["commonTypes"].items()]
    parts += [_entity(name, body) for name, body in namespace["entityTypes"].items()]
    parts += [_action(name, body) for name, body in namespace["actions"].items()]
    return _HEADER + "\n" + "\n\n".join(parts) + "\n"


def extension_text(namespaces: Mapping[str, Any]) -> str:
    """Write the namespaces of an extension in Cedar's own syntax.

    Args:
        namespaces: By name, as ``licet_policies.extension`` reads them: every name in them is written out whole.
    """
    parts: list[str] = []
    for space, body in namespaces.items():
        inside = [f"type {name} = {_type(one, '')};" for name, one in body["commonTypes"].items()]
        inside += [_entity(name, one) for name, one in body["entityTypes"].items()]
        inside += [_action(name, one) for name, one in body["actions"].items()]
        parts.append(f"namespace {space} {{\n\n" + "\n\n".join(inside) + "\n\n}\n")
    return "\n".join(parts)


def _only(value: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    unknown = set(value) - set(known)
    if unknown:
        raise LicetPoliciesError(f"{where}: the generator does not know {sorted(unknown)}; teach it")


def _type(body: Mapping[str, Any], indent: str) -> str:
    kind: str = body["type"]
    if kind == "Record":
        _only(body, {"type", "attributes", "required"}, "record")
        return _record(body["attributes"], indent)
    if kind == "Set":
        _only(body, {"type", "element", "required"}, "set")
        return f"Set<{_type(body['element'], indent)}>"
    if kind == "Entity":
        _only(body, {"type", "name", "required"}, "entity reference")
        return str(body["name"])
    if kind == "Extension":
        _only(body, {"type", "name", "required"}, "extension type")
        return str(body["name"])
    # What is neither built in nor a constructor is the name of a common type.
    _only(body, {"type", "required"}, f"type {kind}")
    return _BUILTIN.get(kind, kind)


def _record(attributes: Mapping[str, Any], indent: str) -> str:
    inner = indent + "  "
    lines = [
        f"{inner}{_name(name)}{'' if body.get('required', True) else '?'}: {_type(body, inner)},\n"
        for name, body in attributes.items()
    ]
    return "{\n" + "".join(lines) + indent + "}" if lines else "{}"


def _name(name: str) -> str:
    # Cedar wants quotes around what is no identifier, such as `model-risk`.
    return name if name.isidentifier() else json.dumps(name)


def _entity(name: str, body: Mapping[str, Any]) -> str:
    _only(body, {"memberOfTypes", "shape"}, f"entity {name}")
    text = f"entity {name}"
    if body.get("memberOfTypes"):
        text += f" in [{', '.join(body['memberOfTypes'])}]"
    if "shape" in body:
        text += f" = {_type(body['shape'], '')}"
    return text + ";"


def _action(name: str, body: Mapping[str, Any]) -> str:
    _only(body, {"appliesTo", "memberOf"}, f"action {name}")
    groups = ", ".join(f"{group['type']}::{json.dumps(group['id'])}" for group in body.get("memberOf", ()))
    applies = body["appliesTo"]
    _only(applies, {"principalTypes", "resourceTypes", "context"}, f"action {name}")
    return (
        f'action "{name}"{f" in [{groups}]" if groups else ""} appliesTo {{\n'
        f"  principal: [{', '.join(applies['principalTypes'])}],\n"
        f"  resource: [{', '.join(applies['resourceTypes'])}],\n"
        f"  context: {_type(applies['context'], '  ')},\n"
        "};"
    )
