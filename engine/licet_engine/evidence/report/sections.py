"""The parts of the page that tell what happened: each a heading, a sentence that says what is seen, and figures.

Rules kept here:

- Bounded: the newest or the most frequent, and how many more there are.
- What is not on record is said to be not on record.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from licet_attestations import archive
from licet_attestations.statement import is_sha256_hex
from licet_engine.evidence.contents import Scope
from licet_engine.evidence.report import pictures
from licet_engine.evidence.report.bundles import Summary
from licet_engine.evidence.report.counting import Kept, Tally
from licet_engine.evidence.report.lineage import Lineage, Mark, Version
from licet_engine.evidence.report.markup import Markup, attested, code, el, name, plural, table, when
from licet_engine.evidence.report.story import Story, Told

_ROWS: Final = 40
_FEW: Final = 15
MAX_LINEAGES: Final = 24
_MAX_DIGITS: Final = 12


def section(key: str, heading: str, lead: str, *parts: str | Iterable[str]) -> Markup:
    """One part of the page."""
    title = el("h2", {"id": f"{key}-heading"}, heading)
    said = [el("p", {"class": "lead"}, lead)] if lead else []
    return el("section", {"id": key, "aria-labelledby": f"{key}-heading"}, title, said, *parts)


def word(outcome: str) -> Markup:
    """An outcome, as a word in a frame."""
    kind = {
        "allow": "allow",
        "approved": "allow",
        "done": "allow",
        "deny": "deny",
        "rejected": "deny",
        "failed": "deny",
    }
    kind |= {"rolled-back": "deny", "refused": "deny"}
    return el("span", {"class": f"word {kind.get(outcome, 'plain')}"}, outcome[:40] or "none")


def folded(summary: str, *parts: str) -> Markup:
    """What is shown when it is asked for."""
    return el("details", None, el("summary", None, summary), *parts)


def _newest(kept: Kept[Told], most: int = _ROWS) -> tuple[list[Told], int]:
    listed = list(kept)[-most:]
    return listed, kept.total - len(listed)


# --- What happened ------------------------------------------------------------------------------------------------------


def happened(story: Story) -> Markup:
    """Decisions over time, and by action and principal."""
    lead = "Every question that was put to policy, when, and how it was answered. Bars upward were allowed, downward denied."
    parts: list[str] = []
    if story.times.counts:
        keys = (
            ("allow", "allowed"),
            ("deny", "denied"),
            ("foreign", "tried by other tenants"),
            ("erased", "record erased"),
        )
        legend = (el("li", None, el("span", {"class": f"key {kind}"}), said) for kind, said in keys)
        rows = ((when(at_ms), *(str(counts[kind]) for kind, _ in keys)) for at_ms, counts in story.times.each())
        figures = table("Decisions by time", ("from", *(said for _, said in keys)), rows)
        wide = el("div", {"class": "wide"}, pictures.decisions(story.times))
        parts = [wide, el("ul", {"class": "keys"}, legend), folded("The figures of this picture", figures)]
    return section(
        "happened",
        "What happened",
        lead,
        parts,
        el(
            "div",
            {"class": "two"},
            _outcomes("By action", "action", story.actions),
            _outcomes("By principal", "principal", story.principals),
        ),
    )


def _outcomes(caption: str, head: str, tally: Tally) -> Markup:
    shown, names, entries = tally.top(_FEW)
    rows = ((name(each.name), str(each.outcomes["allow"]), str(each.outcomes["deny"])) for each in shown)
    rest = f" ({plural(entries, 'decision')})"
    return el("div", None, table(caption, (head, "allowed", "denied"), rows, names, rest=rest))


def _done(story: Story) -> Markup:
    listed, more = _newest(story.done)
    rows = (
        (
            when(t.row.time_ms),
            name(t.row.principal),
            name(t.row.action),
            name(t.row.resource),
            _policies(t.reasons),
            code(t.row.bundle),
        )
        for t in listed
    )
    heads = ("time", "who", "was allowed", "on", "by policy", "of bundle")
    return table("Allowed, and changed something", heads, rows, more)


def _policies(ids: Iterable[str]) -> Markup:
    listed = list(ids)
    parts: list[str] = []
    for each in listed[:4]:
        parts += [el("br"), name(each)] if parts else [name(each)]
    if len(listed) > len(listed[:4]):
        parts += [el("br"), f"and {len(listed) - 4} more"]
    return el("span", None, parts)


# --- Who allowed what ---------------------------------------------------------------------------------------------------


def approvals(story: Story) -> Markup:
    """Verdicts, and what became of them."""
    lead = (
        "An approval is given for the exact model, data, evaluations and policies (the binding). If any of them changes it is void."
        " A guardrail, which no tenant can remove, lets nobody approve what they made."
    )
    listed, more = _newest(story.approvals)
    heads = ("time", "what", "version", "track", "by", "in the place of", "reason", "binding")
    rows = (
        (
            when(t.row.time_ms),
            word(_said(t.more, "verdict") or t.row.action),
            name(t.row.resource),
            name(_said(t.more, "track")),
            name(t.row.principal),
            name(_said(t.more, "on_behalf_of")),
            name(_said(t.more, "reason") or _said(t.more, "changed"), 160),
            code(_said(t.more, "binding")),
        )
        for t in listed
    )
    return section("approvals", "Who allowed what", lead, table("Approvals", heads, rows, more), _done(story))


def _said(more: Mapping[str, Any], member: str) -> str:
    value = more.get(member)
    return value if isinstance(value, str) else "" if value is None else str(value)


# --- Under which policies -----------------------------------------------------------------------------------------------


def policies(story: Story, bundles: Mapping[str, Summary]) -> Markup:
    """Which bundles decided, when, and what is in them."""
    lead = (
        "All policies that decide together are one bundle, named by its digest. Every decision names the bundle it was made under;"
        " each is in this archive whole, and decisions can be evaluated again with it."
    )
    parts: list[str] = []
    if story.spans:
        parts.append(el("div", {"class": "wide"}, pictures.policies(story)))
    shown = list(story.bundles.items())[-_FEW:]
    rows = (
        (
            el("a", {"href": archive.bundle_name(digest)}, el("code", None, digest[:12]))
            if is_sha256_hex(digest)
            else code(digest),
            _packs(bundles.get(digest)),
            _sources(bundles.get(digest)),
            str(counts["allow"]),
            str(counts["deny"]),
        )
        for digest, counts in shown
    )
    more = len(story.bundles) - len(shown)
    parts.append(table("Policies in force", ("bundle", "packs", "policies", "allowed", "denied"), rows, more))
    listed, more = _newest(story.policies)
    changes = (
        (
            when(t.row.time_ms),
            name(t.row.action),
            name(t.row.principal),
            code(t.row.bundle),
            code(_said(t.more, "before")),
        )
        for t in listed
    )
    parts.append(table("Changes of policies", ("time", "what", "by", "bundle", "before"), changes, more))
    return section("policies", "Under which policies", lead, parts)


def _packs(summary: Summary | None) -> Markup:
    if summary is None or not summary.packs:
        return el("span", {"class": "none"}, "none")
    parts: list[str] = []
    for pack, version, mode in summary.packs:
        parts += [el("br")] if parts else []
        parts += [name(pack), f" {version[:20]} ", word(mode)]
    return el("span", None, parts)


def _sources(summary: Summary | None) -> str:
    if summary is None:
        return "not read"
    words = (("guardrail", "guardrails"), ("role", "role grants"), ("pack", "of packs"), ("tenant", "own"))
    return ", ".join(f"{summary.sources[source]} {said}" for source, said in words if summary.sources[source])


# --- On which data ------------------------------------------------------------------------------------------------------


def lineages(scope: Scope, found: Lineage) -> Markup:
    """A picture for each version."""
    lead = (
        "Drawn from the signed attestations of this archive alone: a run leads to a version where it made every file of it, by digest."
        " What was attested before this window is not drawn."
    )
    versions = sorted(found.versions.values(), key=lambda version: _natural(version.name))
    shown = versions[-MAX_LINEAGES:]
    parts: list[str] = []
    for number, version in enumerate(shown):
        parts += [
            el("h3", None, name(version.name), " ", code(version.model_hex)),
            el("div", {"class": "wide"}, pictures.lineage(f"lineage-{number}", version, found, scope.tenant)),
            folded("What attests it", _attested(version, found, scope.first)),
        ]
    left_out = len(versions) - len(shown) + len(found.left_out)
    if left_out:
        parts.append(el("p", {"class": "more"}, f"and {plural(left_out, 'older version')}, see {archive.SHEET}"))
    if not shown:
        parts.append(el("p", {"class": "nothing"}, "Model versions: none attested in this archive."))
    return section("lineage", "On which data", lead, parts)


def _natural(name_: str) -> tuple[str, int, str]:
    """Where a version stands among others: by model, then by number."""
    model, _, number = name_.rpartition("@")
    return (
        (model, int(number), "")
        if number.isascii() and number.isdigit() and len(number) < _MAX_DIGITS
        else (name_, 0, number)
    )


def _attested(version: Version, found: Lineage, first: int) -> Markup:
    def rows() -> Iterable[tuple[str, ...]]:
        for run in found.runs_of(version):
            data = ", ".join(dataset for dataset, _ in run.datasets)
            yield (
                "training run",
                name(run.name),
                name(data),
                name(run.finished),
                attested(run.attestation, run.index, first),
            )
        kinds = (("check", version.checks), ("verdict", version.approvals), ("promotion", version.promotions))
        for said, marks in (*kinds, ("endpoint", version.deployments)):
            for mark in marks:
                yield (
                    said,
                    name(mark.name),
                    name(mark.detail),
                    name(_time(mark)),
                    attested(mark.attestation, mark.index, first),
                )

    more = sum(kept.more for kept in (version.checks, version.approvals, version.promotions, version.deployments))
    return table("Attestations of this version", ("what", "name", "says", "time", "attestation"), rows(), more)


def _time(mark: Mark) -> str:
    return mark.at[:19].replace("T", " ")


# --- What was refused ---------------------------------------------------------------------------------------------------


def refused(story: Story, bundles: Mapping[str, Summary]) -> Markup:
    """What policy refused, and whom."""
    lead = "What policies refused, and what policies that only observe would have refused."
    titles: dict[str, str] = {}
    for summary in bundles.values():
        titles |= summary.titles
    shown, names, entries = story.refusing.top(_FEW)
    by_policy = (
        (
            name(each.name),
            name(titles.get(each.name, ""), 160),
            str(each.outcomes["deny"]),
            str(each.outcomes["observed"]),
        )
        for each in shown
    )
    listed, more = _newest(story.denied)
    denied = (
        (when(t.row.time_ms), name(t.row.principal), name(t.row.action), name(t.row.resource), _policies(t.reasons))
        for t in listed
    )
    return section(
        "refused",
        "What was refused",
        lead,
        table(
            "Policies that refused",
            ("policy", "what it says", "refused", "would have"),
            by_policy,
            names,
            rest=f" ({plural(entries, 'time')})",
        ),
        table("Denied to the tenant's own", ("time", "who", "asked for", "on", "refused by"), denied, more),
    )


# --- Others -------------------------------------------------------------------------------------------------------------


def others(story: Story) -> Markup:
    """What others tried, and what operators did."""
    listed, more = _newest(story.attempts)
    attempts = (
        (
            when(t.row.time_ms),
            name(t.row.actor),
            name(t.row.principal),
            name(t.row.action),
            name(t.row.resource),
            word(t.row.outcome or "erased"),
        )
        for t in listed
    )
    seen, more_seen = _newest(story.glass)
    glass = (
        (
            when(t.row.time_ms),
            name(t.row.action),
            name(t.row.principal),
            name(_said(t.more, "what")),
            name(_said(t.more, "reason"), 160),
        )
        for t in seen
    )
    done, more_done = _newest(story.operators)
    operators = (
        (
            when(t.row.time_ms),
            name(t.row.principal),
            name(t.row.action),
            name(t.row.resource),
            word(t.row.outcome or t.row.kind),
        )
        for t in done
    )
    return section(
        "others",
        "Others at the wall",
        "What principals of other tenants tried on what is this tenant's, and what operators of the platform did to it.",
        table("Attempts of other tenants", ("time", "tenant", "who", "asked for", "on", "answer"), attempts, more),
        table("Operators", ("time", "who", "what", "on", "outcome"), operators, more_done),
        table("Break-glass", ("time", "what", "by", "looked at", "reason"), glass, more_seen),
    )


def troubles(story: Story) -> Markup:
    """Returns of traffic, holds, and operations that came to nothing."""
    listed, more = _newest(story.traffic)
    traffic = (
        (
            when(t.row.time_ms),
            name(t.row.resource),
            word(t.row.outcome),
            name(_said(t.more, "kind") or _said(t.more, "reason")),
            name(_cause(t.more), 160),
        )
        for t in listed
    )
    held, more_held = _newest(story.holds)
    holds = (
        (
            when(t.row.time_ms),
            name(t.row.action),
            name(f"{_said(t.more, 'kind')} {_said(t.more, 'name')}".strip()),
            name(_said(t.more, "reason"), 160),
        )
        for t in held
    )
    broken, more_broken = _newest(story.failed)
    failed = (
        (
            when(t.row.time_ms),
            name(t.row.action),
            name(t.row.resource),
            word(t.row.outcome),
            name(_said(t.more, "code")),
            name(_said(t.more, "message"), 200),
        )
        for t in broken
    )
    return section(
        "troubles",
        "Alarms, holds and failures",
        "Where traffic went back by itself or by hand, what is kept from being deleted, and what was begun and not completed.",
        table("Alarms and roll-backs", ("time", "endpoint", "what", "alarm or reason", "measured"), traffic, more),
        table("Holds", ("time", "what", "on", "reason"), holds, more_held),
        table(
            "Operations that were not completed",
            ("time", "operation", "on", "ended", "code", "why"),
            failed,
            more_broken,
        ),
    )


def _cause(more: Mapping[str, Any]) -> str:
    figures = [f"{member} {more[member]}" for member in ("value", "threshold", "count", "window_s") if member in more]
    return "; ".join(filter(None, (_said(more, "detail"), ", ".join(figures))))
