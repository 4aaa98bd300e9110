"""Types and kinds of request, read from a schema."""

from __future__ import annotations

from typing import Any

import pytest

from licet_engine.workbench.symbolic.errors import SchemaError
from licet_engine.workbench.symbolic.types import BOOL, LONG, STRING, EntityType, ExtensionType, Schema, SetType

SHAPE = {
    "plain": {"type": "Long"},
    "maybe": {"type": "Boolean", "required": False},
    "owner": {"type": "Entity", "name": "User"},
    "named": {"type": "Name"},
    "either": {"type": "EntityOrCommon", "name": "User"},
    "many": {"type": "Set", "element": {"type": "EntityOrCommon", "name": "ipaddr"}},
    "price": {"type": "Extension", "name": "decimal"},
    "outer": {"type": "EntityOrCommon", "name": "Root"},
}


def schema(**changes: Any) -> dict[str, Any]:
    space = {
        "commonTypes": {"Name": {"type": "String"}},
        "entityTypes": {
            "User": {"memberOfTypes": ["Team"]},
            "Team": {"memberOfTypes": ["Unit"]},
            "Unit": {},
            "Colour": {"enum": ["red", "blue"]},
            "Thing": {"shape": {"type": "Record", "attributes": SHAPE}, "tags": {"type": "Name"}},
        },
        "actions": {
            "see": {
                "appliesTo": {"principalTypes": ["User", "Team"], "resourceTypes": ["Thing"]},
                "memberOf": [{"id": "any"}],
            },
            "any": {"memberOf": [{"id": "all"}]},
            "all": {},
        },
    }
    return {"": {"entityTypes": {"Root": {}}, "actions": {}}, "Acme": space | changes}


def test_names_are_resolved_within_their_namespace_first() -> None:
    thing = Schema.parse(schema()).entities["Acme::Thing"]
    found = dict(thing.attributes.attributes)
    assert found["plain"].type == LONG
    assert (found["maybe"].type, found["maybe"].required) == (BOOL, False)
    assert found["owner"].type == found["either"].type == EntityType("Acme::User")
    assert found["named"].type == thing.tags == STRING
    assert found["many"].type == SetType(ExtensionType("ipaddr"))
    assert found["price"].type == ExtensionType("decimal")
    assert found["outer"].type == EntityType("Root")


def test_ancestors_and_groups_are_closed() -> None:
    read = Schema.parse(schema())
    assert read.ancestor_types("Acme::User") == {"Acme::Team", "Acme::Unit"}
    assert read.actions["Acme::Action", "see"].ancestors == {("Acme::Action", "any"), ("Acme::Action", "all")}
    assert read.entities["Acme::Colour"].members == ("red", "blue")


def test_there_is_a_kind_of_request_for_each_principal_and_resource_of_an_action() -> None:
    kinds = [(one.principal, one.action[1], one.resource) for one in Schema.parse(schema()).environments()]
    assert kinds == [("Acme::User", "see", "Acme::Thing"), ("Acme::Team", "see", "Acme::Thing")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"entityTypes": {"A": {"memberOfTypes": ["Nobody"]}}, "actions": {}}, "'Nobody' is not declared"),
        ({"entityTypes": {"A": {"colour": 1}}, "actions": {}}, "colour is not known here"),
        (
            {"commonTypes": {"L": {"type": "L"}}, "entityTypes": {"A": {"tags": {"type": "L"}}}, "actions": {}},
            "nest more",
        ),
        ({"entityTypes": {"A": {"shape": {"type": "Long"}}}, "actions": {}}, "not a record"),
        (
            {
                "entityTypes": {"A": {"shape": {"type": "Record", "attributes": {}, "additionalAttributes": True}}},
                "actions": {},
            },
            "not supported",
        ),
        ({"actions": {"a": {"memberOf": [{"id": "b"}]}}}, "which is not declared"),
    ],
)
def test_what_is_not_known_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        Schema.parse(schema(**changes))
