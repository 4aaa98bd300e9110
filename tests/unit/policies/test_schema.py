"""The readable schema is current, and says what the source says: Cedar's validator cannot tell them apart."""

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import cedarpy
import pytest

from licet_policies import LicetPoliciesError, load_schema, schema_text
from licet_policies.schema import generate_text

SCHEMA = load_schema()
NAMESPACE = SCHEMA[""]
LITERALS = ["true", "1", '"text"', '["text"]', '[{name: "n", value: "v"}]']
LITERALS += [f'{kind}::"x"' for kind in ("Tenant", "Person", "Model")]
LITERALS += [f'[{kind}::"x"]' for kind in ("Person", "ServiceAccount")]


def test_the_readable_schema_is_current() -> None:
    assert schema_text() == generate_text(SCHEMA)


def _paths(
    body: dict[str, Any], prefix: str, *, guarded: tuple[str, ...] = ()
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Give every attribute below ``prefix`` with the `has` guards that reach it."""
    resolved = NAMESPACE["commonTypes"].get(body["type"], body)
    yield prefix, guarded
    for name, attribute in resolved.get("attributes", {}).items():
        is_plain = name.isidentifier()
        has = f"{prefix} has {name if is_plain else json.dumps(name)}"
        inner = f"{prefix}.{name}" if is_plain else f"{prefix}[{json.dumps(name)}]"
        yield from _paths(attribute, inner, guarded=(*guarded, has))


def _probes() -> Iterator[str]:
    """Give policies that are valid only if an attribute is there, of that type, and required or optional."""
    # One action a resource type: the validator takes each pair of types and action on its own.
    scopes = {
        kind: (
            f'principal is Person, action == Action::"{action}", resource is {kind}',
            "resource",
            NAMESPACE["entityTypes"][kind]["shape"],
        )
        for action, body in NAMESPACE["actions"].items()
        for kind in body["appliesTo"]["resourceTypes"]
    }
    scopes |= {
        action: (
            f'principal is Person, action == Action::"{action}", resource is Elsewhere',
            "context",
            body["appliesTo"]["context"],
        )
        for action, body in NAMESPACE["actions"].items()
    }
    scopes |= {
        f"as {kind}": (
            f'principal is {kind}, action == Action::"run.read", resource is Elsewhere',
            "principal",
            NAMESPACE["entityTypes"][kind]["shape"],
        )
        for kind in ("Person", "ServiceAccount")
    }
    # A model is no resource of any action; it is reached from its versions.
    scopes["Model"] = (
        'principal is Person, action == Action::"model.read", resource is ModelVersion',
        "resource.model",
        NAMESPACE["entityTypes"]["Model"]["shape"],
    )
    for scope, variable, shape in scopes.values():
        for path, guards in _paths(shape, variable):
            if path == variable:
                continue
            yield f"permit ({scope}) when {{ {path} == {path} }};"
            for literal in LITERALS:
                yield f"permit ({scope}) when {{ {' && '.join(guards)} && {path} == {literal} }};"
        yield f"permit ({scope}) when {{ {variable}.unheard_of == 1 }};"


def _applicability_probes() -> Iterator[str]:
    for action in NAMESPACE["actions"]:
        for kind in NAMESPACE["entityTypes"]:
            yield f'permit (principal is {kind}, action == Action::"{action}", resource);'
            yield f'permit (principal, action == Action::"{action}", resource is {kind});'
    for kind in NAMESPACE["entityTypes"]:
        for group in NAMESPACE["entityTypes"]:
            yield f'permit (principal is Person, action, resource is {kind} in {group}::"x");'


def _refused(probes: list[str], schema: cedarpy.Schema) -> set[str]:
    result = cedarpy.validate_policies("\n".join(probes), schema)
    return {error.policy_id for error in result.errors}


@cache
def _refused_as_shipped() -> set[str]:
    """Of all probes, those that the readable schema refuses; it takes seconds."""
    return _refused(TEXTS, cedarpy.Schema.from_str(schema_text()))


def test_both_schemas_accept_and_refuse_the_same_policies() -> None:
    from_source = _refused(TEXTS, cedarpy.Schema.from_json_str(json.dumps(SCHEMA)))
    assert from_source == _refused_as_shipped()
    # The probes tell something only if both answers occur.
    assert 0 < len(from_source) < len(TEXTS)


TEXTS = [*_probes(), *_applicability_probes()]


def _mutated() -> Iterator[tuple[str, dict[str, Any]]]:
    def copy() -> dict[str, Any]:
        return json.loads(json.dumps(SCHEMA))  # type: ignore[no-any-return]

    schema = copy()
    schema[""]["commonTypes"]["Checks"]["attributes"]["bias"]["required"] = True
    yield "an optional attribute made required", schema
    schema = copy()
    schema[""]["entityTypes"]["Run"]["shape"]["attributes"]["cost"]["type"] = "String"
    yield "another type", schema
    schema = copy()
    del schema[""]["entityTypes"]["Secret"]["shape"]["attributes"]["tenant"]
    yield "an attribute left out", schema
    schema = copy()
    schema[""]["actions"]["log.read"]["appliesTo"]["resourceTypes"].remove("Elsewhere")
    yield "a resource type left out", schema
    schema = copy()
    schema[""]["actions"]["model.promote"]["appliesTo"]["context"]["attributes"]["stage"]["required"] = False
    yield "a context attribute made optional", schema


@pytest.mark.parametrize(
    ("what", "schema"), list(_mutated()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_the_probes_notice(what: str, schema: dict[str, Any]) -> None:
    changed = _refused(TEXTS, cedarpy.Schema.from_str(generate_text(schema)))
    assert changed != _refused_as_shipped(), what


@pytest.mark.parametrize("where", ["schema", "namespace", "entity", "action", "attribute"])
def test_the_generator_refuses_what_it_does_not_know(where: str) -> None:
    schema = load_schema()
    part: dict[str, Any] = {
        "schema": schema,
        "namespace": schema[""],
        "entity": schema[""]["entityTypes"]["Run"],
        "action": schema[""]["actions"]["run.read"],
        "attribute": schema[""]["entityTypes"]["Run"]["shape"]["attributes"]["cost"],
    }[where]
    part["novelty"] = {}
    with pytest.raises(LicetPoliciesError, match="novelty"):
        generate_text(schema)
