"""What something is proved of: single policies, policy sets, and the properties that relate them.

Rules kept:

- A single policy *holds* of a request where it is satisfied, whatever its effect; a policy set holds where it allows.
- A policy set decides as Cedar does, which skips a policy that errs, or as Licet does, to which any error means no. Either
  way it needs a permit that is satisfied, and no forbid that is.
- Of a bundle, the policies in force are those of mode ``enforce``; for a safety valve, the platform's alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Literal

import cedarpy

from licet_engine.workbench.symbolic.errors import SymbolicError
from licet_engine.workbench.symbolic.types import RequestEnvironment, Schema
from licet_policies.bundle import PLATFORM_SOURCES
from licet_policies.source import Policy

__all__ = [
    "PolicySet",
    "Property",
    "PropertyKind",
    "Semantics",
    "SinglePolicy",
    "Subject",
    "always_allows",
    "disjoint",
    "equivalent",
    "implies",
    "never_allows",
    "never_errors",
]

Semantics = Literal["cedar", "licet"]
PropertyKind = Literal["never-errors", "always-allows", "never-allows", "equivalent", "implies", "disjoint"]
_TWO_SIDED: Final = frozenset({"equivalent", "implies", "disjoint"})


@dataclass(frozen=True)
class SinglePolicy:
    """One policy, read.

    Attributes:
        id: Names it in results.
        text: In Cedar's syntax.
        effect: ``permit`` or ``forbid``.
        body: In Cedar's JSON form.
    """

    id: str
    text: str
    effect: str = field(compare=False)
    body: Mapping[str, Any] = field(compare=False, repr=False)

    @classmethod
    def parse(cls, text: str, policy_id: str | None = None) -> SinglePolicy:
        """Read one policy.

        Args:
            text: Exactly one policy that is no template.
            policy_id: Its name; left out, the value of its ``@id``.

        Raises:
            SymbolicError: It does not parse, is a template or not one, or has no id.
        """
        body = _parsed(text)
        name = policy_id or body.get("annotations", {}).get("id")
        if not name:
            raise SymbolicError(f"policy that begins {text[:60]!r}: has no @id; give it one")
        return cls(name, text, body["effect"], body)

    def may_apply(self, schema: Schema, environment: RequestEnvironment) -> bool:
        """Whether its scope does not exclude every request of this kind by the types alone."""
        groups = schema.actions[environment.action].ancestors | {environment.action}
        return (
            _action_may(self.body["action"], environment.action, groups)
            and _entity_may(self.body["principal"], environment.principal, schema)
            and _entity_may(self.body["resource"], environment.resource, schema)
        )


@dataclass(frozen=True)
class PolicySet:
    """Policies that decide together.

    Attributes:
        name: Names it in results.
        policies: Each under an id of its own.
        semantics: What a policy that errs does to the decision.
        valves: Actions that only the policies called ``platform`` decide.
        platform: Ids of these.
    """

    name: str
    policies: tuple[SinglePolicy, ...]
    semantics: Semantics = "licet"
    valves: frozenset[str] = frozenset()
    platform: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        ids = [policy.id for policy in self.policies]
        if len(set(ids)) < len(ids):
            twice = sorted({name for name in ids if ids.count(name) > 1})
            raise SymbolicError(f"{self.name}: the ids {', '.join(twice)} occur twice; give each policy its own")

    @classmethod
    def of(cls, name: str, policies: Iterable[Policy], semantics: Semantics = "licet") -> PolicySet:
        """The set of policies that were read already."""
        return cls(name, tuple(SinglePolicy.parse(policy.text, policy.id) for policy in policies), semantics)

    @classmethod
    def of_bundle(cls, name: str, bundle: Mapping[str, Any], semantics: Semantics = "licet") -> PolicySet:
        """What a bundle, as ``licet_policies.bundle.compose`` returned it, enforces.

        NOTE: who is deactivated, or of a suspended tenant, is decided by the platform's policies alone. That is not told
        apart here: in these states guardrails deny whatever is no safety valve, and a safety valve is theirs already.
        """
        entries = [entry for entry in bundle["policies"] if entry["mode"] == "enforce"]
        return cls(
            name,
            tuple(SinglePolicy.parse(entry["text"], entry["id"]) for entry in entries),
            semantics,
            frozenset(bundle["safety_valves"]),
            frozenset(entry["id"] for entry in entries if entry["source"] in PLATFORM_SOURCES),
        )

    def applicable(self, schema: Schema, environment: RequestEnvironment) -> tuple[SinglePolicy, ...]:
        """The policies that can have a say on requests of one kind."""
        valve = environment.action[1] in self.valves
        return tuple(
            policy
            for policy in self.policies
            if (not valve or policy.id in self.platform) and policy.may_apply(schema, environment)
        )


Subject = SinglePolicy | PolicySet


@dataclass(frozen=True)
class Property:
    """What is to be proved of every request that the schema allows.

    Attributes:
        kind: ``never-errors``: none of ``left`` errs. ``always-allows``, ``never-allows``: ``left`` holds of every request,
            or of none. ``equivalent``, ``implies``, ``disjoint``: as ``left`` and ``right`` hold.
        left: What it is proved of.
        right: What ``left`` is compared with, where two are.
        id: Names it in results.
        title: The same as a sentence.
    """

    kind: PropertyKind
    left: Subject
    right: Subject | None = None
    id: str = ""
    title: str = ""

    def __post_init__(self) -> None:
        if (self.right is not None) != (self.kind in _TWO_SIDED):
            raise SymbolicError(
                f"property {self.id or self.kind}: {self.kind} takes {'two' if self.right is None else 'one'}"
            )

    @property
    def name(self) -> str:
        """Its id, or what it says in short."""
        return self.id or f"{self.kind} {' '.join(_name_of(s) for s in (self.left, self.right) if s is not None)}"


def never_errors(subject: Subject, name: str = "", title: str = "") -> Property:
    """No policy of ``subject`` ever errs."""
    return Property("never-errors", subject, None, name, title)


def always_allows(subject: Subject, name: str = "", title: str = "") -> Property:
    """``subject`` holds of every request."""
    return Property("always-allows", subject, None, name, title)


def never_allows(subject: Subject, name: str = "", title: str = "") -> Property:
    """``subject`` holds of no request."""
    return Property("never-allows", subject, None, name, title)


def equivalent(left: Subject, right: Subject, name: str = "", title: str = "") -> Property:
    """``left`` holds where ``right`` does, and nowhere else."""
    return Property("equivalent", left, right, name, title)


def implies(left: Subject, right: Subject, name: str = "", title: str = "") -> Property:
    """Wherever ``left`` holds, ``right`` does: for sets, that ``left`` is at least as strict."""
    return Property("implies", left, right, name, title)


def disjoint(left: Subject, right: Subject, name: str = "", title: str = "") -> Property:
    """No request is one of which both hold."""
    return Property("disjoint", left, right, name, title)


def _name_of(subject: Subject) -> str:
    return subject.id if isinstance(subject, SinglePolicy) else subject.name


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Mapping[str, Any]:
    try:
        parsed: dict[str, Any] = json.loads(cedarpy.policies_to_json_str(text))
    except (ValueError, RecursionError) as error:
        raise SymbolicError(f"policy that begins {text[:60]!r}: does not parse: {error}") from error
    policies = list(parsed["staticPolicies"].values())
    if parsed.get("templates") or len(policies) != 1:
        raise SymbolicError(f"policy that begins {text[:60]!r}: is not exactly one policy without slots")
    found: dict[str, Any] = policies[0]
    return found


def _action_may(scope: Mapping[str, Any], action: tuple[str, str], groups: frozenset[tuple[str, str]]) -> bool:
    match scope["op"]:
        case "==":
            return _uid(scope["entity"]) == action
        case "in":
            return any(_uid(entity) in groups for entity in scope.get("entities", [scope.get("entity")]))
    return True


def _entity_may(scope: Mapping[str, Any], kind: str, schema: Schema) -> bool:
    match scope["op"]:
        case "==":
            return bool(scope["entity"]["type"] == kind)
        case "in":
            return scope["entity"]["type"] in {kind, *schema.ancestor_types(kind)}
        case "is":
            inside = scope.get("in")
            return bool(scope["entity_type"] == kind) and (
                inside is None or inside["entity"]["type"] in {kind, *schema.ancestor_types(kind)}
            )
    return True


def _uid(entity: Mapping[str, str]) -> tuple[str, str]:
    return entity["type"], entity["id"]
