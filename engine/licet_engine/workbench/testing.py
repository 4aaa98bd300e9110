"""``test``: every case decided by the bundle that would be in force, and what is otherwise explained.

Rules kept here:

- A case is decided by ``decide`` on the compiled bundle: guardrails, roles, packs and own policies together, errors meaning no.
- A case that cannot be decided as it is written, because its facts or its request fit no schema or it names what is not there, is
  broken: it neither passes nor fails, and it counts against the project.
- Why a case came out otherwise is told by the policies that decided and by those that were expected to, each part with its values.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from licet_engine.decide import (
    CompiledBundle,
    Decision,
    EntityUid,
    Fact,
    FactError,
    FactSet,
    Request,
    decide,
    explain,
    reports,
)
from licet_engine.decide.bundle import RESERVED_IDS
from licet_engine.workbench.findings import Finding
from licet_engine.workbench.formats import Check, RuleText
from licet_engine.workbench.spans import Span
from licet_engine.workbench.typed import CaseProblem, Types

if TYPE_CHECKING:
    from licet_engine.decide import PolicyReport
    from licet_engine.workbench.cases import Case
    from licet_engine.workbench.project import Project

RULES = (
    RuleText("test-failed", "error", "A test is decided as it says"),
    RuleText("test-broken", "error", "A test can be decided"),
)


@dataclass(frozen=True)
class Asking:
    """A case as it was put to the bundle."""

    request: Request
    facts: FactSet
    decision: Decision


@dataclass(frozen=True)
class Result:
    """What came of one case.

    Attributes:
        case: The case.
        outcome: Whether it passed, failed, or could not be decided.
        message: Why it did not pass, in a line; empty if it did.
        why: The explanation, line by line.
        asking: What was asked and decided, or None if it was broken before.
    """

    case: Case
    outcome: Literal["passed", "failed", "broken"]
    message: str = ""
    why: tuple[str, ...] = ()
    asking: Asking | None = None

    def to_json(self) -> dict[str, Any]:
        """For an answer."""
        decided = None if self.asking is None else self.asking.decision.to_json()
        return {
            "file": self.case.file,
            "line": self.case.line,
            "name": self.case.name,
            "outcome": self.outcome,
            "message": self.message,
            "why": list(self.why),
            "decision": decided,
        }


class Runner:
    """Decides cases under one bundle.

    Attributes:
        compiled: The bundle.
    """

    def __init__(self, project: Project) -> None:
        self.compiled = CompiledBundle.compile(project.bundle())
        self._types = Types(project.schema)
        # Most cases change few of the facts that they share; the others are made once.
        self._facts: dict[tuple[int, str], Fact] = {}
        self._kept: list[Mapping[str, Any]] = []

    def run(self, case: Case) -> Result:
        """Decide one case."""
        try:
            self._verify_ids([*(case.asked.because or ()), *(case.asked.observed or ())])
            asking = self.ask(case)
        except (CaseProblem, FactError) as error:
            return Result(case, "broken", str(error))
        decision = asking.decision
        if RESERVED_IDS.intersection(decision.errors):
            return Result(case, "broken", "; ".join(text for _, text in decision.messages), asking=asking)
        differs = _differences(case, decision)
        if not differs:
            return Result(case, "passed", asking=asking)
        return Result(case, "failed", "; ".join(differs), tuple(self._why(case, asking)), asking)

    def ask(self, case: Case) -> Asking:
        """Put a case to the bundle, whatever it expects.

        Raises:
            CaseProblem: It cannot be asked as it is written.
            FactError: One of its facts is none.
        """
        asked = case.asked
        action = asked.action or ""
        self._types.verify_action(action)
        principal, resource = (EntityUid(**self._types.uid(name)) for name in (asked.principal, asked.resource))
        facts = FactSet(self._all_facts(case))
        for name, uid in (("principal", principal), ("resource", resource)):
            if facts.get(uid.key) is None:
                raise CaseProblem(f"{name}: no fixture describes {uid}; describe it below `entities`")
        values = {"claimed": [], **case.context, **asked.context}
        given = {name: value for name, value in values.items() if value is not None}
        context = self._types.context(action, {**given, "now_ms": case.time_ms})
        request = Request(principal, action, resource, context)
        return Asking(request, facts, decide(self.compiled, request, facts))

    def _all_facts(self, case: Case) -> list[Fact]:
        for name in case.asked.changes:
            if name not in case.entities:
                raise CaseProblem(f"set: no fixture describes {name}; describe it below `entities`")
        return [
            self._changed(name, body, case.asked.changes[name])
            if name in case.asked.changes
            else self._fact(case.entities, name, body)
            for name, body in case.entities.items()
        ]

    def _fact(self, entities: Mapping[str, Any], name: str, body: Mapping[str, Any]) -> Fact:
        key = (id(entities), name)
        if key not in self._facts:
            # Kept, so that no other mapping is ever found at its place.
            self._kept.append(entities)
            self._facts[key] = Fact.from_entity(self._types.entity(name, body))
        return self._facts[key]

    def _changed(self, name: str, body: Mapping[str, Any], changes: Mapping[str, Any]) -> Fact:
        changed = copy.deepcopy(dict(body))
        for path, value in changes.items():
            _change(name, changed, path, value)
        return Fact.from_entity(self._types.entity(name, changed))

    def _verify_ids(self, names: Sequence[str]) -> None:
        known = self.compiled.policies_by_id
        for name in names:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise CaseProblem(f"the bundle has no policy {name!r}{hint}")

    def _why(self, case: Case, asking: Asking) -> list[str]:
        told = explain(self.compiled, asking.request, asking.facts)
        lines = [line for report in told.deciding for line in _report_lines(report, "decided")]
        shown = {report.id for report in told.deciding}
        expected = [name for name in (*(case.asked.because or ()), *(case.asked.observed or ())) if name not in shown]
        policies = [self.compiled.policies_by_id[name] for name in dict.fromkeys(expected)]
        for report in reports(self.compiled, asking.request, asking.facts, policies):
            lines += _report_lines(report, "was expected")
            shown.add(report.id)
        if told.kind == "no-permit":
            near = [report for report in told.nearest if report.id not in shown]
            if near or not told.nearest:
                lines.append("no permit applies; the nearest:" if near else "no permit speaks of this")
            lines += [line for report in near for line in _report_lines(report, "is near")]
        return lines


def _change(name: str, body: dict[str, Any], path: str, value: Any) -> None:
    *above, last = path.split(".")
    inside: Any = body
    for key in above:
        inside = inside.get(key) if isinstance(inside, dict) else None
    if not isinstance(inside, dict):
        raise CaseProblem(f"set: {name} has no record {'.'.join(above)}: give it as a whole")
    if value is not None:
        inside[last] = value
    elif last in inside:
        del inside[last]
    else:
        # A case that takes away what is not there would change nothing that it speaks of.
        raise CaseProblem(f"set: {name} has no {path} that could be taken away")


def _differences(case: Case, decision: Decision) -> list[str]:
    asked = case.asked
    because, observed = tuple(sorted(asked.because or ())), asked.observed
    found: list[str] = []
    if decision.word != asked.expect:
        found.append(f"expected {asked.expect}, was {decision.word}")
    if decision.errors:
        found.append("; ".join(f"{name} errs: {message}" for name, message in decision.messages))
    if decision.reasons != because:
        found.append(f"expected because of {_list(because)}, was because of {_list(decision.reasons)}")
    if observed is not None and decision.observed != tuple(sorted(observed)):
        found.append(f"expected to be observed by {_list(sorted(observed))}, was by {_list(decision.observed)}")
    return found


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) or "no policy"


def _report_lines(report: PolicyReport, role: str) -> list[str]:
    applied = {"true": "applies", "false": "does not apply", "error": "errs"}[report.outcome]
    title = report.annotations.get("title", "")
    lines = [f"{report.id} {role}: this {report.effect} {applied}" + (f" ({title})" if title else "")]
    lines += [f"  scope: {part}" for part in report.scope if not part.supports]
    for clause in report.clauses:
        lines += [f"  {clause.kind}: {part}" for part in clause.parts if part.outcome != "not-reached"]
    return lines


def findings(results: Sequence[Result]) -> list[Finding]:
    """What did not pass, as findings."""
    return [
        Finding(
            f"test-{result.outcome}",
            "error",
            f"{result.case.name}: {result.message}",
            Span(result.case.file, result.case.line, result.case.column, result.case.line, result.case.column),
        )
        for result in results
        if result.outcome != "passed"
    ]


def checks(results: Sequence[Result]) -> list[Check]:
    """What was tested, as JUnit has it."""
    return [
        Check(
            result.case.file,
            result.case.name,
            result.outcome,
            result.message,
            "\n".join((f"{result.case.file}:{result.case.line}: {result.message}", *result.why)),
        )
        for result in results
    ]
