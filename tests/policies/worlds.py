"""Well-typed worlds of facts, drawn from the schema, and what they are asked in."""

import string
from typing import Any

from hypothesis import strategies as st

from licet_policies import load_schema

SCHEMA = load_schema()[""]
ACTIONS = sorted(SCHEMA["actions"])
ROLES = [
    "administrator",
    "auditor",
    "compliance",
    "data-scientist",
    "model-risk",
    "operator",
    "pipeline",
    "security-engineer",
]
OPEN = '@id("team.everything")\npermit (principal, action, resource);'


class World:
    """Well-typed facts, drawn attribute by attribute from the schema."""

    def __init__(self, draw: Any) -> None:
        self._draw = draw
        self.entities: dict[tuple[str, str], dict[str, Any]] = {}

    def add(self, kind: str, name: str, roles: list[str] | None = None, **fixed: Any) -> dict[str, str]:
        uid = {"type": kind, "id": name}
        if (kind, name) not in self.entities:
            shape = SCHEMA["entityTypes"][kind].get("shape", {"attributes": {}})
            # Set before the attributes are drawn, for an entity may name itself.
            self.entities[kind, name] = {
                "uid": uid,
                "attrs": {},
                "parents": [{"type": "Role", "id": r} for r in roles or []],
            }
            attrs = self.record({key: body for key, body in shape["attributes"].items() if key not in fixed})
            self.entities[kind, name]["attrs"] = {**attrs, **fixed}
        return uid

    def record(self, attributes: dict[str, Any]) -> dict[str, Any]:
        return {
            key: self.value(body)
            for key, body in attributes.items()
            if body.get("required", True) or self._draw(st.booleans())
        }

    def value(self, body: dict[str, Any]) -> Any:  # noqa: PLR0911 -- one return for each type Cedar has.
        kind = body["type"]
        if kind == "String":
            words = ["us", "eu", "prod", "staging", "high", "low", "model-risk", "compliance", "credit-scoring", "none"]
            return self._draw(st.sampled_from(words) | st.text(string.printable, max_size=3))
        if kind == "Long":
            return self._draw(st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 2))
        if kind == "Boolean":
            return self._draw(st.booleans())
        if kind == "Set":
            return [self.value(body["element"]) for _ in range(self._draw(st.integers(0, 2)))]
        if kind == "Record":
            return self.record(body["attributes"])
        if kind == "Entity":
            name = self._draw(st.sampled_from(["northbank", "lakeside"]))
            return {"__entity": self.add(body["name"], name)}
        return self.value(SCHEMA["commonTypes"][kind])
