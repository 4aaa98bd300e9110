"""``coverage``: which policies and which parts of their conditions the tests reach, with both outcomes.

Rules kept here:

- A policy is covered if it applied in some case: its scope was met and its conditions held.
- A part of a condition is covered for an outcome if Cedar asked it, in its order, and got that outcome. A part behind the one at
  which Cedar stopped was not asked, and counts for nothing.
- What counts is the share of all of these: a policy once, a part twice, for true and for false. It is rounded down, so that a
  hundred percent is all of it.
- Nothing to cover is no hundred percent: a project without policies of its own is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from licet_engine.decide import reports
from licet_engine.decide.conjuncts import clauses
from licet_engine.decide.source import expression_text
from licet_engine.workbench.errors import ProjectError
from licet_engine.workbench.findings import Finding
from licet_engine.workbench.formats import Check, RuleText

if TYPE_CHECKING:
    from licet_engine.decide import CompiledBundle, Policy
    from licet_engine.workbench.project import Project
    from licet_engine.workbench.spans import PolicyText, Span
    from licet_engine.workbench.testing import Asking, Result

Wanted = Literal["applies", "true", "false"]

RULES = (
    RuleText("policy-not-covered", "warning", "Some test lets the policy apply"),
    RuleText("outcome-not-covered", "warning", "Some test asks the part with that outcome"),
)


@dataclass(frozen=True, slots=True)
class Gap:
    """Something that no case reaches: what ``coverage --suggest`` would be asked to reach.

    Attributes:
        policy: Id of the policy.
        wanted: ``applies`` for the policy as a whole; ``true`` or ``false`` for a part.
        clause: Number of the clause, from 0; None for the policy as a whole.
        part: Number of the part in it, from 0; None for the policy as a whole.
        source: The part, in Cedar; empty for the policy as a whole.
        span: Where it stands.
    """

    policy: str
    wanted: Wanted
    clause: int | None
    part: int | None
    source: str
    span: Span

    @property
    def message(self) -> str:
        """What is missing."""
        if self.wanted == "applies":
            return f"no test lets {self.policy} apply"
        return f"no test finds `{self.source}` {self.wanted}"

    def to_json(self) -> dict[str, Any]:
        """For an answer."""
        return {
            "policy": self.policy,
            "wanted": self.wanted,
            "clause": self.clause,
            "part": self.part,
            "source": self.source,
            **self.span.to_json(),
        }


@dataclass(slots=True)
class _Reached:
    """What was reached of one policy."""

    applied: bool = False
    outcomes: dict[tuple[int, int], set[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of a project's policies its tests reach.

    Attributes:
        policies: How many applied, and of how many.
        parts: How many parts were asked at all, and of how many.
        outcomes: How many outcomes of parts were seen, and of how many.
        gaps: What was not reached, by file and line.
    """

    policies: tuple[int, int]
    parts: tuple[int, int]
    outcomes: tuple[int, int]
    gaps: tuple[Gap, ...]

    @property
    def percent(self) -> int:
        """The share of policies and outcomes that are covered, rounded down."""
        reached, all_of_them = (a + b for a, b in zip(self.policies, self.outcomes, strict=True))
        return 100 * reached // all_of_them

    def to_json(self) -> dict[str, Any]:
        """For an answer."""
        counts = {"policies": self.policies, "conjuncts": self.parts, "outcomes": self.outcomes}
        return {
            "percent": self.percent,
            **{name: {"covered": covered, "all": of} for name, (covered, of) in counts.items()},
            "not_covered": [gap.to_json() for gap in self.gaps],
        }


def coverage(project: Project, compiled: CompiledBundle, results: Iterable[Result]) -> Coverage:
    """Measure what cases reach of a project's own policies.

    Args:
        project: The project.
        compiled: Its bundle.
        results: What came of its cases.

    Raises:
        ProjectError: It has no policies of its own.
    """
    written = {text.id: text for text in project.policy_texts() if text.id is not None}
    own = [policy for policy in compiled.policies if policy.source == "tenant"]
    if not own:
        raise ProjectError("holds no policy of its own, so there is nothing to cover", file="policies")
    reached = {policy.id: _Reached() for policy in own}
    for result in results:
        if result.asking is not None:
            _reach(compiled, result.asking, reached)
    gaps = [gap for policy in own for gap in _gaps(policy, written[policy.id], reached[policy.id])]
    parts = [(policy.id, i, j) for policy in own for i, j, _ in _parts(policy)]
    seen = [reached[name].outcomes.get((i, j), set()) for name, i, j in parts]
    return Coverage(
        policies=(sum(one.applied for one in reached.values()), len(own)),
        parts=(sum(bool(outcomes) for outcomes in seen), len(parts)),
        outcomes=(sum(len(outcomes) for outcomes in seen), 2 * len(parts)),
        gaps=tuple(sorted(gaps, key=lambda gap: (gap.span, gap.wanted))),
    )


def _reach(compiled: CompiledBundle, asking: Asking, reached: Mapping[str, _Reached]) -> None:
    request, facts = asking.request, asking.facts
    if facts.problem is not None or {"request", "facts", "engine"}.intersection(asking.decision.errors):
        return
    principal, resource = request.principal.key, request.resource.key
    # The slice holds whatever policies have a scope that the request meets: of the others nothing is asked.
    met = compiled.slice_for(
        principal,
        request.action_key,
        resource,
        facts.ancestors(principal),
        facts.ancestors(resource),
        platform_alone=compiled.is_platform_alone(principal, facts),
    )
    own = [policy for policy in met.policies if policy.id in reached]
    if not own:
        return
    for report in reports(compiled, request, facts, own):
        one = reached[report.id]
        one.applied = one.applied or report.outcome == "true"
        for i, clause in enumerate(report.clauses):
            for j, part in enumerate(clause.parts):
                if part.outcome in ("true", "false"):
                    one.outcomes.setdefault((i, j), set()).add(part.outcome)


def _parts(policy: Policy) -> Iterable[tuple[int, int, str]]:
    for i, clause in enumerate(clauses(policy.ast)):
        for j, part in enumerate(clause.parts):
            yield i, j, expression_text(part)


def _gaps(policy: Policy, text: PolicyText, reached: _Reached) -> Iterable[Gap]:
    if not reached.applied:
        yield Gap(policy.id, "applies", None, None, "", text.span())
    for i, j, source in _parts(policy):
        span = text.span(text.clauses[i].parts[j])
        wanted: tuple[Wanted, ...] = ("true", "false")
        for outcome in wanted:
            if outcome not in reached.outcomes.get((i, j), set()):
                yield Gap(policy.id, outcome, i, j, source, span)


def findings(measured: Coverage) -> list[Finding]:
    """What is not covered, as findings."""
    return [
        Finding(
            "policy-not-covered" if gap.wanted == "applies" else "outcome-not-covered",
            "warning",
            gap.message,
            gap.span,
            gap.policy,
        )
        for gap in measured.gaps
    ]


def checks(measured: Coverage, policies: Sequence[str]) -> list[Check]:
    """What is covered, as JUnit has it: a case for each policy.

    Args:
        measured: The coverage.
        policies: The ids of the own policies.
    """
    found: list[Check] = []
    for name in policies:
        gaps = [gap for gap in measured.gaps if gap.policy == name]
        detail = "\n".join(f"{gap.span}: {gap.message}" for gap in gaps)
        outcome: Literal["passed", "failed"] = "failed" if gaps else "passed"
        found.append(Check("licet.policy.coverage", name, outcome, f"{len(gaps)} not covered" if gaps else "", detail))
    return found
