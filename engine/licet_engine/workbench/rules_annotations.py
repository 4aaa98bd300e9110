"""Rules on annotations: what whoever is refused, and whoever answers for it, needs to know."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from licet_engine.workbench.rules import Context, Found, Rule

if TYPE_CHECKING:
    from collections.abc import Iterator

KNOWN: Final = ("id", "title", "advice", "requires", "control", "severity", "owner", "mode")
"""What a policy may bear."""
OF_INVARIANTS: Final = ("never", "always")
"""What an invariant may bear besides."""
MODES: Final = ("enforce", "observe")
SEVERITIES: Final = ("low", "medium", "high", "critical")

_REQUIRES: Final = re.compile(r"[a-z][a-z0-9-]*:[a-z0-9][a-z0-9.-]*(?:\s*,\s*[a-z][a-z0-9-]*:[a-z0-9][a-z0-9.-]*)*")
_CONTROL: Final = re.compile(r"[^\s:,][^:,]*:[^,]*[^\s,](?:\s*,\s*[^\s:,][^:,]*:[^,]*[^\s,])*")
_FORMS: Final = {
    "requires": (_REQUIRES, 'names obtainable facts as kind:name, such as "approval:model-risk, check:bias"'),
    "control": (_CONTROL, 'names clauses of frameworks as framework:clause, such as "SR-11-7:V"'),
    "mode": (re.compile("|".join(MODES)), f"is one of {', '.join(MODES)}"),
    "severity": (re.compile("|".join(SEVERITIES)), f"is one of {', '.join(SEVERITIES)}"),
}


def _missing(name: str, what_for: str, *, of_permits: bool) -> Callable[[Context], Iterator[Found]]:
    def check(context: Context) -> Iterator[Found]:
        for policy in context.all if name == "title" else context.policies:
            wanted = policy.problem is None and (of_permits or policy.effect == "forbid")
            if wanted and name not in policy.annotations:
                yield Found(policy.written.span(), f"bears no @{name}: {what_for}", policy)

    return check


def _unknown(context: Context) -> Iterator[Found]:
    for policy in context.all:
        known = KNOWN if policy.kind == "policy" else (*KNOWN, *OF_INVARIANTS)
        for annotation in policy.written.annotations if policy.problem is None else ():
            if annotation.name not in known:
                close = difflib.get_close_matches(annotation.name, known, n=1)
                meant = f"did you mean @{close[0]}?" if close else f"there are @{', @'.join(known)}"
                yield Found(policy.written.span(annotation.where), f"@{annotation.name} is not known; {meant}", policy)


def _malformed(context: Context) -> Iterator[Found]:
    for policy in context.all:
        values = policy.annotations
        for annotation in policy.written.annotations if policy.problem is None else ():
            name, value = annotation.name, values.get(annotation.name, "")
            where = policy.written.span(annotation.where)
            if name in _FORMS and not _FORMS[name][0].fullmatch(value.strip()):
                yield Found(where, f"@{name} {_FORMS[name][1]}; found {value[:60]!r}", policy)
            elif name in KNOWN and name != "id" and not value.strip():
                yield Found(where, f"@{name} says nothing: write it out, or take it away", policy)


RULES: Final = (
    Rule(
        "missing-title",
        "warning",
        "A policy says in a sentence what it demands",
        _missing("title", "say in a sentence what it demands", of_permits=True),
    ),
    Rule(
        "missing-advice",
        "warning",
        "A forbid says what to do about it",
        _missing("advice", "say what whoever is refused can do about it", of_permits=False),
    ),
    Rule(
        "missing-severity",
        "warning",
        "A forbid says how much it matters",
        _missing("severity", f"say how much it matters: {', '.join(SEVERITIES)}", of_permits=False),
    ),
    Rule(
        "missing-owner",
        "warning",
        "A forbid says who answers for it",
        _missing("owner", "say who answers for it", of_permits=False),
    ),
    Rule("unknown-annotation", "warning", "An annotation is one that Licet reads", _unknown),
    Rule("malformed-annotation", "warning", "An annotation has the form in which Licet reads it", _malformed),
)
