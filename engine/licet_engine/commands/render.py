"""Answers, explanations and operations as text."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from licet_engine.commands.published import outcome_lines
from licet_engine.commands.text import (
    block,
    clean,
    labelled,
    member_name,
    micro_text,
    table,
    time_text,
    title_of,
    value_text,
    verdict,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from licet_engine.client_values import Answer, DecidingPolicy, Explanation, Operation

_MOST_PARTS = 8
_MOST_COLUMNS = 8
_CHECK = "check:"
_DIGEST = re.compile(r"\b([0-9a-f]{16})[0-9a-f]{48}\b")

COLUMNS: Mapping[str, Sequence[str]] = {
    "datasets": ("name", "state", "classification", "residency", "uses", "expires_at_ms", "rows"),
    "runs": ("name", "state", "environment", "region", "use", "started_by", "attempt", "created_at_ms"),
    "models": ("model", "version", "stage", "state", "tier", "run", "signed", "created_by", "created_at_ms"),
    "endpoints": ("name", "model", "state", "weights", "shadow", "region", "alarmed", "updated_at_ms"),
    "environments": ("name", "region", "runtimes_allowed"),
    "tenants": ("tenant", "region", "suspended", "devices", "environments", "created_at_ms"),
    "devices": ("uuid", "name", "memory_mib", "worker", "of_tenant", "operation_id", "leased_at_ms"),
    "tokens": ("id", "principal", "label", "expires_at_ms", "revoked_at_ms"),
    "break-glasses": ("tenant", "id", "state", "operator", "approved_by", "until_ms", "reviewed_by"),
    "people": ("name", "kind", "roles", "qualified", "active", "owner"),
    "approvals": ("kind", "model", "version", "track", "state", "verdict", "approver", "requested_by", "at_ms"),
    "inbox": ("version", "track", "on_behalf_of", "requested_by", "at_ms", "expires_at_ms", "binding", "reason"),
    "delegations": ("reviewer", "delegate", "track", "state", "until_ms", "reason"),
    "tickets": ("id", "state", "approved", "subjects", "as_of_ms", "fresh_until_ms"),
    "webhooks": ("name", "host", "events", "failures", "created_by", "created_at_ms"),
    "all-webhooks": ("name", "state", "host", "events", "failures", "created_at_ms", "removed_at_ms"),
    "issuers": (
        "name",
        "url",
        "account",
        "claims",
        "keys",
        "keys_as_of_ms",
        "removed_at_ms",
        "refused_at_ms",
        "refused_because",
    ),
    "messages": ("id", "webhook", "event", "state", "tries", "created_at_ms", "next_at_ms"),
    "holds": ("resource_type", "resource_name", "reason", "placed_by", "placed_at_ms", "lifted_at_ms"),
    "operations": ("id", "action", "resource", "state", "principal", "attempt", "updated_at_ms"),
    "decisions": ("id", "at_ms", "allowed", "action", "resource", "principal", "observed"),
    "bundles": ("digest_hex", "state", "author", "created_at_ms", "activated_at_ms", "activated_by"),
    "publications": ("id", "state", "bundle_hex", "published_by", "author", "created_at_ms", "ended_at_ms"),
}
"""What a list shows in text; JSON shows all of it, and below the list stands what is left out."""


def answer_lines(answer: Answer, explanation: Explanation | None = None) -> list[str]:
    """An answer, with why and what to do about it."""
    pending = explanation is not None and explanation.is_approval_pending
    word = verdict(allowed=answer.allowed, pending=pending)
    lines = [f"{word}  {clean(answer.action)} on {clean(answer.resource)}"]
    reports = {} if explanation is None else _reports(explanation.explanation, "deciding")
    # What the path to yes names is told there, with what to do, and not a second time.
    on_path = _on_path(explanation)
    for policy in answer.policies:
        lines += _policy_lines(policy, reports.get(policy.id), on_path, allowed=answer.allowed)
    if not answer.allowed and answer.is_explained and not answer.policies and not answer.errors:
        lines.append("  No policy permits this.")
        if explanation is not None:
            lines += _nearest_lines(explanation.explanation)
    if not answer.allowed and not answer.is_explained:
        lines.append("  No reasons are given: it may not exist, or its policies are not yours to read.")
    lines += [labelled("error", f"{e} could not be evaluated, and an error means no", indent=2) for e in answer.errors]
    lines += [labelled("observed", f"{o} would forbid it if it were enforced", indent=2) for o in answer.observed]
    if answer.conflict is not None:
        lines.append(labelled("but", f"it could not be done as things stand: {answer.conflict['detail']}", indent=2))
    if missing := [track for track in answer.missing_approvals if f"approval:{track}" not in on_path]:
        lines.append(labelled("missing approvals", ", ".join(missing), indent=2, label_chars=19))
    wanted = () if answer.allowed else (word for word in answer.requires if word not in on_path)
    if failing := [word.removeprefix(_CHECK) for word in wanted if word.startswith(_CHECK)]:
        lines.append(labelled("failing checks", ", ".join(failing), indent=2, label_chars=19))
    if explanation is not None and not answer.allowed:
        lines += path_lines(explanation)
    lines.append(labelled("decision", answer.decision_id, indent=2, label_chars=19 if not answer.allowed else 10))
    if answer.result:
        lines += block(answer.result, indent=2)
    return lines


def _on_path(explanation: Explanation | None) -> frozenset[str]:
    """What a path that leads to yes names."""
    path = {} if explanation is None else explanation.path
    return (
        frozenset(str(step.get("name")) for step in (path.get("steps") or ())) if path.get("possible") else frozenset()
    )


def _reports(explanation: Mapping[str, Any], name: str) -> dict[str, Mapping[str, Any]]:
    return {str(report.get("id")): report for report in explanation.get(name) or ()}


def _policy_lines(
    policy: DecidingPolicy, report: Mapping[str, Any] | None, on_path: frozenset[str], *, allowed: bool
) -> list[str]:
    head = click.style(clean(policy.id), bold=True)
    lines = [f"  {head}" + (f"  {clean(policy.title)}" if policy.title else "")]
    if allowed:
        return lines
    if report is not None:
        lines += _part_lines(report)
    if policy.advice:
        lines.append(labelled("advice", policy.advice, indent=4))
    if wanted := [word for word in policy.requires if word not in on_path]:
        lines.append(labelled("requires", ", ".join(wanted), indent=4))
    return lines


def _part_lines(report: Mapping[str, Any]) -> list[str]:
    """The parts on which a policy turned, with the values they looked at."""
    parts: list[Mapping[str, Any]] = list(report.get("failing") or ())
    if not parts:
        # A forbid without exceptions turned on what was true of it.
        clauses = [clause for clause in report.get("clauses") or () if clause.get("kind") == "when"]
        parts = [p for clause in clauses for p in clause.get("parts") or () if p.get("outcome") == "true"]
    lines = []
    for part in parts[:_MOST_PARTS]:
        outcome = part.get("outcome")
        word = "false" if outcome == "not-reached" and not part.get("supports") else outcome
        lines.append(labelled("because", f"{part.get('source')}  is {word}", indent=4))
        if part.get("message"):
            lines.append(labelled("", part["message"], indent=4))
        lines += [labelled("", _found(value), indent=4) for value in part.get("values") or ()]
    if len(parts) > _MOST_PARTS:
        lines.append(labelled("", f"and {len(parts) - _MOST_PARTS} parts more", indent=4))
    return lines


def _telling(values: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Values without those that others tell: what lies below what is absent, and a record of which members are shown."""
    absent = [str(value.get("path")) for value in values if value.get("found") is False]
    shown = [str(value.get("path")) for value in values]
    return [
        value
        for value, path in zip(values, shown, strict=True)
        if not any(path.startswith(f"{above}.") for above in absent)
        and not (_is_record(value.get("value")) and any(below.startswith(f"{path}.") for below in shown))
    ]


def _is_record(value: Any) -> bool:
    return isinstance(value, dict) and "__entity" not in value and "__extn" not in value


def _found(value: Mapping[str, Any]) -> str:
    """What stood at a place; a figure in millionths also as a decimal, a time also as people write it."""
    path, found = str(value.get("path") or ""), value.get("value")
    text = _DIGEST.sub(r"\1...", str(value.get("text") or f"{path} = {found}"))
    if type(found) is not int:
        return text
    if path.endswith("_ms"):
        return f"{text} ({time_text(found) if found else 'not set'})"
    return f"{text} ({micro_text(found)})" if path.endswith("_micro") else text


def _nearest_lines(explanation: Mapping[str, Any]) -> list[str]:
    nearest = explanation.get("nearest") or ()
    if not nearest:
        return []
    lines = ["  The nearest that would permit it:"]
    for report in nearest:
        title = f"  {clean(report['title'])}" if report.get("title") else ""
        lines.append(f"  {click.style(clean(report.get('id')), bold=True)}{title}")
        lines += _part_lines(report)
    return lines


def path_lines(explanation: Explanation) -> list[str]:
    """The path to yes."""
    path = explanation.path
    if explanation.explanation.get("role_permits") is False:
        principal, action = explanation.decision.get("principal"), explanation.decision.get("action")
        name = principal.get("id") if isinstance(principal, dict) else principal
        message = f"There is none: no role of {name or 'the asker'} permits {action or 'this'}."
        return [labelled("path to yes", message, indent=2, label_chars=19)]
    if not path:
        return []
    steps = path.get("steps") or ()
    if not path.get("possible") or not steps:
        message = path.get("message") or "No declared fact would do."
        return [labelled("path to yes", f"{message}{_still(path)}", indent=2, label_chars=19)]
    lines = ["  path to yes" + ("" if path.get("minimal") else " (perhaps not the shortest)")]
    for number, step in enumerate(steps, 1):
        name = step.get("name")
        lines.append(labelled(f"{number}.", f"{step.get('describe') or name}  [{name}]", indent=4, label_chars=4))
    if conflict := path.get("conflict"):
        told = f"Even then it could not be done as things stand: {conflict.get('detail')}"
        lines.append(labelled("but", told, indent=4, label_chars=4))
    return lines


def _still(path: Mapping[str, Any]) -> str:
    """What denies even with everything that could be got."""
    still = path.get("still")
    if path.get("possible") or not isinstance(still, dict):
        return ""
    named = [*(still.get("reasons") or ()), *(still.get("errors") or ())]
    if not named:
        return " Then no policy would permit it to this principal."
    return f" What denies it then: {', '.join(map(str, named))}."


def explanation_lines(explanation: Explanation) -> list[str]:
    """A decision's explanation in full."""
    body = explanation.explanation
    decision = explanation.decision
    allowed = (decision.get("decision") or body.get("decision")) == "allow"
    resource = decision.get("resource") or {}
    what = f"{decision.get('action', '')} on {resource.get('id', '') if isinstance(resource, dict) else resource}"
    lines = [
        f"{verdict(allowed=allowed)}  {clean(what)}",
    ]
    # What was never recorded, as a test, has neither.
    if decision.get("id"):
        lines.append(labelled("decision", decision["id"], indent=2, label_chars=10))
    if isinstance(decision.get("principal"), dict):
        time_ms = decision.get("time_ms")
        asker = f"{decision['principal'].get('id')}" + (f", {time_text(time_ms)}" if isinstance(time_ms, int) else "")
        lines.append(labelled("asked by", asker, indent=2, label_chars=10))
    if body.get("message"):
        lines.append(labelled("", body["message"], indent=2, label_chars=0))
    for report in body.get("deciding") or ():
        lines.append("")
        lines += _report_lines(report)
    if body.get("nearest"):
        lines += ["", "  No policy permits this. The nearest that would:"]
        for report in body["nearest"]:
            lines.append("")
            lines += _report_lines(report)
    for report in body.get("watched") or ():
        lines += ["", "  Observed, not enforced; it would have denied:"]
        lines += _report_lines(report)
    if not allowed:
        path = path_lines(explanation)
        lines += ["", *path] if path else []
    return lines + (["", *_now_lines(explanation)] if explanation.now else [])


def _now_lines(explanation: Explanation) -> list[str]:
    """What would be decided now; its path where it is another than that of then."""
    now = explanation.now
    is_allowed = now.get("decision") == "allow"
    because = [*(now.get("errors") or ()), *(now.get("reasons") or ())]
    told = f"it would be {'allowed' if is_allowed else 'denied'}, by {', '.join(map(str, because)) or 'no permit'}"
    lines = [labelled("now", told, indent=2, label_chars=10)]
    if kept := now.get("kept"):
        lines.append(
            labelled("", f"as recorded, for they are not there: {', '.join(map(str, kept))}", indent=12, label_chars=0)
        )
    path = now.get("path") or {}
    if path and (path.get("steps"), path.get("still")) != (
        explanation.path.get("steps"),
        explanation.path.get("still"),
    ):
        lines += path_lines(replace(explanation, path=path))
    return lines


def _report_lines(report: Mapping[str, Any]) -> list[str]:
    mode = "" if report.get("mode") in {None, "enforce"} else f", {report['mode']}"
    origin = f"({report.get('effect')}, from {report.get('source')}{mode})"
    lines = [f"  {click.style(clean(report.get('id')), bold=True)}  {clean(origin)}"]
    if report.get("title"):
        lines.append(labelled("", report["title"], indent=4, label_chars=0))
    # The scope is worth a line only where it is what failed.
    lines += [
        labelled("scope", f"{part.get('source')}  does not hold", indent=4, label_chars=10)
        for part in report.get("scope") or ()
        if not part.get("supports")
    ]
    for clause in report.get("clauses") or ():
        label = str(clause.get("kind"))
        joiner = str(clause.get("joiner"))
        for number, part in enumerate(clause.get("parts") or ()):
            head = label if number == 0 else f"  {joiner}"
            lines.append(labelled(head, f"{part.get('source')}", indent=4, label_chars=10))
            mark = {"true": "is true", "false": "is false", "error": "errs"}.get(
                str(part.get("outcome")), "was not reached"
            )
            found = list(map(_found, _telling(part.get("values") or ())))
            if len(found) == 1:
                mark, found = f"{mark}: {found[0]}", []
            lines.append(labelled("", mark, indent=4, label_chars=14))
            lines += [labelled("", value, indent=4, label_chars=16) for value in found]
    if report.get("advice"):
        lines.append(labelled("advice", report["advice"], indent=4, label_chars=10))
    if report.get("requires"):
        lines.append(labelled("requires", ", ".join(map(str, report["requires"])), indent=4, label_chars=10))
    if report.get("control"):
        lines.append(labelled("control", report["control"], indent=4, label_chars=10))
    return lines


def operation_lines(operation: Operation) -> list[str]:
    """An operation and what came of it."""
    colour = {"done": "green", "failed": "red", "refused": "red"}.get(operation.state, "cyan")
    what = f"{clean(operation.action)} on {clean(operation.resource)}  " if operation.action else ""
    lines = [f"{click.style(clean(operation.state), fg=colour, bold=True)}  {what}operation {clean(operation.ref)}"]
    if operation.attempt > 1:
        lines.append(labelled("attempt", operation.attempt, indent=2))
    if operation.error:
        lines.append(labelled("error", f"{operation.error.get('message')} [{operation.error.get('code')}]", indent=2))
    if operation.progress and not operation.is_final:
        lines.append(labelled("progress", progress_text(operation.progress), indent=2))
    results = operation.result.get("results") if operation.action == "model.check" else None
    if isinstance(results, list):
        lines += check_lines([found for found in results if isinstance(found, dict)])
    if operation.action == "policy.publish" and operation.is_final and operation.result:
        return lines + outcome_lines(operation.result)
    if operation.result:
        lines += block(operation.result, indent=2)
    return lines


def check_lines(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What checks found: a line for each, with its figures, and below it why it failed."""
    lines = []
    for found in results:
        passed = found.get("passed") is True
        word = click.style("pass", fg="green") if passed else click.style("FAIL", fg="red", bold=True)
        lines.append(f"  {clean(found.get('kind')):<15} {word}  {check_figures(found)}")
        reasons = [] if passed else (found.get("detail") or {}).get("reasons") or ()
        lines += [labelled("", reason, indent=2, label_chars=16) for reason in reasons]
    return lines


def check_figures(found: Mapping[str, Any]) -> str:
    """The figures of a check, those that have one with their interval."""
    detail = found.get("detail") or {}
    told = []
    for name, value in (found.get("figures") or {}).items():
        plain = str(name).removesuffix("_micro")
        figure = f"{value / 1e6:.3f}" if plain != name else value_text(str(name), value)
        interval = detail.get(f"{plain}_interval_micro")
        told.append(
            f"{clean(plain)} {figure}" + (f" [{interval[0] / 1e6:.3f}, {interval[1] / 1e6:.3f}]" if interval else "")
        )
    return "; ".join(told)


def progress_text(progress: Mapping[str, Any]) -> str:
    """What an operation last reported, in one line."""
    flat: dict[str, Any] = {}
    for name, value in progress.items():
        inside = value if isinstance(value, dict) else None
        flat |= {str(name): value} if inside is None else {member_name(str(name), k): v for k, v in inside.items()}
    words = []
    for name, value in flat.items():
        total = flat.get(f"{name}s", flat.get(f"{name}_total"))
        if name.endswith("s") and name[:-1] in flat:
            continue
        figure = f"{value}/{total}" if isinstance(total, int) else value_text(name, value, short=True)
        words.append(f"{clean(name.removesuffix('_micro').replace('_', ' '))} {figure}")
    return ", ".join(words)


def list_lines(what: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows of a list."""
    if not rows:
        return [f"no {what}"]
    present = {name for row in rows for name in row}
    columns = [name for name in COLUMNS.get(what, ()) if name in present] or list(rows[0])[:_MOST_COLUMNS]
    lines = table(rows, columns)
    # What says nothing in any row is missed by nobody.
    if hidden := sorted(name for name in present - set(columns) if any(_says(row.get(name)) for row in rows)):
        told = f"{', '.join(title_of(name).replace('_', ' ') for name in hidden)}; --format json shows all"
        lines.append(labelled("not shown:", told, label_chars=11))
    return lines


def _says(value: Any) -> bool:
    return value not in (None, "", [], {})
