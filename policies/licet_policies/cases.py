"""Cases: requests with the decision the shipped policies must give, beside the policies they speak of.

Rules kept: a case asserts the decision, exactly the determining policies, and that nothing erred, so a DENY cannot
pass for another reason than the one it names. It is evaluated plainly, all policies at once, independent of the engine
that decides in production.

A file under ``cases/`` holds ``{"packs": {name: {"mode", "parameters"}}, "cases": [...]}``; a case holds ``name`` (a
sentence), ``principal``, ``action``, ``resource`` (as ``Type::id``), ``expect`` (``allow`` or ``deny``), ``because``
(ids) and may hold ``context`` (over the action's defaults), ``set`` (changes to the facts: entity, dotted attribute,
value; ``null`` removes), ``packs`` (instead of the file's), ``own`` (Cedar text) and ``observed`` (ids). A text
``@Type::id`` stands for that entity. ``fixtures.json`` holds the facts and defaults that all cases share.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from typing import Any, Final

import cedarpy

from licet_policies.bundle import compose, policies_for
from licet_policies.packs import Mode, PackChoice

__all__ = ["Case", "Outcome", "Request", "bundle_of", "evaluate", "load_cases", "request_of"]

_FIXTURES: Final = "fixtures.json"


@dataclass(frozen=True)
class Request:
    """A request with its facts, in Cedar's JSON.

    Attributes:
        principal: ``{"type", "id"}``.
        action: Id of the action.
        resource: ``{"type", "id"}``.
        context: As the action's type in the schema demands.
        entities: The facts.
    """

    principal: Mapping[str, str]
    action: str
    resource: Mapping[str, str]
    context: Mapping[str, Any]
    entities: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Outcome:
    """What a bundle says to a request.

    Attributes:
        decision: ``allow`` or ``deny``.
        because: Ids of the determining policies, sorted.
        observed: Ids of observed policies that would have forbidden it, sorted.
        errors: What went wrong; anything here makes the decision ``deny``.
    """

    decision: str
    because: tuple[str, ...]
    observed: tuple[str, ...]
    errors: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """One case as read: see the module for its parts."""

    file: str
    body: Mapping[str, Any]
    packs: Mapping[str, Mapping[str, Any]]

    @property
    def name(self) -> str:
        """The sentence that the case asserts."""
        return str(self.body["name"])

    @property
    def expected(self) -> Outcome:
        """The outcome that the case asserts."""
        because, observed = sorted(self.body["because"]), sorted(self.body.get("observed", []))
        return Outcome(self.body["expect"], tuple(because), tuple(observed), ())


@cache
def load_cases() -> tuple[Case, ...]:
    """Read every case that comes with the policies, by file name and then in the file's order."""
    folder = resources.files("licet_policies").joinpath("cases")
    names = sorted(file.name for file in folder.iterdir() if file.name.endswith(".json") and file.name != _FIXTURES)
    return tuple(
        Case(name, body, body.get("packs", content.get("packs", {})))
        for name in names
        for content in [json.loads(folder.joinpath(name).read_text("utf-8"))]
        for body in content["cases"]
    )


def bundle_of(case: Case) -> dict[str, Any]:
    """Compose the bundle in which ``case`` is evaluated."""
    choices = [
        PackChoice(name, choice.get("mode", "enforce"), choice.get("parameters", {}))
        for name, choice in case.packs.items()
    ]
    return compose(choices, case.body.get("own", ""))


def request_of(case: Case) -> Request:
    """Build the request and facts of ``case`` from the fixtures and its changes."""
    fixtures = _fixtures()
    facts = copy.deepcopy(fixtures["entities"])
    for name, changes in case.body.get("set", {}).items():
        for path, value in changes.items():
            _set(facts[name], path.split("."), value)
    action = case.body["action"]
    context = {**fixtures["context"], **fixtures["contexts"].get(action, {}), **case.body.get("context", {})}
    return Request(
        principal=_uid(case.body["principal"]),
        action=action,
        resource=_uid(case.body["resource"]),
        context=_expand({name: value for name, value in context.items() if value is not None}),
        entities=tuple(_entity(name, fact) for name, fact in facts.items()),
    )


def evaluate(bundle: Mapping[str, Any], request: Request) -> Outcome:
    """Evaluate ``request`` under ``bundle``, all policies at once.

    A policy that errs means no, as everywhere in Licet; Cedar itself would skip it.
    """
    decision, because, errors = _evaluate(bundle, request, "enforce")
    observed_decision, observed, observed_errors = _evaluate(bundle, request, "observe")
    # An observed set without permits denies by default, for no reason; only a forbid gives one.
    would_forbid = observed if observed_decision == "deny" else ()
    return Outcome("deny" if errors else decision, because, would_forbid, (*errors, *observed_errors))


def _evaluate(bundle: Mapping[str, Any], request: Request, mode: Mode) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    policies = tuple((policy["id"], policy["text"]) for policy in policies_for(bundle, request.action, mode))
    query = {
        "principal": dict(request.principal),
        "action": {"type": "Action", "id": request.action},
        "resource": dict(request.resource),
        "context": dict(request.context),
    }
    result = cedarpy.is_authorized(
        query,
        _policy_set(policies),
        [dict(entity) for entity in request.entities],
        _schema(json.dumps(bundle["schema"])),
    )
    errors = tuple(str(error) for error in result.diagnostics.errors)
    return ("allow" if result.allowed else "deny"), tuple(sorted(result.diagnostics.reasons)), errors


@lru_cache(maxsize=64)
def _policy_set(policies: tuple[tuple[str, str], ...]) -> cedarpy.PolicySet:
    # Through JSON each policy keeps its own id; text would be numbered.
    parsed = {policy_id: _parsed(text) for policy_id, text in policies}
    return cedarpy.PolicySet.from_json_str(json.dumps({"staticPolicies": parsed, "templates": {}, "templateLinks": []}))


@cache
def _parsed(text: str) -> Any:
    (parsed,) = json.loads(cedarpy.policies_to_json_str(text))["staticPolicies"].values()
    return parsed


@cache
def _schema(text: str) -> cedarpy.Schema:
    return cedarpy.Schema.from_json_str(text)


@cache
def _fixtures() -> dict[str, Any]:
    text = resources.files("licet_policies").joinpath("cases", _FIXTURES).read_text("utf-8")
    fixtures: dict[str, Any] = json.loads(text)
    return fixtures


def _set(fact: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        fact = fact[name]
    # A case that changes what is not there would change nothing that its name speaks of.
    if path[-1] not in fact:
        raise KeyError(f"the fixtures have no attribute {'.'.join(path)}")
    if value is None:
        del fact[path[-1]]
    else:
        fact[path[-1]] = value


def _uid(name: str) -> dict[str, str]:
    kind, _, identifier = name.partition("::")
    return {"type": kind, "id": identifier}


def _expand(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _expand(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_expand(item) for item in value]
    if isinstance(value, str) and value.startswith("@"):
        return {"__entity": _uid(value[1:])}
    return value


def _entity(name: str, fact: Mapping[str, Any]) -> dict[str, Any]:
    attributes = {key: _expand(value) for key, value in fact.items() if key != "roles"}
    return {
        "uid": _uid(name),
        "attrs": attributes,
        "parents": [_uid(f"Role::{role}") for role in fact.get("roles", [])],
    }
