"""Controls: which policies enforce which clause of which framework, and what shows it.

Rules kept:

- That a policy enforces a clause is said by the policy itself, in ``@control("FRAMEWORK:CLAUSE")``. A table beside the
  policies says only what the clause is about, what evidence shows it, and which of the platform's policies serve it too.
- A clause that a policy names and no table explains is a mistake, and refused; so is a table's word of a policy that
  does not exist.
- A mapping is an engineer's reading. It promises no compliance.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final

from licet_policies.bundle import guardrails
from licet_policies.errors import PackError
from licet_policies.packs import ControlText, pack, pack_names
from licet_policies.source import Policy, parse_policies

__all__ = ["Control", "controls"]

_PLATFORM: Final = "platform"


@dataclass(frozen=True)
class Control:
    """One clause of a framework.

    Attributes:
        framework: Such as ``HIPAA``.
        clause: Such as ``164.312(a)(1)``.
        title: What it is about, in our words.
        evidence: What a tenant can show for it.
        pack: The pack whose table speaks of it; ``platform`` for one that guardrails alone enforce.
        policies: Ids of the policies that name it, sorted.
        also: Ids of the platform's policies that serve it as well, sorted.
    """

    framework: str
    clause: str
    title: str
    evidence: str
    pack: str
    policies: tuple[str, ...]
    also: tuple[str, ...]


def controls(framework: str | None = None) -> tuple[Control, ...]:
    """Give every clause that shipped policies speak of, pack by pack, each in the order of its table.

    Args:
        framework: A framework or a pack, whatever the case of its letters; None for all.

    Raises:
        PackError: No policy speaks of such a framework, and no pack is called so.
    """
    found = _controls()
    if framework is None:
        return found
    wanted = framework.lower()
    chosen = tuple(control for control in found if wanted in (control.framework.lower(), control.pack))
    if not chosen:
        known = sorted({control.framework for control in found} | set(pack_names()))
        raise PackError(f"no framework or pack is called {framework!r:.60}; there are {', '.join(known)}")
    return chosen


@cache
def _controls() -> tuple[Control, ...]:
    packs = {name: pack(name) for name in pack_names()}
    policies = [
        *guardrails(),
        *(policy for name, each in packs.items() for policy in parse_policies(each.text, f"pack:{name}")),
    ]
    tables = {_PLATFORM: _platform_table(), **{name: each.controls for name, each in packs.items()}}
    known = {policy.id for policy in policies}
    found = [
        _control(name, reference, text, policies, known)
        for name, table in tables.items()
        for reference, text in table.items()
    ]
    explained = [f"{control.framework}:{control.clause}" for control in found]
    named = {policy.annotations["control"] for policy in policies if "control" in policy.annotations}
    twice = sorted({reference for reference in explained if explained.count(reference) > 1})
    if twice or (missing := named - set(explained)):
        told = f"in several: {', '.join(twice)}" if twice else f"in none: {', '.join(sorted(missing))}"
        raise PackError(f"each clause stands in one table; these stand {told}")
    return tuple(found)


def _control(name: str, reference: str, text: ControlText, policies: list[Policy], known: set[str]) -> Control:
    framework, _, clause = reference.partition(":")
    if unknown := set(text.also) - known:
        raise PackError(f"{name}: clause {reference} names policies that do not exist: {', '.join(sorted(unknown))}")
    naming = sorted(policy.id for policy in policies if policy.annotations.get("control") == reference)
    return Control(framework, clause, text.title, text.evidence, name, tuple(naming), tuple(sorted(text.also)))


def _platform_table() -> Mapping[str, ControlText]:
    text = resources.files("licet_policies").joinpath("guardrails", "controls.json").read_text("utf-8")
    return {clause: ControlText.from_json(body) for clause, body in json.loads(text)["controls"].items()}
