"""Publications of policies as text: what came of one, and what a bundle is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from licet_engine.commands.text import clean, labelled, request_lines, time_text, value_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_PREFIX_CHARS = 8
_LABEL_CHARS = 14
_COLOUR = {"error": "red", "warning": "yellow", "note": "blue"}


def outcome_lines(result: Mapping[str, Any]) -> list[str]:
    """The result of an operation that was to publish: what to type next, or what was found."""
    bundle, publication = str(result.get("bundle") or ""), str(result.get("publication") or "")
    tenant = publication.partition("/")[0]
    lines = [labelled("bundle", bundle, indent=2, label_chars=_LABEL_CHARS)] if bundle else []
    if result.get("state") == "published":
        lines.append(labelled("attestation", result.get("attestation"), indent=2, label_chars=_LABEL_CHARS))
        if result.get("in_force"):
            return [*lines, "  It is in force already: nothing is left to do."]
        lines.append("  Somebody who did not write it goes on with:")
        lines.append(f"    licet policy show {clean(tenant)}/{clean(bundle[:_PREFIX_CHARS])}")
        lines.append(f"    licet policy activate {clean(tenant)}/{clean(bundle[:_PREFIX_CHARS])}")
        return lines
    lines += finding_lines(result.get("findings") or ())
    if publication:
        # Whole: these IDs are made in the order of time, and begin alike.
        lines.append(f"  All that was found: licet policy show {clean(publication)}")
    return lines


def finding_lines(findings: Iterable[Mapping[str, Any]], left_out: int = 0) -> list[str]:
    """Findings as compilers write theirs, each with its explanation, or with the request that refutes as `policy prove` shows it."""
    lines = []
    for one in findings:
        place = clean(one.get("file") or "")
        if place and one.get("line"):
            place += f":{clean(one['line'])}:{clean(one.get('column') or 1)}"
        severity = clean(one.get("severity"))
        word = click.style(severity, fg=_COLOUR.get(severity, "red"), bold=True)
        told = f"{word}: {clean(one.get('message'))} [{clean(one.get('step'))}, {clean(one.get('rule'))}]"
        lines.append(f"  {place}: {told}" if place else f"  {told}")
        if one.get("shown"):
            lines += request_lines(one["shown"], indent=4)
        else:
            lines += [f"    {line}" for line in clean(one.get("detail") or "", lines=True).splitlines()]
    return [*lines, f"  and {left_out} more"] if left_out else lines


def _passed_over(one: Mapping[str, Any]) -> str:
    about = one.get("policy") or one.get("place")
    return (
        f"{clean(one.get('rule'))} of {clean(about)}: {clean(one.get('message'))} Because: {clean(one.get('reason'))}"
    )


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """What an examination counted, a line for each step."""
    lint, tests, coverage = (report.get(name) or {} for name in ("lint", "tests", "coverage"))
    proofs = report.get("proofs") or {}
    told: list[tuple[str, str]] = []
    if lint:
        more = f", {lint.get('switched_off')} passed over for a reason" if lint.get("switched_off") else ""
        told.append(("lint", f"{lint.get('errors')} errors and {lint.get('warnings')} warnings{more}"))
        told += [("passed over", _passed_over(one)) for one in lint.get("passed_over") or ()]
    if tests:
        told.append(
            ("tests", f"{tests.get('passed')} of {tests.get('run')} pass" if tests.get("run") else "there are none")
        )
    if coverage:
        told.append(("coverage", f"{coverage.get('percent')} %, demanded are {coverage.get('threshold')} %"))
    if proofs:
        all_of_them = proofs.get("invariants") or ()
        told.append(("proofs", f"{proofs.get('proved')} of {len(all_of_them)} proved"))
    if tools := report.get("tools"):
        told.append(("by", value_text("", tools)))
    return [labelled(label, text, indent=2, label_chars=_LABEL_CHARS) for label, text in told]


def bundle_lines(tenant: str, shown: Mapping[str, Any]) -> list[str]:
    """A bundle, or a publication that came to none, in short."""
    publication: Mapping[str, Any] = shown.get("publication") or {}
    report: Mapping[str, Any] = publication.get("report") or {}
    bundle = str(shown.get("bundle") or publication.get("bundle_hex") or "")
    state = str(shown.get("state") or publication.get("state"))
    named = (
        f"bundle {tenant}/{bundle[:_PREFIX_CHARS]}" if "bundle" in shown else f"publication {publication.get('ref')}"
    )
    lines = [f"{click.style(clean(named), bold=True)}  {clean(state)}"]
    rows: list[tuple[str, Any]] = [("digest", bundle or "none: no bundle could be composed")]
    if publication:
        by = f"{publication.get('published_by')}, {time_text(int(publication.get('created_at_ms') or 0))}"
        author = publication.get("author")
        is_other = publication.get("published_by") != f"{tenant}/{author}"
        rows.append(("published by", by + (f", for {author}" if is_other else "")))
        rows.append(("project", publication.get("project_hex")))
    elif shown.get("activated_by") or not shown.get("activated_at_ms"):
        rows.append(("author", shown.get("author")))
    if shown.get("activated_at_ms"):
        by = shown.get("activated_by") or "came with the tenant"
        # One that was put aside was in force once; it may have been published again since.
        label, since = ("in force", "since ") if state == "active" else ("was in force", "from ")
        rows.append((label, f"{by}, {since}{time_text(int(shown['activated_at_ms']))}"))
    lines += [labelled(label, text, indent=2, label_chars=_LABEL_CHARS) for label, text in rows]
    lines += _part_lines(shown)
    if report:
        lines += report_lines(report)
        lines += finding_lines(report.get("findings") or (), int(report.get("findings_left_out") or 0))
    else:
        lines.append(labelled("examination", _unpublished(state, shown), indent=2, label_chars=_LABEL_CHARS))
    if attested := shown.get("attestation_hex") or publication.get("attestation_hex"):
        lines.append(labelled("attestation", attested, indent=2, label_chars=_LABEL_CHARS))
    if state == "published":
        lines.append(
            f"  Somebody who did not write it goes on with: licet policy activate {clean(tenant)}/{clean(bundle[:_PREFIX_CHARS])}"
        )
    return lines


def _unpublished(state: str, shown: Mapping[str, Any]) -> str:
    """How far what was not published, or not yet, is examined."""
    if state == "examining":
        return "being examined"
    if not shown.get("attestation_hex"):
        return "not yet: what a tenant comes with is proved some seconds later; licet doctor tells if it is not"
    if shown.get("proved"):
        return "everything that must hold of it is proved"
    return "something that must hold of it does not: the attestation says what"


def _part_lines(shown: Mapping[str, Any]) -> list[str]:
    """The packs with their parameters, and the policies that are the tenant's own."""
    lines = []
    for chosen in shown.get("packs") or ():
        text = f"{chosen.get('name')} {chosen.get('version')}, {chosen.get('mode')}: {value_text('', chosen.get('parameters'))}"
        lines.append(labelled("pack", text, indent=2, label_chars=_LABEL_CHARS))
    own = [one for one in shown.get("policies") or () if one.get("source") == "tenant"]
    for one in own:
        mode = "" if one.get("mode") == "enforce" else f", {one.get('mode')}"
        lines.append(labelled("own policy", f"{one.get('id')}{mode}", indent=2, label_chars=_LABEL_CHARS))
    if "policies" in shown:
        others = len(shown["policies"]) - len(own)
        lines.append(labelled("others", f"{others} of the platform and its packs", indent=2, label_chars=_LABEL_CHARS))
    return lines
