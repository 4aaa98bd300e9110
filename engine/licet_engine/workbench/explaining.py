"""``explain``: why a decision came out as it did, from an evidence archive, a test or a request alone, and what would be needed.

Rules kept here:

- A recorded decision is explained by the policies and the facts that its record names, each verified by its digest, and it is said
  whether evaluating them again gives what was recorded. Signatures are not looked at: ``licet verify`` does that.
- Now means the same request and the same facts under other policies: what changed since in the world is not in an archive.
- The path to yes is the service's own, over what can be obtained as far as request and facts tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from licet_engine.decide import CompiledBundle, explain, path_to_yes
from licet_engine.decide.obtaining import obtainable
from licet_engine.workbench.cases import load_cases, load_request
from licet_engine.workbench.errors import ProjectError
from licet_engine.workbench.replay import DecisionArchive
from licet_engine.workbench.testing import Runner

if TYPE_CHECKING:
    from collections.abc import Mapping

    from licet_engine.decide import Decision, Explanation, FactSet, PathToYes, Request
    from licet_engine.workbench.cases import Case
    from licet_engine.workbench.project import Project

_COMPARED = ("decision", "reasons", "errors", "observed")


@dataclass(frozen=True, slots=True)
class Explained:
    """A question explained under one set of policies.

    Attributes:
        request: What was asked.
        explanation: Why it is decided so.
        path: What would have it allowed; None where it is allowed, or no such search is possible.
        id: Of the decision, where it was recorded.
        time_ms: When it was made, if it was recorded.
        tells: What is compared with, such as ``recorded``; empty for nothing.
        before: The decision that is compared with.
    """

    request: Request
    explanation: Explanation
    path: PathToYes | None
    id: str = ""
    time_ms: int | None = None
    tells: str = ""
    before: Decision | None = None

    @property
    def differs(self) -> tuple[str, ...]:
        """In what it differs from the decision it is compared with."""
        if self.before is None:
            return ()
        now, before = self.explanation.decision.to_json(), self.before.to_json()
        return tuple(name for name in _COMPARED if now[name] != before[name])

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "decision": self.request.to_json()
            | {"id": self.id or None, "time_ms": self.time_ms, "decision": self.explanation.decision.word},
            "explanation": self.explanation.to_json(),
            "path": None if self.path is None else self.path.to_json(),
            "compared": None
            if self.before is None
            else {
                "with": self.tells,
                "differs": list(self.differs),
                "before": {name: self.before.to_json()[name] for name in _COMPARED},
            },
        }


def explain_recorded(path: Path, decision_id: str, now: Mapping[str, Any] | None = None) -> Explained:
    """Explain a decision of an evidence archive.

    Args:
        path: Of the archive.
        decision_id: Which decision.
        now: The bundle to decide by now; None: the one that it was decided by.

    Raises:
        ReplayError: The archive, the record, or something it names cannot be read.
        BundleError: The policies cannot be used.
    """
    with DecisionArchive(path) as opened:
        recorded, facts = opened.find(decision_id)
        compiled = (
            CompiledBundle.from_bytes(opened.bundle(recorded.bundle_hex))
            if now is None
            else CompiledBundle.compile(now)
        )
    return _explained(
        compiled,
        recorded.request,
        facts,
        id=recorded.id,
        time_ms=recorded.time_ms,
        tells="recorded",
        before=recorded.decision,
    )


def explain_test(project: Project, name: str) -> Explained:
    """Explain a test of a project, whether or not it comes out as it says.

    Raises:
        ProjectError: No test is called so, or more than one.
        CaseProblem: It cannot be asked as it is written.
    """
    cases = load_cases(project)
    found = [case for case in cases if case.name == name] or [case for case in cases if name in case.name]
    if len(found) != 1:
        known = "; ".join(repr(case.name) for case in (found or cases)[:10])
        fault = "is the name of several tests" if found else "is the name of no test"
        raise ProjectError(f"{name!r:.200} {fault}: name one of {known}")
    return _explained_case(project, found[0])


def explain_request(project: Project, path: Path) -> Explained:
    """Explain a request that stands in a file with its entities.

    Raises:
        ProjectError: The file cannot be used.
        CaseProblem: What it asks cannot be asked.
    """
    return _explained_case(project, load_request(path))


def _explained_case(project: Project, case: Case) -> Explained:
    runner = Runner(project)
    asking = runner.ask(case)
    return _explained(runner.compiled, asking.request, asking.facts)


def _explained(compiled: CompiledBundle, request: Request, facts: FactSet, **told: Any) -> Explained:
    explanation = explain(compiled, request, facts)
    path = None
    if not explanation.decision.allowed and explanation.kind != "invalid":
        try:
            path = path_to_yes(compiled, request, facts, obtainable(request, facts))
        except (AttributeError, LookupError, TypeError):
            # An archive brings its own schema: what is not as ours has it can be explained, and no more.
            path = None
    return Explained(request, explanation, path, **told)
