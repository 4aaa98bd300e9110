"""What ``licet policy flips`` shows to people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from licet_engine.commands.text import clean, labelled, table, time_text

if TYPE_CHECKING:
    from collections.abc import Mapping

_LABEL_CHARS: Final = 15
_ENDED: Final = {
    "off": "it was ended",
    "replaced": "another candidate took its place",
    "overtaken": "other policies came into force",
}


def flip_lines(found: Mapping[str, Any]) -> list[str]:
    """Counts, flips by action and policy, and the newest flips with the policies before and after."""
    shadow = found.get("shadow")
    if not shadow:
        return ["no bundle ran beside the policies in force"]
    counts = found.get("counts") or {}
    head = f"bundle {clean(shadow.get('bundle_hex'))[:16]} beside {clean(shadow.get('active_hex'))[:16]}"
    lines = [f"{head}  since {time_text(int(shadow.get('since_ms', 0)))}, by {clean(shadow.get('set_by'))}"]
    if shadow.get("ended_at_ms"):
        why = _ENDED.get(str(shadow.get("ended")), clean(shadow.get("ended")))
        lines.append(labelled("ended", f"{time_text(int(shadow['ended_at_ms']))}: {why}", label_chars=_LABEL_CHARS))
    lines += [
        labelled(name.replace("_", " "), counts.get(name, 0), label_chars=_LABEL_CHARS)
        for name in ("decided", "same", "other_reasons", "to_deny", "to_allow", "dropped")
    ]
    for kind in ("action", "policy"):
        rows = [row for row in found.get(f"by_{kind}") or () if row.get("to_deny") or row.get("to_allow")]
        if rows:
            lines += ["", *table(rows, (kind, "to_deny", "to_allow"))]
    for flip in found.get("flips") or ():
        before, after = _judgement(flip.get("before")), _judgement(flip.get("after"))
        lines += [
            "",
            f"{time_text(int(flip.get('at_ms', 0)))}  {clean(flip.get('decision'))}",
            f"  {clean(flip.get('principal'))}  {clean(flip.get('action'))}  {clean(flip.get('resource'))}",
            labelled("before", before, indent=2, label_chars=_LABEL_CHARS),
            labelled("after", after, indent=2, label_chars=_LABEL_CHARS),
        ]
    return lines


def _judgement(told: Any) -> str:
    """An answer with the policies that it came from."""
    answer = told if isinstance(told, dict) else {}
    errors = [f"{error} (error)" for error in answer.get("errors") or ()]
    named = ", ".join([*errors, *(answer.get("reasons") or ())]) or "no policy permits it"
    return f"{answer.get('decision')}: {named}"
