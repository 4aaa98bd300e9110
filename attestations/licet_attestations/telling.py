"""What the verifier of archives tells: for people, as JSON, and as JUnit.

Rules kept here:

- What comes out of an archive is hostile: nothing of it reaches a terminal or XML but printable characters.
"""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from licet_attestations.verify import STEPS, Report, Step

if TYPE_CHECKING:
    from licet_attestations.errors import VerificationError

_WIDTH = 100
_INDENT = " " * 22


def verified(report: Report, format_: str, *, explained: bool) -> str:
    """What is told of an archive that was verified."""
    match format_:
        case "json":
            return json.dumps(report.to_dict(), indent=2)
        case "junit":
            return _junit({step.name: step.detail for step in report.steps}, None)
    lines = []
    for step in report.steps:
        lines.append(f"  {step.number:2}. {step.name:<10}  ok  {step.title} ({step.detail})")
        if explained:
            lines += _explanation(STEPS[step.number - 1])
    lines += ["", f"Verified: {report.sentence()}.", report.isolation.sentence()]
    for action, counts in sorted(report.isolation.operators.items()):
        told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
        lines.append(f"Operators of the platform, {action}: {told}.")
    lines += ["", "What this does not prove:", *(f"  - {limit}" for limit in report.limits)]
    return "\n".join(map(printable, lines))


def failed(error: VerificationError, format_: str, *, explained: bool) -> str:
    """What is told of one that was not."""
    match format_:
        case "json":
            return json.dumps(
                {"verified": False, "step": error.step, "where": error.where, "problem": str(error)}, indent=2
            )
        case "junit":
            return _junit({}, error)
    told = printable(f"NOT verified, at step {error.step}, in {error.where}: {error}")
    number = str(error.step).partition(".")[0]
    more = _explanation(STEPS[int(number) - 1]) if explained and number.isdecimal() else []
    return "\n".join([told, *more])


def not_run(error: Exception, format_: str, name: str) -> str:
    """What is told where the verifier could not run."""
    reason = str(error)
    if isinstance(error, OSError) and error.strerror:
        reason = f"{error.filename or name}: {error.strerror}"
    if format_ == "json":
        return json.dumps({"error": {"code": "could-not-verify", "message": reason}}, indent=2)
    return printable(f"Could not verify: {reason}")


def printable(text: str) -> str:
    """Text of one line for terminals and XML: what is not printable, escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _explanation(step: Step) -> list[str]:
    return textwrap.wrap(step.shows, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)


def _junit(passed: dict[str, str], failure: VerificationError | None) -> str:
    """The steps as test cases: those that were passed, the one that failed, and those that nothing is known of."""
    suite = ET.Element("testsuite", name="licet verify", tests=str(len(STEPS)), errors="0")
    suite.set("failures", "0" if failure is None else "1")
    failed_at = 0 if failure is None else int(str(failure.step).partition(".")[0])
    skipped = 0
    for number, step in enumerate(STEPS, start=1):
        case = ET.SubElement(suite, "testcase", classname="evidence", name=f"{number}. {step.name}")
        if failure is not None and number == failed_at:
            message = printable(f"in {failure.where}: {failure}")
            ET.SubElement(case, "failure", message=message, type="NotVerified").text = message
        elif step.name in passed:
            ET.SubElement(case, "system-out").text = printable(passed[step.name])
        elif number > failed_at:
            ET.SubElement(case, "skipped", message="not looked at")
            skipped += 1
    suite.set("skipped", str(skipped))
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, "unicode")
