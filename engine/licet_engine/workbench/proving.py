"""What is proved of a project: that its bundle keeps every invariant, whatever request is made.

Rules kept here:

- What could not be told is a finding like what was refuted: never a pass.
- A refutation is shown with the request that Cedar confirmed, whole, so that it can be asked again.
- A property that speaks of no request at all proves nothing: it is a finding, too, where it is the project's own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from licet_engine.decide.conjuncts import Path, clauses, paths, value_text
from licet_engine.decide.entities import EntityUid
from licet_engine.workbench.errors import WorkbenchError
from licet_engine.workbench.findings import Finding
from licet_engine.workbench.formats import Check, RuleText
from licet_engine.workbench.spans import Span
from licet_engine.workbench.symbolic import (
    Progress,
    Proved,
    Prover,
    Refuted,
    SinglePolicy,
    bundle_properties,
    read_invariants,
)
from licet_engine.workbench.trees import entities_named

if TYPE_CHECKING:
    from licet_engine.workbench.project import Project
    from licet_engine.workbench.symbolic import Counterexample, Invariant, Outcome
    from licet_engine.workbench.symbolic.subjects import Property

RULES: Final = (
    RuleText("refuted", "error", "What must hold of every request holds"),
    RuleText("unknown", "error", "What must hold can be told"),
    RuleText("vacuous", "warning", "An invariant speaks of some request"),
)
LONGEST_S: Final = 300.0
"""For all that is proved of one bundle."""


class ProofTooLong(WorkbenchError):
    """The proof was given up: it takes longer than it may."""

    default_code = "proof-too-long"


@dataclass(frozen=True, slots=True)
class ProofResult:
    """One property, and what came of it.

    Attributes:
        id: Of the property: of an invariant, or ``bundle.errors``, ``bundle.narrows``, ``bundle.invariants``.
        title: What it demands.
        outcome: Proved, refuted or unknown.
        is_own: Whether it is an invariant of the project itself.
        about: The property itself.
    """

    id: str
    title: str
    outcome: Outcome
    is_own: bool
    about: Property

    @property
    def rule(self) -> str | None:
        """By which rule it is a finding; None if it is none."""
        if isinstance(self.outcome, Refuted):
            return "refuted"
        if not isinstance(self.outcome, Proved):
            return "unknown"
        return "vacuous" if self.outcome.vacuous and self.is_own else None

    @property
    def word(self) -> str:
        """``proved``, ``refuted`` or ``unknown``."""
        return type(self.outcome).__name__.lower()

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        told: dict[str, Any] = {"id": self.id, "title": self.title, "outcome": self.word}
        match self.outcome:
            case Proved(environments, vacuous):
                return told | {"requests_of_kinds": environments, "vacuous": vacuous}
            case Refuted(environment, counterexample):
                return told | {"kind": str(environment), "request": counterexample_json(counterexample)}
        return told | {"reason": self.outcome.reason}


def counterexample_json(found: Counterexample) -> dict[str, Any]:
    """A request with its entities, and what Cedar says of both sides."""
    told = found.to_json()
    for name, side in (("left", found.left), ("right", found.right)):
        if side is not None:
            told[name] = {"holds": side.holds, "reasons": list(side.reasons), "errors": list(side.errors)}
    return told


def prove_bundle(
    bundle: Mapping[str, Any],
    own: Sequence[Invariant] = (),
    *,
    time_limit_s: float = 10.0,
    longest_s: float = LONGEST_S,
    progress: Callable[[Progress], None] | None = None,
) -> list[ProofResult]:
    """Prove everything that must hold of a bundle.

    Args:
        bundle: As ``licet_policies.compose`` returned it.
        own: Invariants beside the platform's and the packs'.
        time_limit_s: For one question to the solver.
        longest_s: For all of it.
        progress: Told after each kind of request.

    Raises:
        ProofTooLong: It takes longer than ``longest_s``.
        SymbolicError: An invariant or the schema cannot be read.
    """
    properties = bundle_properties(bundle, own)
    mine = {invariant.policy.id for invariant in own}
    until_s = time.monotonic() + longest_s

    def told(reached: Progress) -> None:
        if time.monotonic() > until_s:
            raise ProofTooLong(
                f"after {longest_s:.0f} s, {reached.done} of {reached.total} kinds of request are done: split long"
                " conditions, or give more time"
            )
        if progress is not None:
            progress(reached)

    outcomes = Prover(bundle["schema"], time_limit_s=time_limit_s).prove(properties, told)
    return [
        ProofResult(one.id, one.title, outcome, one.id in mine, one)
        for one, outcome in zip(properties, outcomes, strict=True)
    ]


def prove_project(
    project: Project,
    *,
    time_limit_s: float = 10.0,
    longest_s: float = LONGEST_S,
    progress: Callable[[Progress], None] | None = None,
) -> list[ProofResult]:
    """``prove_bundle`` of what a project would publish, with its own invariants."""
    own = [invariant for file in project.invariants for invariant in read_invariants(file.text, file.name)]
    return prove_bundle(project.bundle(), own, time_limit_s=time_limit_s, longest_s=longest_s, progress=progress)


def message(result: ProofResult) -> str:
    """Why a result is a finding, in a sentence."""
    match result.outcome:
        case Refuted(environment, _):
            return f"{result.title}: refuted for {environment}"
        case Proved():
            return f"{result.title}: no request is one that it speaks of, so it says nothing"
    return f"{result.title}: cannot be told: {result.outcome.reason}"


def detail(result: ProofResult) -> str:
    """The request that refutes it, as JSON; empty if none does."""
    if not isinstance(result.outcome, Refuted):
        return ""
    return json.dumps(counterexample_json(result.outcome.counterexample), indent=2, sort_keys=True)


def shown(result: ProofResult) -> list[tuple[str, str]]:
    """The request that refutes it as lines of a label and a text: who, what, on what, and what the policies that decided read of it.

    Of the entities, only what those policies look at is told; ``detail`` has them all.
    """
    if not isinstance(result.outcome, Refuted):
        return []
    found = result.outcome.counterexample
    deciding = _deciding(result.about, found)
    literals = entities_named([policy.body for policy in deciding])
    roots = {"principal": found.principal, "action": found.action, "resource": found.resource}
    entities = {(one["uid"]["type"], one["uid"]["id"]): one for one in found.entities}
    lines = []
    for slot, uid in roots.items():
        entity = entities.get((uid["type"], uid["id"]), {})
        inside = sorted(
            _name(parent) for parent in entity.get("parents", ()) if (parent["type"], parent["id"]) in literals
        )
        lines.append((slot, _name(uid) + (f", in {', '.join(inside)}" if inside else "")))
    read = {
        path for policy in deciding for clause in clauses(policy.body) for part in clause.parts for path in paths(part)
    }
    lines += [
        ("reads", _read(path, roots, found.context, entities)) for path in sorted(read, key=str) if path.attributes
    ]
    for side in (found.left, found.right):
        for policy_id in () if side is None else side.reasons:
            lines += [("because", policy_id)] if policy_id != result.id else []
        lines += [("errs", error) for error in (() if side is None else side.errors)]
    return list(dict.fromkeys(lines))


def _deciding(about: Property, found: Counterexample) -> list[SinglePolicy]:
    """The policies that determined what came of either side, erring ones among them, and an invariant itself."""
    deciding: dict[str, SinglePolicy] = {}
    for subject, said in ((about.left, found.left), (about.right, found.right)):
        if isinstance(subject, SinglePolicy):
            deciding[subject.id] = subject
        elif subject is not None and said is not None:
            for policy in subject.policies:
                if policy.id in said.reasons or any(f"`{policy.id}`" in error for error in said.errors):
                    deciding[policy.id] = policy
    return list(deciding.values())


def _name(uid: Mapping[str, str]) -> str:
    return str(EntityUid(uid["type"], uid["id"]))


def _read(
    path: Path, roots: Mapping[str, Mapping[str, str]], context: Mapping[str, Any], entities: Mapping[Any, Any]
) -> str:
    """What stands at a path of the request."""
    value: Any = context if path.root == "context" else {"__entity": roots[path.root]}
    for attribute in path.attributes:
        if isinstance(value, Mapping) and "__entity" in value:
            uid = value["__entity"]
            value = entities.get((uid["type"], uid["id"]), {}).get("attrs", {})
        if not isinstance(value, Mapping) or attribute not in value:
            return f"{path} is absent"
        value = value[attribute]
    return f"{path} = {value_text(value)}"


def findings(project: Project, results: Sequence[ProofResult]) -> list[Finding]:
    """What is not proved, where it stands: at the invariant, or at the policy that errs, else at the top of ``licet.toml``."""
    places = {
        written.id: written.span()
        for written in (*project.invariant_texts(), *project.policy_texts())
        if written.id is not None
    }
    top = Span(project.config_file.name, 1, 1, 1, 1)
    found = []
    for result in results:
        if result.rule is None:
            continue
        named = [result.id]
        if isinstance(result.outcome, Refuted) and result.outcome.counterexample.left is not None:
            left = result.outcome.counterexample.left
            named += [name for name in places if any(name in error for error in left.errors)] + list(left.reasons)
        span = next((places[name] for name in named if name in places), top)
        severity = next(rule.severity for rule in RULES if rule.id == result.rule)
        found.append(Finding(result.rule, severity, message(result), span, result.id))
    return found


def checks(results: Sequence[ProofResult]) -> list[Check]:
    """What was proved, as JUnit has it."""
    return [
        Check(
            "invariants",
            f"{result.id}: {result.title}",
            "passed" if result.rule is None else "broken" if result.rule == "unknown" else "failed",
            "" if result.rule is None else message(result),
            detail(result),
        )
        for result in results
    ]
