"""What is looked at before a project is published: lint, tests, coverage and proofs, in one report.

Rules kept here:

- The bundle is composed by what ``licet policy bundle`` composes it with, so that its digest can be known beforehand.
- Everything is told that can be: a lint finding does not hide a failing test, as long as there is a bundle to test.
- What could not be told is a finding of the severity ``error``, like what is wrong.
- A report is plain JSON of texts and whole numbers, bounded: what is left out of it is counted.

Run as ``python -m licet_engine.workbench.examination project FOLDER QUESTION_S LONGEST_S``, it examines the project there and writes one
JSON document to standard output; with ``bundle``, what is proved of the bundle that is there as ``bundle.json``, and no more, for a bundle has
neither tests nor lines. Who examines what strangers wrote runs it so, in a process that can be ended.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from licet_attestations import canonical
from licet_engine.domain.errors import LicetError
from licet_engine.workbench import coverage as measuring
from licet_engine.workbench import proving, testing
from licet_engine.workbench.cases import load_cases
from licet_engine.workbench.errors import ProjectError
from licet_engine.workbench.files import CONFIG_FILE, TEST_FOLDER, list_files
from licet_engine.workbench.findings import Finding
from licet_engine.workbench.lint import lint
from licet_engine.workbench.project import Project, load_project
from licet_engine.workbench.rules import registry
from licet_engine.workbench.symbolic import SymbolicError
from licet_engine.workbench.verdict import REPORT_VERSION, bounded, finding
from licet_policies import LicetPoliciesError

MAX_FINDINGS: Final = 100
"""Told whole; more are counted."""
BUNDLE_FILE: Final = "bundle.json"
_MAX_BUNDLE_BYTES: Final = 8 << 20
_MAX_REASON_CHARS: Final = 200
_MAX_DETAILS_CHARS: Final = 200_000
"""Of all explanations, and requests that refute."""
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
_NICENESS: Final = 10
"""Of what nobody waits for."""


@dataclass
class Examination:
    """One examination, while it goes on.

    Attributes:
        findings: What was found, in the order of the steps.
        bundle: The bundle's canonical JSON; None if there is none.
        report: What was counted.
    """

    findings: list[dict[str, Any]] = field(default_factory=list)
    bundle: bytes | None = None
    report: dict[str, Any] = field(default_factory=dict)

    def add(self, step: str, found: Finding, *, detail: str = "", shown: Sequence[tuple[str, str]] = ()) -> None:
        """Note a finding; one that was switched off with a reason does not count."""
        if found.suppressed is None:
            span = found.span
            self.findings.append(
                finding(
                    step,
                    found.rule,
                    found.message,
                    severity=found.severity,
                    file=span.file,
                    line=span.line,
                    column=span.column,
                    detail=detail,
                    shown=shown,
                )
            )

    def fault(self, step: str, error: LicetError | LicetPoliciesError | SymbolicError) -> None:
        """Note that a step could not be done."""
        if isinstance(error, ProjectError):
            self.findings.append(finding(step, error.code, error.said, file=error.file, line=error.line))
        else:
            self.findings.append(finding(step, error.code, str(error)))

    def to_json(self) -> dict[str, Any]:
        """The report, errors first, and the bundle as text."""
        ordered = sorted(self.findings, key=lambda found: found["severity"] != "error")
        told = bounded(ordered, most=MAX_FINDINGS, chars=_MAX_DETAILS_CHARS)
        report = {
            "v": REPORT_VERSION,
            **self.report,
            "findings": told,
            "findings_left_out": len(ordered) - len(told),
        }
        return {"report": report, "bundle": None if self.bundle is None else self.bundle.decode()}


def examine(folder: Path, *, time_limit_s: float, longest_s: float) -> Examination:
    """Examine the project in a folder.

    Args:
        folder: Its folder.
        time_limit_s: For one question to the solver.
        longest_s: For all proofs together.
    """
    found = Examination(report={"tools": _tools()})
    try:
        project = load_project(folder)
        _lint(found, project)
        found.bundle = canonical.dumps(project.bundle())
    except ProjectError as error:
        # Where a rule that a bundle is not composed without has told why, it is not told again.
        known = registry()
        if not any(known[finding["rule"]].fixed for finding in found.findings if finding["severity"] == "error"):
            found.fault("project", error)
        return found
    except (LicetError, LicetPoliciesError) as error:
        found.fault("project", error)
        return found
    for step, act in (("tests", _test), ("proofs", _prove)):
        try:
            act(found, project, time_limit_s, longest_s)
        except (LicetError, LicetPoliciesError, SymbolicError) as error:
            found.fault(step, error)
    return found


def examine_bundle(folder: Path, *, time_limit_s: float, longest_s: float) -> Examination:
    """Prove what must hold of the bundle in a folder: the platform's invariants, and those of its packs.

    Args:
        folder: With the bundle's canonical JSON, as ``bundle.json``.
        time_limit_s: For one question to the solver.
        longest_s: For all proofs together.
    """
    body = (folder / BUNDLE_FILE).read_bytes()
    found = Examination(bundle=body, report={"tools": _tools()})
    began_s = time.monotonic()
    try:
        bundle = canonical.loads(body, max_bytes=_MAX_BUNDLE_BYTES, canonical=True)
        results = proving.prove_bundle(bundle, time_limit_s=time_limit_s, longest_s=longest_s)
    except (LicetError, LicetPoliciesError, SymbolicError) as error:
        found.fault("proofs", error)
        return found
    for result in results:
        if result.rule is not None:
            detail, shown = proving.detail(result), proving.shown(result)
            found.findings.append(finding("proofs", result.rule, proving.message(result), detail=detail, shown=shown))
    _count_proofs(found, results, began_s)
    return found


def _tools() -> dict[str, str]:
    return {name: version(name) for name in ("licet", "cedarpy", "cvc5")}


def _lint(found: Examination, project: Project) -> None:
    began_s = time.monotonic()
    findings = lint(project)
    for one in findings:
        found.add("lint", one)
    counted = [one for one in findings if one.suppressed is None]
    found.report["lint"] = {
        "rules": sum(not rule.is_proof for rule in registry().values()),
        "errors": sum(one.severity == "error" for one in counted),
        "warnings": sum(one.severity != "error" for one in counted),
        "switched_off": len(findings) - len(counted),
        # Whoever activates it is to know what was passed over, and why.
        "passed_over": [
            {
                "rule": one.rule,
                "policy": one.policy or "",
                "place": f"{one.span.file}:{one.span.line}",
                "message": one.message[:_MAX_REASON_CHARS],
                "reason": (one.suppressed or "")[:_MAX_REASON_CHARS],
            }
            for one in findings
            if one.suppressed is not None
        ][:MAX_FINDINGS],
        "ms": _ms_since(began_s),
    }
    # Which policies are its own, for who looks at what was published.
    found.report["own"] = sorted(text.id for text in project.policy_texts() if text.id is not None)


def _test(found: Examination, project: Project, _time_limit_s: float, _longest_s: float) -> None:
    began_s = time.monotonic()
    # Without any file of tests there are none; with one that holds none, something is wrong, and `load_cases` says what.
    is_tested = bool(list_files(project.root, TEST_FOLDER))
    cases = load_cases(project) if is_tested else []
    runner = testing.Runner(project)
    results = [runner.run(case) for case in cases]
    missed = [result for result in results if result.outcome != "passed"]
    for one, result in zip(testing.findings(results), missed, strict=True):
        found.add("tests", one, detail="\n".join(result.why))
    found.report["tests"] = {
        "run": len(results),
        "passed": len(results) - len(missed),
        "missed": len(missed),
        "ms": _ms_since(began_s),
    }
    least = project.config.coverage.threshold
    if not any(policy.source == "tenant" for policy in runner.compiled.policies):
        # Nothing of its own is untested: what packs do, their own cases hold them to.
        found.report["coverage"] = {"percent": 100, "threshold": least, "policies": 0}
        return
    measured = measuring.coverage(project, runner.compiled, results)
    found.report["coverage"] = {"percent": measured.percent, "threshold": least, "policies": measured.policies[1]}
    if measured.percent < least:
        message = f"{measured.percent} % is covered, demanded are {least} %"
        found.findings.append(finding("coverage", "coverage", message, file=CONFIG_FILE))
        for gap in measuring.findings(measured):
            found.add("coverage", gap)


def _prove(found: Examination, project: Project, time_limit_s: float, longest_s: float) -> None:
    began_s = time.monotonic()
    results = proving.prove_project(project, time_limit_s=time_limit_s, longest_s=longest_s)
    about = {result.id: (proving.detail(result), proving.shown(result)) for result in results}
    for one in proving.findings(project, results):
        detail, shown = about.get(one.policy or "", ("", []))
        found.add("proofs", one, detail=detail, shown=shown)
    _count_proofs(found, results, began_s)


def _count_proofs(found: Examination, results: Sequence[proving.ProofResult], began_s: float) -> None:
    found.report["proofs"] = {
        "invariants": [{"id": result.id, "title": result.title, "outcome": result.word} for result in results],
        "proved": sum(result.word == "proved" for result in results),
        "ms": _ms_since(began_s),
    }


def _ms_since(began_s: float) -> int:
    return int((time.monotonic() - began_s) * 1000)


def leave_the_network(libc: Any = None) -> str:
    """Leave the machine's network for a namespace of one's own; say why it could not be done, or nothing if it was.

    What runs here is the platform's own, and opens no connection; this is for the day on which a parser can be made to.
    """
    called = ctypes.CDLL(None, use_errno=True) if libc is None else libc
    if called.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0 or called.unshare(_CLONE_NEWNET) == 0:
        return ""
    return f"the kernel allows no network namespace here (errno {ctypes.get_errno()})"


def main(arguments: Iterable[str], write: Callable[[str], object] = sys.stdout.write) -> None:
    """Examine what is in a folder and write what came of it."""
    kind, folder, time_limit_s, longest_s = arguments
    shared = leave_the_network()
    if kind == "bundle":
        os.nice(_NICENESS)
    act = {"project": examine, "bundle": examine_bundle}[kind]
    told = act(Path(folder), time_limit_s=float(time_limit_s), longest_s=float(longest_s)).to_json()
    told["report"]["network"] = shared or "none"
    write(json.dumps(told, ensure_ascii=True))


if __name__ == "__main__":
    main(sys.argv[1:])
