"""Invariants to properties: what must hold of a bundle, before anybody relies on it.

Rules kept:

- An invariant is a ``permit`` with ``@id`` and either ``@never`` or ``@always``, with a sentence there or in its ``@title``. Its scope and
  conditions name requests: of these, the bundle must allow none, or all.
- An invariant that could err on a request would be silent about it; that none can is a property of its own.
- Two things hold of every bundle without being written as a policy: that no policy in force errs, and that it allows nothing
  that a guardrail forbids.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from licet_engine.workbench.symbolic.errors import InvariantError
from licet_engine.workbench.symbolic.subjects import (
    PolicySet,
    Property,
    SinglePolicy,
    disjoint,
    implies,
    never_errors,
)
from licet_policies.invariants import bundle_invariants
from licet_policies.source import Policy, parse_policies

__all__ = ["Invariant", "bundle_properties", "read_invariants"]

_ANYTHING = '@id("workbench.anything") permit (principal, action, resource);'


@dataclass(frozen=True)
class Invariant:
    """One invariant.

    Attributes:
        kind: ``never``: no such request is allowed; ``always``: every one is.
        title: The sentence of its annotation.
        policy: Names the requests.
    """

    kind: Literal["never", "always"]
    title: str
    policy: SinglePolicy

    def property(self, bundle: PolicySet) -> Property:
        """What is to be proved of ``bundle``."""
        state = disjoint if self.kind == "never" else implies
        return state(self.policy, bundle, self.policy.id, f"{self.kind.capitalize()}: {self.title}")


def read_invariants(source: str | Iterable[Policy], where: str = "invariants") -> tuple[Invariant, ...]:
    """Read invariants from the text of a file, or from policies that were read already.

    Raises:
        InvariantError: One that is no ``permit``, or bears not exactly one of ``@never`` and ``@always`` with a sentence.
        PolicySourceError: The text is not policies with ids.
    """
    policies = parse_policies(source, where) if isinstance(source, str) else tuple(source)
    found = tuple(map(_read, policies))
    ids = [invariant.policy.id for invariant in found]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise InvariantError(f"{where}: the ids {', '.join(twice)} occur twice; give each invariant its own")
    return found


def _read(policy: Policy) -> Invariant:
    if policy.effect != "permit":
        raise InvariantError(f"invariant {policy.id}: is a forbid; write a permit that names the requests it speaks of")
    title = policy.annotations.get("title", "").strip()
    sentences = {kind: policy.annotations.get(kind, "").strip() or title for kind in ("never", "always")}
    bears = [kind for kind in sentences if kind in policy.annotations]
    match bears:
        case [("never" | "always") as kind] if sentences[kind]:
            return Invariant(kind, sentences[kind], SinglePolicy.parse(policy.text, policy.id))
    raise InvariantError(
        f'invariant {policy.id}: needs either @never("...") or @always("..."), with a sentence there or in its @title'
    )


def bundle_properties(bundle: Mapping[str, Any], own: Iterable[Invariant] = ()) -> tuple[Property, ...]:
    """Everything that must be proved of a bundle before it is published.

    Args:
        bundle: As ``licet_policies.bundle.compose`` returned it.
        own: A project's own invariants.

    Returns:
        That no policy errs, that guardrails are only narrowed, that no invariant errs; then the platform's invariants,
        those of the packs enforced, and ``own``.

    Raises:
        InvariantError: Two invariants with one id.
    """
    whole = PolicySet.of_bundle("bundle", bundle)
    invariants = (*read_invariants(bundle_invariants(bundle)), *own)
    patterns = PolicySet("invariants", tuple(invariant.policy for invariant in invariants))
    properties = (
        never_errors(whole, "bundle.errors", "No policy in force errs on any request"),
        narrows(bundle, whole),
        never_errors(patterns, "bundle.invariants", "No invariant errs on any request"),
        *(invariant.property(whole) for invariant in invariants),
    )
    # Verdicts are told by name: one that stands for two would be told of one of them alone.
    names = [one.name for one in properties]
    taken = sorted({name for name in names if names.count(name) > 1})
    if taken:
        raise InvariantError(f"invariant {taken[0]}: the name is another property's: choose one of your own")
    return properties


def narrows(bundle: Mapping[str, Any], whole: PolicySet) -> Property:
    """That whatever a guardrail forbids stays forbidden, whichever policies a bundle adds to the guardrails."""
    guardrails = tuple(
        SinglePolicy.parse(entry["text"], entry["id"])
        for entry in bundle["policies"]
        if entry["source"] == "guardrail" and entry["mode"] == "enforce"
    )
    widest = PolicySet("guardrails", (*guardrails, SinglePolicy.parse(_ANYTHING)))
    return implies(whole, widest, "bundle.narrows", "Nothing is allowed that a guardrail forbids")
