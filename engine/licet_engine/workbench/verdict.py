"""What a report of an examination comes to; see ``examination``, which writes them. Needs nothing but the report.

Rules kept here:

- A report passes only if every step of the examination is in it, with what passes; a part that is missing does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

STEPS: Final = ("lint", "tests", "coverage", "proofs")


def passes(report: Mapping[str, Any]) -> bool:
    """Whether a report is one with which a project is published: every step was done, and none found an error."""
    match report:
        case {
            "v": 1,
            "lint": {"errors": 0},
            "tests": {"run": int(run), "passed": int(passed), "missed": 0},
            "coverage": {"percent": int(percent), "threshold": int(threshold)},
            "proofs": {"invariants": [_, *_] as proofs},
            "findings": list(findings),
        }:
            return (
                run == passed
                and percent >= threshold
                and all(proof["outcome"] == "proved" for proof in proofs)
                and not any(finding["severity"] == "error" for finding in findings)
            )
    return False


def steps(report: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Which steps of an examination passed, and which did not; one that was not come to did not."""
    refused = {finding["step"] for finding in report.get("findings", ()) if finding["severity"] == "error"}
    done = [step for step in STEPS if step in report and step not in refused]
    return done, [step for step in STEPS if step not in done]


def summary(report: Mapping[str, Any]) -> str:
    """What was found, in a line."""
    counted: dict[str, int] = {}
    for finding in report.get("findings", ()):
        if finding["severity"] == "error":
            counted[finding["step"]] = counted.get(finding["step"], 0) + 1
    if not counted:
        return "nothing was found"
    return ", ".join(f"{step}: {count} finding{'s' if count > 1 else ''}" for step, count in counted.items())
