"""What a tool found, in the formats that a CI reads: SARIF 2.1.0 and JUnit's XML.

Rules kept here:

- A file is named from where the command runs, if it lies below, so that a CI finds it in the repository.
- What was switched off stands in SARIF as suppressed, with its reason, and in JUnit not at all.
- JUnit's XML has no standard; this is the part of it that GitLab, Jenkins and GitHub's readers agree on.

Source: SARIF 2.1.0, https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html.
"""

from __future__ import annotations

import json
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote

from licet_engine.workbench.findings import Finding, Severity

SARIF_SCHEMA: Final = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


@dataclass(frozen=True, slots=True)
class RuleText:
    """What a report says of a rule."""

    id: str
    severity: Severity
    title: str


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was checked, as JUnit has it.

    Attributes:
        group: What it belongs to: a file, or a tool.
        name: Its name there.
        outcome: Whether it held, did not, or could not be checked.
        message: Why it did not, in a line.
        detail: The same at length.
    """

    group: str
    name: str
    outcome: Literal["passed", "failed", "broken"] = "passed"
    message: str = ""
    detail: str = ""


def shown_from(root: Path) -> str:
    """What stands before the name of a project's file where the command runs; empty if it runs there or elsewhere."""
    here = Path.cwd().resolve()
    if root == here or not root.is_relative_to(here):
        return ""
    return root.relative_to(here).as_posix() + "/"


def to_json(tool: str, value: Mapping[str, Any]) -> str:
    """A report as JSON of ours."""
    return json.dumps({"tool": f"licet policy {tool}", "version": version("licet"), **value}, indent=2)


def to_sarif(tool: str, rules: Sequence[RuleText], findings: Iterable[Finding], base: str) -> str:
    """Findings as SARIF.

    Args:
        tool: Which command found them.
        rules: Every rule that was looked for.
        findings: What was found, suppressed findings among them.
        base: What stands before the names of files; see ``shown_from``.
    """
    place = {rule.id: number for number, rule in enumerate(rules)}
    driver = {
        "name": f"licet policy {tool}",
        "version": version("licet"),
        "rules": [
            {
                "id": rule.id,
                "shortDescription": {"text": f"{rule.title}."},
                "defaultConfiguration": {"level": rule.severity},
            }
            for rule in rules
        ],
    }
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "results": [_result(finding, place[finding.rule], base) for finding in findings],
    }
    return json.dumps({"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2)


def _result(finding: Finding, rule: int, base: str) -> dict[str, Any]:
    span = finding.span
    region = {
        "startLine": span.line,
        "startColumn": span.column,
        "endLine": span.end_line,
        "endColumn": span.end_column,
    }
    location: dict[str, Any] = {
        "physicalLocation": {"artifactLocation": {"uri": quote(base + span.file)}, "region": region}
    }
    if finding.policy:
        location["logicalLocations"] = [{"fullyQualifiedName": finding.policy, "kind": "policy"}]
    result: dict[str, Any] = {
        "ruleId": finding.rule,
        "ruleIndex": rule,
        "level": finding.severity,
        "message": {"text": finding.message},
        "locations": [location],
    }
    if finding.suppressed is not None:
        result["suppressions"] = [{"kind": "inSource", "justification": finding.suppressed}]
    return result


def to_junit(tool: str, checks: Sequence[Check]) -> str:
    """What was checked as JUnit's XML, a suite for each group.

    Args:
        tool: Which command checked it.
        checks: In order; those of one group need not stand together.
    """
    groups: dict[str, list[Check]] = {}
    for check in checks:
        groups.setdefault(check.group, []).append(check)
    root = ET.Element("testsuites", {"name": f"licet policy {tool}", **_counts(checks)})
    for name, members in groups.items():
        suite = ET.SubElement(root, "testsuite", {"name": _xml_text(name), **_counts(members)})
        for check in members:
            case = ET.SubElement(suite, "testcase", classname=_xml_text(name), name=_xml_text(check.name))
            if check.outcome != "passed":
                kind = "failure" if check.outcome == "failed" else "error"
                ET.SubElement(case, kind, message=_xml_text(check.message)).text = _xml_text(check.detail)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode")


def _counts(checks: Sequence[Check]) -> dict[str, str]:
    return {
        "tests": str(len(checks)),
        "failures": str(sum(check.outcome == "failed" for check in checks)),
        "errors": str(sum(check.outcome == "broken" for check in checks)),
    }


def _xml_text(text: str) -> str:
    """Text without what XML cannot hold: control characters and lone surrogates."""
    return "".join(
        c if c in "\n\t" or (unicodedata.category(c) not in {"Cc", "Cs"} and c not in "\ufffe\uffff") else "\ufffd"
        for c in text
    )


def rule_checks(tool: str, rules: Sequence[RuleText], findings: Iterable[Finding], base: str) -> list[Check]:
    """Findings as one check for each rule: it fails if anything that counts was found."""
    by_rule: dict[str, list[Finding]] = {rule.id: [] for rule in rules}
    for finding in findings:
        if finding.suppressed is None:
            by_rule[finding.rule].append(finding)
    return [
        Check(
            group=f"licet.policy.{tool}",
            name=rule.id,
            outcome="failed" if by_rule[rule.id] else "passed",
            message=f"{rule.title}: {len(by_rule[rule.id])} finding(s)" if by_rule[rule.id] else "",
            detail="\n".join(f"{base}{finding.span}: {finding.message}" for finding in by_rule[rule.id]),
        )
        for rule in rules
    ]
