"""What a report of an examination is made of, and what it comes to; see ``examination``, which writes them. Needs nothing else.

Rules kept here:

- A report passes only if every step of the examination is in it, with what passes; a part that is missing does not.
- What is told of findings is bounded, each and all together.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

STEPS: Final = ("lint", "tests", "coverage", "proofs")
REPORT_VERSION: Final = 1
_MAX_MESSAGE_CHARS: Final = 2_000
_MAX_DETAIL_CHARS: Final = 20_000
_MAX_SHOWN: Final = 40
_MAX_SHOWN_CHARS: Final = 300


def finding(
    step: str,
    rule: str,
    message: str,
    *,
    severity: str = "error",
    file: str = "",
    line: int | None = None,
    column: int = 1,
    detail: str = "",
    shown: Sequence[tuple[str, str]] = (),
) -> dict[str, Any]:
    """One finding as a report has it.

    Args:
        step: Of the examination.
        rule: Which it breaks.
        message: What is wrong, and what to do.
        severity: ``error``, ``warning`` or ``note``.
        file: Where; empty if it is nowhere in the project.
        line: In that file, if it is known.
        column: In that line.
        detail: An explanation, or the request that refutes, as JSON.
        shown: That request for people: lines of a label and a text.
    """
    return {
        "step": step,
        "rule": rule,
        "severity": severity,
        "message": message[:_MAX_MESSAGE_CHARS],
        "file": file,
        "line": line or 0,
        "column": column if line else 0,
        "detail": detail[:_MAX_DETAIL_CHARS],
        "shown": [[label, text[:_MAX_SHOWN_CHARS]] for label, text in shown[:_MAX_SHOWN]],
    }


def bounded(findings: Iterable[Mapping[str, Any]], *, most: int, chars: int) -> list[dict[str, Any]]:
    """The first findings, with what is for people and then their explanations, as long as there is room for them."""
    told = []
    for one in itertools.islice(findings, most):
        kept = dict(one)
        for member, size in (("shown", sum(map(len, itertools.chain(*one["shown"])))), ("detail", len(one["detail"]))):
            if size > chars:
                kept[member] = type(one[member])()
            else:
                chars -= size
        told.append(kept)
    return told


def ended_early(rule: str, message: str) -> dict[str, Any]:
    """The report of an examination that came to no end of its own."""
    return {
        "v": REPORT_VERSION,
        "findings": [finding("examination", rule, message)],
        "findings_left_out": 0,
    }


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


def proved(report: Mapping[str, Any]) -> bool | None:
    """Whether every invariant was proved; None where that could not be told of each, as when it takes longer than it may."""
    match report:
        case {"proofs": {"invariants": [_, *_] as proofs}}:
            outcomes = {proof["outcome"] for proof in proofs}
            return None if outcomes - {"proved", "refuted"} else outcomes == {"proved"}
    return None


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
