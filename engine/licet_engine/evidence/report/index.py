"""``index.json``: what is in an archive, in figures, for programs that are not to read all of it.

Rules kept here:

- Canonical JSON, and bounded whatever the log: every list says how much more there is.
- Names are as everywhere in what is made for people: unseen characters by their numbers, long ones cut. Exact ones are in the records.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from licet_attestations import canonical
from licet_engine.evidence.contents import Scope
from licet_engine.evidence.report.bundles import Summary
from licet_engine.evidence.report.counting import Kept, Tally
from licet_engine.evidence.report.reading import Reading
from licet_engine.evidence.report.story import Span, Story, Told
from licet_engine.evidence.report.text import moment, visible

_MOST: Final = 100
_MAX_SPANS: Final = 200


def index_bytes(reading: Reading) -> bytes:
    """The file."""
    scope, isolation, story, lineage = reading.scope, reading.isolation, reading.story, reading.lineage
    return canonical.dumps(
        {
            "v": 1,
            "scope": scope_json(scope),
            "entries": {
                "count": story.entries,
                "first_at": None if story.first_ms is None else moment(story.first_ms),
                "last_at": None if story.last_ms is None else moment(story.last_ms),
                "erased": _counts(story.erased),
                "kinds": _tally(story.kinds),
            },
            "isolation": {
                "answer": visible(str(isolation.get("answer", ""))),
                "sentence": visible(str(isolation.get("sentence", "")), 1000),
            },
            "decisions": {
                "own": _counts(story.decided),
                "foreign": _counts(story.foreign),
                "by_action": _tally(story.actions),
                "by_principal": _tally(story.principals),
                "by_policy_that_refused": _tally(story.refusing),
                "foreign_by_tenant": _tally(story.tenants),
            },
            "bundles": _bundles(story, reading.bundles),
            "approvals": _list(story.approvals, _approval),
            "operations": _tally(story.operations),
            "operations_not_done": _list(story.failed, _operation),
            "traffic": _list(story.traffic, _traffic),
            "attestations": _tally(story.attestations),
            "versions": {
                "list": [
                    {
                        "version": visible(v.name),
                        "model": v.model_hex,
                        "runs": [visible(run.name) for run in lineage.runs_of(v)[:3]],
                        "checks": v.checks.total,
                        "approvals": v.approvals.total,
                        "promotions": [visible(mark.name) for mark in v.promotions],
                        "deployments": v.deployments.total,
                    }
                    for v in list(lineage.versions.values())[-_MOST:]
                ],
                "more": max(0, len(lineage.versions) - _MOST) + len(lineage.left_out),
            },
        }
    )


def scope_json(scope: Scope) -> dict[str, Any]:
    """What an archive is of."""
    return {
        "instance": visible(scope.instance),
        "tenant": visible(scope.tenant),
        "origin": visible(scope.origin),
        "first": scope.first,
        "end": scope.end,
        "log_size": scope.size,
        "log_root": scope.root_hex,
        "from": None if scope.from_ms is None else moment(scope.from_ms),
        "to": None if scope.to_ms is None else moment(scope.to_ms),
        "exported_at": moment(scope.exported_at_ms),
    }


def _counts(counts: Counter[str]) -> dict[str, int]:
    return {name: count for name, count in sorted(counts.items()) if name}


def _tally(tally: Tally) -> dict[str, Any]:
    shown, names, entries = tally.top(_MOST)
    return {
        "list": [
            {"name": visible(each.name), "count": each.total, **({"outcomes": counts} if counts else {})}
            for each in shown
            for counts in (_counts(each.outcomes),)
        ],
        "more": {"names": names, "entries": entries},
    }


def _list(kept: Kept[Told], to_json: Any) -> dict[str, Any]:
    newest = list(kept)[-_MOST:]
    return {"list": [to_json(told) for told in newest], "more": kept.total - len(newest)}


def _entry(told: Told) -> dict[str, Any]:
    return {"entry": told.row.index, "at": moment(told.row.time_ms)}


def _approval(told: Told) -> dict[str, Any]:
    more = told.more
    return _entry(told) | {
        "event": visible(told.row.action),
        "who": visible(told.row.principal),
        "version": visible(told.row.resource),
        "decision": visible(told.row.decision),
        **{name: visible(str(more[name])) for name in ("track", "verdict", "binding", "on_behalf_of") if name in more},
    }


def _operation(told: Told) -> dict[str, Any]:
    return _entry(told) | {
        "action": visible(told.row.action),
        "resource": visible(told.row.resource),
        "operation": visible(told.row.operation),
        "state": visible(told.row.outcome),
        **({"code": visible(str(told.more["code"]))} if "code" in told.more else {}),
    }


def _traffic(told: Told) -> dict[str, Any]:
    return _entry(told) | {
        "endpoint": visible(told.row.resource),
        "event": visible(told.row.outcome),
        **{f"cause_{name}": visible(str(told.more[name])) for name in ("kind", "reason") if name in told.more},
    }


def _bundles(story: Story, bundles: Mapping[str, Summary]) -> dict[str, Any]:
    shown = dict(list(story.bundles.items())[:_MOST])
    return {
        "list": [_bundle(digest, counts, bundles.get(digest)) for digest, counts in shown.items()],
        "more": len(story.bundles) - len(shown),
        "intervals": [_span(span) for span in list(story.spans)[-_MAX_SPANS:]],
        "more_intervals": max(0, len(story.spans) - _MAX_SPANS) + story.uncounted_spans,
        "decisions_not_counted": story.uncounted_bundles,
    }


def _bundle(digest_hex: str, counts: Counter[str], summary: Summary | None) -> dict[str, Any]:
    told: dict[str, Any] = {"digest": visible(digest_hex), "decisions": _counts(counts)}
    if summary is not None:
        told |= {
            "packs": [_pack(pack) for pack in summary.packs],
            "more_packs": summary.packs_more,
            "policies": _counts(summary.sources),
        }
    return told


def _pack(pack: Iterable[str]) -> dict[str, str]:
    name, version, mode = map(visible, pack)
    return {"name": name, "version": version, "mode": mode}


def _span(span: Span) -> dict[str, Any]:
    return {
        "bundle": visible(span.bundle),
        "first_entry": span.first,
        "last_entry": span.last,
        "first_at": moment(span.first_ms),
        "last_at": moment(span.last_ms),
        "decisions": span.decisions,
    }
