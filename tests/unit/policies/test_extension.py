"""What a tenant adds to the schema stands beside the platform's, and changes nothing of it."""

from __future__ import annotations

import json

import cedarpy
import pytest

from licet_engine.decide import CompiledBundle, EntityUid, Fact, FactSet, Request, decide, decide_unsliced, explain
from licet_policies import SchemaExtensionError, bundle_digest_hex, compose, load_schema, read_extension, schema_text
from licet_policies.extension import MAX_ATTRIBUTES, MAX_CHARS, MAX_DECLARATIONS, merge
from licet_policies.schema import extension_text

VENDORS = """
// Whom we buy from.
@doc("ours")
namespace Acme {
  type Score = { value: Long, by?: Person };
  entity Group = { tenant: Tenant };
  entity Vendor in [Group] {
    tenant: Tenant, "risk-tier": String, score?: Score, from: ipaddr, bound: Restrictions, models: Set<ModelVersion>,
  };
  action all appliesTo { principal: Person, resource: Vendor, context: {} };
  action "vendor.onboard", "vendor.drop" in [all] appliesTo {
    principal: [Person, ServiceAccount],
    resource: [Vendor],
    context: { why?: String },
  };
}
"""
OWN = """
@id("acme.vendors")
permit (principal is Person, action in Acme::Action::"all", resource is Acme::Vendor)
when { resource["risk-tier"] == "low" && resource.from.isInRange(ip("10.0.0.0/8")) };
"""
BOUND = {
    "classification": "public",
    "protected": False,
    "residency": [],
    "uses": [],
    "expires_at_ms": 1,
    "held": False,
}


def ref(kind: str, name: str) -> dict[str, dict[str, str]]:
    return {"__entity": {"type": kind, "id": name}}


def facts(owner: str) -> FactSet:
    vendor = {"tenant": ref("Tenant", owner), "risk-tier": "low", "bound": BOUND, "models": []}
    entities: list[tuple[str, str, dict[str, object]]] = [
        ("Tenant", "north", {"region": "us", "suspended": False}),
        ("Tenant", "south", {"region": "us", "suspended": False}),
        ("Person", "north/ana", {"tenant": ref("Tenant", "north"), "active": True}),
        ("Acme::Vendor", "v", {**vendor, "from": {"__extn": {"fn": "ip", "arg": "10.1.1.1"}}}),
    ]
    return FactSet(
        Fact.from_entity({"uid": {"type": kind, "id": name}, "attrs": attrs, "parents": []})
        for kind, name, attrs in entities
    )


ONBOARD = Request(
    EntityUid("Person", "north/ana"),
    "Acme::Action::vendor.onboard",
    EntityUid("Acme::Vendor", "v"),
    {"now_ms": 1, "claimed": []},
)


def test_a_bundle_without_an_extension_has_the_digest_it_always_had() -> None:
    assert compose()["schema"] == load_schema()
    assert bundle_digest_hex(compose()) == bundle_digest_hex(compose([], "", None))


def test_an_own_action_on_an_own_type_is_decided_behind_the_wall_between_tenants() -> None:
    compiled = CompiledBundle.compile(compose([], OWN, read_extension([("v.cedarschema", VENDORS)])))
    for asked in (decide, decide_unsliced):
        mine, foreign = asked(compiled, ONBOARD, facts("north")), asked(compiled, ONBOARD, facts("south"))
        assert (mine.word, mine.reasons, mine.errors) == ("allow", ("acme.vendors",), ())
        assert (foreign.word, foreign.reasons, foreign.errors) == ("deny", ("guardrail.isolation",), ())
    assert [report.id for report in explain(compiled, ONBOARD, facts("south")).deciding] == ["guardrail.isolation"]


def test_what_is_unknown_is_asked_about_in_the_one_way() -> None:
    added = merge(read_extension([("v.cedarschema", VENDORS)]))["Acme"]["actions"]
    assert all("Elsewhere" in body["appliesTo"]["resourceTypes"] for body in added.values())


def test_text_and_json_say_the_same_and_the_text_that_is_written_reads_back() -> None:
    read = read_extension([("v.cedarschema", VENDORS)])
    assert read_extension([("v.json", json.dumps(read.namespaces))]).namespaces == read.namespaces
    text = extension_text(read.namespaces)
    assert read_extension([("again.cedarschema", text)]).namespaces == read.namespaces
    cedarpy.Schema.from_str(schema_text() + text)


def test_the_platforms_part_of_the_merged_schema_is_the_platforms() -> None:
    merged = merge(read_extension([("v.cedarschema", VENDORS)]))
    assert merged[""] == load_schema()[""]
    assert set(merged) == {"", "Acme"}


T = "tenant: Tenant"
REFUSED = {
    "a type without a tenant": ("namespace A { entity V = { tier: String }; }", "tenant: Tenant"),
    "a tenant that need not be there": ("namespace A { entity V = { tenant?: Tenant }; }", "tenant: Tenant"),
    "a tenant of another type": ("namespace A { entity V = { tenant: String }; }", "tenant: Tenant"),
    "a tenant of a type of its own": (
        "namespace A { entity W = { tenant: Tenant }; entity V = { tenant: W }; }",
        "tenant: Tenant",
    ),
    "no attributes at all": ("namespace A { entity V; }", "tenant: Tenant"),
    "no namespace": (f"entity V = {{ {T} }};", "namespace of its own"),
    "a platform type of its own": (f"namespace A {{ entity Tenant = {{ {T} }}; }}", "choose another"),
    "a namespace called as a platform type": (f"namespace Person {{ entity V = {{ {T} }}; }}", "choose another"),
    "a namespace of Cedar's": (f"namespace __cedar {{ entity V = {{ {T} }}; }}", "choose another"),
    "membership in a role": (f"namespace A {{ entity V in [Role] = {{ {T} }}; }}", "no entity type of the extension"),
    "an enumeration": ('namespace A { entity V enum ["a"]; }', "enumerated"),
    "tags": (f"namespace A {{ entity V = {{ {T} }} tags String; }}", "tags"),
    "an own type that asks": (
        f"namespace A {{ entity V = {{ {T} }}; action a appliesTo {{ principal: [V], resource: [V] }}; }}",
        "who asks",
    ),
    "an action on a platform type": (
        f"namespace A {{ entity V = {{ {T} }}; action a appliesTo {{ principal: Person, resource: [V, Dataset] }}; }}",
        "no entity type of the extension",
    ),
    "an action on nothing of its own": (
        f"namespace A {{ entity V = {{ {T} }}; action a appliesTo {{ principal: Person, resource: Elsewhere }}; }}",
        "own entity types",
    ),
    "a platform action's id": (
        f'namespace A {{ entity V = {{ {T} }}; action "model.hold" appliesTo {{ principal: Person, resource: V }}; }}',
        "platform has an action of that id",
    ),
    "a group that is not its own": (
        (
            f"namespace A {{ entity V = {{ {T} }};"
            ' action a in [Action::"model.read"] appliesTo { principal: Person, resource: V }; }'
        ),
        "member of own actions only",
    ),
    "another clock": (
        (
            f"namespace A {{ entity V = {{ {T} }};"
            " action a appliesTo { principal: Person, resource: V, context: { now_ms: String } }; }"
        ),
        "context.now_ms",
    ),
    "an unknown type": (f"namespace A {{ entity V = {{ {T}, x: Nowhere }}; }}", "'Nowhere' is no type"),
    "an attribute twice": (f"namespace A {{ entity V = {{ {T}, a: Long, a: Long }}; }}", "declared twice"),
    "a type twice": (f"namespace A {{ entity V, V = {{ {T} }}; }}", "declared twice"),
    "depth": (f"namespace A {{ entity V = {{ {T}, x: {'Set<' * 40}Long{'>' * 40} }}; }}", "deep"),
    "no schema": ("namespace A {{", "expected"),
    "nothing": ("// nothing\n", "at least one"),
    "an open end": ("namespace A { entity V = { tenant: Tenant", "the end of the file"),
    "a member of itself": (f"namespace A {{ type X = Y; type Y = X; entity V = {{ {T}, x: X }}; }}", "no Cedar schema"),
    "too many attributes": (
        f"namespace A {{ entity V = {{ {T}, {', '.join(f'a{i}: Long' for i in range(MAX_ATTRIBUTES))} }}; }}",
        "attributes",
    ),
    "too many types": (
        "namespace A { " + "".join(f"entity V{i} = {{ {T} }}; " for i in range(MAX_DECLARATIONS + 1)) + "}",
        "at most 200",
    ),
    "too much text": ("//" + "x" * MAX_CHARS, "characters"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_touch_the_platform_or_leave_the_bounds_is_refused(kind: str) -> None:
    text, why = REFUSED[kind]
    with pytest.raises(SchemaExtensionError) as refused:
        read_extension([("schema/a.cedarschema", text)])
    assert why in str(refused.value)


@pytest.mark.parametrize(
    "value",
    [
        "[",
        "[]",
        "{}",
        "1",
        "[" * 100_000,
        '{"A": {"entityTypes": []}}',
        '{"A": {"entityTypes": {"V": 3}}}',
        '{"A": {"entityTypes": {"V": {"shape": {"type": "Record", "attributes": {"tenant": {"type": 1}}}}}}}',
        '{"A": {"other": {}}}',
        '{"A": {"actions": {"a": {"appliesTo": {"principalTypes": "Person"}}}}}',
        '{"A": {"actions": {"a": {"memberOf": [3]}}}}',
        '{"": {"entityTypes": {"V": {"shape": {"type": "Record", "attributes": {}}}}}}',
        '{"A": {"entityTypes": {}, "entityTypes": {}}}',
    ],
)
def test_json_that_is_no_extension_is_refused_and_raises_nothing_else(value: str) -> None:
    with pytest.raises(SchemaExtensionError):
        read_extension([("a.json", value)])


def test_a_message_names_the_file_and_the_line() -> None:
    with pytest.raises(SchemaExtensionError, match=r"schema/a\.cedarschema:3: V: an entity type bears"):
        read_extension([("schema/a.cedarschema", "namespace A {\n\n  entity V = { x: Long };\n}")])
