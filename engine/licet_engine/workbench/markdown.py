"""A comparison and a replay as Markdown, for the description of a pull request.

Rules kept here: names are foreign, so each stands in a code span or a fenced block from which it cannot break out; what is long is
folded; and the first line says what somebody who reads no further must know.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from licet_engine.workbench.diffing import RELATIONS, counted
from licet_engine.workbench.proving import counterexample_json

if TYPE_CHECKING:
    from licet_engine.workbench.diffing import ActionDiff
    from licet_engine.workbench.replay import ReplayReport

_MAX_SHOWN: Final = 50
_MAX_SPAN_CHARS: Final = 200


def code(text: str) -> str:
    """``text`` as a code span in one line, whatever is in it."""
    flat = re.sub(r"\s+", " ", "".join(char if char.isprintable() else "?" for char in text))[:_MAX_SPAN_CHARS]
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", flat)), default=0))
    pad = " " if flat.startswith("`") or flat.endswith("`") or not flat else ""
    # In a table a bar ends the cell, in a code span, too.
    return f"{ticks}{pad}{flat}{pad}{ticks}".replace("|", "\\|")


def block(value: object) -> str:
    """A value as a fenced block of JSON, which nothing in it can close."""
    # Escaped to ASCII, no line of it can begin with anything but spaces, brackets, quotes, digits and words of JSON.
    return f"```json\n{json.dumps(value, indent=2, sort_keys=True)}\n```"


def diff_markdown(diffs: Sequence[ActionDiff]) -> str:
    """A comparison of two versions of policy."""
    counts = counted(diffs)
    told = ", ".join(f"{counts[relation]} {relation}" for relation in RELATIONS if counts[relation])
    lines = [f"### Policy: {told or 'nothing to compare'}", ""]
    changed = [diff for diff in diffs if diff.relation != "equivalent"]
    if not changed:
        return "\n".join([*lines, "Every request that could be made is decided as before.", ""])
    lines += ["| action | on | the later version is | example |", "|---|---|---|---|"]
    for diff in changed:
        first = diff.differences[0] if diff.differences else None
        example = (
            "" if first is None else f"{'now allowed' if first.now_allowed else 'now denied'} for a {first.principal}"
        )
        lines.append(f"| {code(diff.action)} | {code(diff.resource)} | **{diff.relation}** | {example} |")
    for diff in changed:
        for difference in diff.differences:
            word = "now allowed" if difference.now_allowed else "now denied"
            summary = f"{diff.action} on {diff.resource}, {word} for a {difference.principal}"
            by = ", ".join(map(code, difference.because)) or "no permit"
            before = ", ".join(map(code, difference.before)) or "no permit"
            lines += [
                "",
                f"<details><summary>{html.escape(summary)}</summary>",
                "",
                f"Now by {by}; before by {before}. One such request:",
                "",
                block(counterexample_json(difference.example)),
                "",
                "</details>",
            ]
        lines += [
            f"\n{code(diff.action)} on {code(diff.resource)} cannot be told: {code(reason)}" for reason in diff.unknown
        ]
    return "\n".join([*lines, ""])


def replay_markdown(report: ReplayReport) -> str:
    """What a replay found."""
    lines = [
        f"### Replay: {report.flipped} of {report.decided} recorded decisions would come out otherwise",
        "",
        (
            f"{report.to_deny} that were allowed would be denied, {report.to_allow} that were denied would be allowed;"
            f" {report.other_reasons} would come out the same for other reasons."
        ),
    ]
    lines += [f"{count} cannot be decided again: {why}." for why, count in report.unreadable.items()]
    for title, counts in (
        ("policy", report.by_policy),
        ("action", report.by_action),
        ("principal", report.by_principal),
    ):
        if counts:
            lines += ["", *_table(title, counts.most_common(_MAX_SHOWN))]
    if report.flips:
        lines += ["", "| decision | who | action | on | before | after |", "|---|---|---|---|---|---|"]
    for flip in report.flips[:_MAX_SHOWN]:
        request = flip.recorded.request
        cells = (flip.recorded.id, str(request.principal), request.action, str(request.resource))
        lines.append(f"| {' | '.join(map(code, cells))} | {flip.before.word} | {flip.after.word} |")
    return "\n".join([*lines, ""])


def _table(title: str, counts: Iterable[tuple[str, int]]) -> list[str]:
    return [f"| {title} | flips |", "|---|---|", *(f"| {code(name)} | {count} |" for name, count in counts)]
