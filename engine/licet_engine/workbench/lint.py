"""Lint: every rule over a project, less what was switched off with a reason.

Rules kept here:

- A finding that was switched off is still told, with its reason, to who reads JSON or SARIF; it does not count.
- Without a reason nothing is switched off, and a rule that cannot be switched off is not. That it was tried is a finding.
- What is switched off for a policy and speaks of nothing there is a finding: else it would hide what comes later.

For one policy a comment before or in it says so: ``// licet-lint: off RULE: reason``. For the project, ``[lint.off]`` of
``licet.toml`` does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from licet_engine.workbench.findings import Finding
from licet_engine.workbench.rules import Context, Found, Rule, registry
from licet_engine.workbench.rules_project import line_span

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from licet_engine.workbench.checked import CheckedPolicy
    from licet_engine.workbench.project import Project
    from licet_engine.workbench.spans import Span

_COMMENT: Final = re.compile(r"//\s*licet-lint:\s*(.*?)\s*$")
_OFF: Final = re.compile(r"off\s+([A-Za-z0-9_-]+(?:\s*,\s*[A-Za-z0-9_-]+)*)\s*(?::\s*(.*))?")


@dataclass(slots=True)
class _Switch:
    """One rule switched off for one policy by a comment."""

    rule: str
    reason: str
    policy: CheckedPolicy
    span: Span
    is_used: bool = False


def lint(project: Project, *, prove: bool = False) -> list[Finding]:
    """Everything that the rules find in a project, by file and line; what was switched off bears its reason.

    Args:
        project: The project.
        prove: Whether to look for what takes the solver, too.
    """
    rules = [rule for rule in registry().values() if prove or not rule.is_proof]
    return lint_with(project, rules, Context(project))


def lint_with(project: Project, rules: Iterable[Rule], context: Context) -> list[Finding]:
    """``lint``, by these rules alone.

    Args:
        project: The project.
        rules: Which to look for; those on what is switched off are always among them.
        context: What they look at.
    """
    known = registry()
    switches, found = _switches(context, known)
    found += _of_the_project(project, known)
    off = {
        name: reason
        for name, reason in project.config.lint.off.items()
        if reason.strip() and name in known and not known[name].fixed
    }
    for rule in rules:
        found += [_finding(rule, each, switches, off) for each in rule.check(context)]
    for switch in switches:
        if not switch.is_used and any(rule.id == switch.rule for rule in rules):
            message = f"{switch.rule} finds nothing in this policy: take the comment away"
            found.append(_said("suppression-unused", message, switch.span, known, switch.policy))
    return sorted(found, key=lambda finding: (finding.span, finding.rule, finding.message))


def _finding(rule: Rule, found: Found, switches: list[_Switch], off: Mapping[str, str]) -> Finding:
    reason = off.get(rule.id)
    for switch in switches:
        if switch.rule == rule.id and found.policy is switch.policy:
            switch.is_used = True
            reason = switch.reason
    name = None if found.policy is None else found.policy.id
    return Finding(rule.id, rule.severity, found.message, found.span, name, reason)


def _switches(context: Context, known: Mapping[str, Rule]) -> tuple[list[_Switch], list[Finding]]:
    switches: list[_Switch] = []
    found: list[Finding] = []
    for policy in context.all:
        for comment in policy.written.comments:
            match = _COMMENT.match(comment.text)
            if match is None:
                continue
            span = policy.written.span(comment)
            off = _OFF.fullmatch(match[1])
            if off is None:
                message = "write it as `// licet-lint: off RULE: reason`"
                found.append(_said("suppression-unknown", message, span, known, policy))
                continue
            for rule in (name.strip() for name in off[1].split(",")):
                refused = _refused(rule, off[2] or "", known)
                if refused is not None:
                    found.append(_said(*refused, span, known, policy))
                else:
                    switches.append(_Switch(rule, off[2], policy, span))
    return switches, found


def _of_the_project(project: Project, known: Mapping[str, Rule]) -> Iterator[Finding]:
    for rule, reason in project.config.lint.off.items():
        refused = _refused(rule, reason, known)
        if refused is not None:
            yield _said(*refused, line_span(project.config_file, ("lint", "off", rule)), known)


def _refused(rule: str, reason: str, known: Mapping[str, Rule]) -> tuple[str, str] | None:
    """Why a rule is not switched off so, or None if it is."""
    if rule not in known:
        return "suppression-unknown", f"there is no rule {rule[:60]!r}: `licet policy lint --rules` lists them"
    if known[rule].fixed:
        return "suppression-unknown", f"{rule} cannot be switched off: a bundle is not composed without it"
    if not reason.strip():
        return "suppression-without-reason", f"{rule} is switched off without a reason: write `off {rule}: reason`"
    return None


def _said(
    rule: str, message: str, span: Span, known: Mapping[str, Rule], policy: CheckedPolicy | None = None
) -> Finding:
    return replace(Finding(rule, known[rule].severity, message, span), policy=None if policy is None else policy.id)
