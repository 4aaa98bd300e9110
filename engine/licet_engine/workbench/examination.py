"""What is looked at before a project is published: lint, tests, coverage and proofs, in one report.

Rules kept here:

- The bundle is composed by what ``licet policy bundle`` composes it with, so that its digest can be known beforehand.
- Everything is told that can be: a lint finding does not hide a failing test, as long as there is a bundle to test.
- What could not be told is a finding of the severity ``error``, like what is wrong.
- A report is plain JSON of texts and whole numbers, bounded: what is left out of it is counted.

Run as ``python -m licet_engine.workbench.examination FOLDER``, it examines the project there and writes one JSON document to standard
output. Who examines what strangers wrote runs it so, in a process that can be ended.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable, Iterable
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
from licet_engine.workbench.files import list_files
from licet_engine.workbench.findings import Finding
from licet_engine.workbench.lint import lint
from licet_engine.workbench.project import TEST_FOLDER, Project, load_project
from licet_engine.workbench.rules import registry
from licet_engine.workbench.symbolic import SymbolicError
from licet_policies import LicetPoliciesError

REPORT_VERSION: Final = 1
MAX_FINDINGS: Final = 100
"""Told whole; more are counted."""
_MAX_MESSAGE_CHARS: Final = 2_000
_MAX_DETAIL_CHARS: Final = 20_000
_MAX_REASON_CHARS: Final = 200
_MAX_DETAILS_CHARS: Final = 200_000
"""Of all explanations, and requests that refute."""
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000


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

    def add(self, step: str, finding: Finding, *, detail: str = "") -> None:
        """Note a finding; one that was switched off with a reason does not count."""
        if finding.suppressed is None:
            self.findings.append(
                {
                    "step": step,
                    "rule": finding.rule,
                    "severity": finding.severity,
                    "message": finding.message[:_MAX_MESSAGE_CHARS],
                    "file": finding.span.file,
                    "line": finding.span.line,
                    "column": finding.span.column,
                    "detail": detail[:_MAX_DETAIL_CHARS],
                }
            )

    def fault(self, step: str, rule: str, message: str, *, file: str = "", line: int | None = None) -> None:
        """Note that a step could not be done."""
        self.findings.append(
            {
                "step": step,
                "rule": rule,
                "severity": "error",
                "message": message[:_MAX_MESSAGE_CHARS],
                "file": file,
                "line": line or 0,
                "column": 1 if line else 0,
                "detail": "",
            }
        )

    def to_json(self) -> dict[str, Any]:
        """The report, errors first, and the bundle as text."""
        ordered = sorted(self.findings, key=lambda found: found["severity"] != "error")
        left = _MAX_DETAILS_CHARS
        told = []
        for found in ordered[:MAX_FINDINGS]:
            detail = found["detail"] if len(found["detail"]) <= left else ""
            left -= len(detail)
            told.append({**found, "detail": detail})
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
            found.fault("project", error.code, error.message, file=error.file, line=error.line)
        return found
    except (LicetError, LicetPoliciesError) as error:
        found.fault("project", error.code, str(error))
        return found
    for step, act in (("tests", _test), ("proofs", _prove)):
        try:
            act(found, project, time_limit_s, longest_s)
        except ProjectError as error:
            found.fault(step, error.code, error.message, file=error.file, line=error.line)
        except (LicetError, LicetPoliciesError, SymbolicError) as error:
            found.fault(step, error.code, str(error))
    return found


def _tools() -> dict[str, str]:
    return {name: version(name) for name in ("licet", "cedarpy", "cvc5")}


def _lint(found: Examination, project: Project) -> None:
    began_s = time.monotonic()
    findings = lint(project)
    for finding in findings:
        found.add("lint", finding)
    counted = [finding for finding in findings if finding.suppressed is None]
    found.report["lint"] = {
        "rules": sum(not rule.is_proof for rule in registry().values()),
        "errors": sum(finding.severity == "error" for finding in counted),
        "warnings": sum(finding.severity != "error" for finding in counted),
        "switched_off": len(findings) - len(counted),
        # Whoever activates it is to know what was passed over, and why.
        "passed_over": [
            {
                "rule": finding.rule,
                "policy": finding.policy or "",
                "place": f"{finding.span.file}:{finding.span.line}",
                "message": finding.message[:_MAX_REASON_CHARS],
                "reason": (finding.suppressed or "")[:_MAX_REASON_CHARS],
            }
            for finding in findings
            if finding.suppressed is not None
        ][:MAX_FINDINGS],
        "ms": _ms_since(began_s),
    }
    # Which policies are its own, for who looks at what was published.
    found.report["own"] = sorted(text.id for text in project.policy_texts() if text.id is not None)


def _test(found: Examination, project: Project, _time_limit_s: float, _longest_s: float) -> None:
    began_s = time.monotonic()
    # Without any file of tests there are none; with one that holds none, something is wrong, and `load_cases` says what.
    is_tested = bool(list_files(project.root, TEST_FOLDER, (".yaml", ".yml")))
    cases = load_cases(project) if is_tested else []
    runner = testing.Runner(project)
    results = [runner.run(case) for case in cases]
    missed = [result for result in results if result.outcome != "passed"]
    for finding, result in zip(testing.findings(results), missed, strict=True):
        found.add("tests", finding, detail="\n".join(result.why))
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
        found.fault(
            "coverage", "coverage", f"{measured.percent} % is covered, demanded are {least} %", file="licet.toml"
        )
        for finding in measuring.findings(measured):
            found.add("coverage", finding)


def _prove(found: Examination, project: Project, time_limit_s: float, longest_s: float) -> None:
    began_s = time.monotonic()
    results = proving.prove_project(project, time_limit_s=time_limit_s, longest_s=longest_s)
    details = {result.id: proving.detail(result) for result in results}
    for finding in proving.findings(project, results):
        found.add("proofs", finding, detail=details.get(finding.policy or "", ""))
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
    """Examine the project in a folder and write what came of it."""
    folder, time_limit_s, longest_s = arguments
    shared = leave_the_network()
    told = examine(Path(folder), time_limit_s=float(time_limit_s), longest_s=float(longest_s)).to_json()
    told["report"]["network"] = shared or "none"
    write(json.dumps(told, ensure_ascii=True))


if __name__ == "__main__":
    main(sys.argv[1:])
