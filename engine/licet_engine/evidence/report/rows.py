"""What an entry of the log says, in the words of a table: one row for each entry, whatever its kind.

Rules kept here:

- This is the one place that knows where the records of each kind have what.
- A record is the word of many: what is missing, or has another form than it should, is empty here. No record can stop a report.
- Leaf and record are not mixed: actor, owner, kind and time are the leaf's, which cannot be erased.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from licet_engine.evidence.contents import Seen

DECIDED: Final = frozenset({"decision", "attempt"})
"""Kinds of entries that bear an outcome of policy."""

_BY: Final = ("by", "approver", "reviewer", "operator", "author", "requested_by")
_ABOUT: Final = (
    "resource",
    "version",
    "dataset",
    "endpoint",
    "model",
    "subject",
    "run",
    "issuer",
    "tenant",
    "ticket",
    "name",
)

_MAX_CHARS: Final = 1024
"""Of a text that is remembered; whoever shows it cuts it shorter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One entry. Every text may be empty.

    Attributes:
        index: In the log.
        time_ms: Of the leaf.
        kind: Of the leaf.
        actor: Tenant of whoever acted.
        owner: Tenant of what was acted on.
        principal: Who.
        action: What was asked for or done; for entries that tell of something, which event.
        resource: Of what.
        outcome: ``allow`` or ``deny``; how an operation ended; a verdict.
        bundle: Digest of the policies that decided.
        decision: Id of the decision that this is or follows from.
        operation: Id of the operation that this belongs to.
        attestation: Digest of the attestation that this names.
        attestation_type: Its predicate type.
        erased: Whether the record is gone.
    """

    index: int
    time_ms: int
    kind: str
    actor: str
    owner: str
    principal: str = ""
    action: str = ""
    resource: str = ""
    outcome: str = ""
    bundle: str = ""
    decision: str = ""
    operation: str = ""
    attestation: str = ""
    attestation_type: str = ""
    erased: bool = False


def row_of(seen: Seen) -> Row:
    """What an entry says."""
    leaf, record = seen.leaf, seen.record
    told = {} if record is None else {name: said[:_MAX_CHARS] for name, said in _told(leaf.kind, record).items()}
    return Row(
        index=seen.index,
        time_ms=leaf.time_ms,
        kind=leaf.kind,
        actor=leaf.actor,
        owner=leaf.owner,
        erased=record is None,
        **told,
    )


def _told(kind: str, record: Mapping[str, Any]) -> dict[str, str]:
    match kind:
        case "decision" | "attempt":
            return {
                "principal": identifier(record.get("principal")),
                "action": text(record, "action"),
                "resource": identifier(record.get("resource")),
                "outcome": "allow" if record.get("decision") == "allow" else "deny",
                "bundle": text(record, "bundle"),
                "decision": text(record, "id"),
                "operation": text(mapping(record, "operation"), "id"),
            }
        case "attestation":
            return {
                "operation": text(record, "operation"),
                "attestation": text(record, "digest"),
                "attestation_type": text(record, "predicate_type"),
            }
        case "traffic":
            return {
                "principal": text(mapping(record, "cause"), "by"),
                "action": "traffic",
                "resource": text(record, "endpoint"),
                "outcome": text(record, "kind"),
                "operation": text(record, "operation_id"),
            }
        case _:
            return {
                "principal": _first(record, _BY),
                "action": text(record, "action") or text(record, "event"),
                "resource": _first(record, _ABOUT),
                "outcome": text(record, "state") or text(record, "verdict"),
                "bundle": text(record, "bundle"),
                "decision": text(record, "decision"),
                "operation": text(record, "operation") or text(record, "break_glass"),
                "attestation": text(record, "attestation"),
            }


def _first(record: Mapping[str, Any], names: tuple[str, ...]) -> str:
    return next((found for name in names if (found := text(record, name))), "")


def text(record: Mapping[str, Any], name: str) -> str:
    """A member of a record that should be text."""
    value = record.get(name)
    return value if isinstance(value, str) else ""


def number(record: Mapping[str, Any], name: str) -> int | None:
    """A member of a record that should be an integer."""
    value = record.get(name)
    return value if type(value) is int else None


def mapping(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A member of a record that should be an object."""
    value = record.get(name)
    return value if isinstance(value, Mapping) else {}


def texts(record: Mapping[str, Any], name: str) -> list[str]:
    """A member of a record that should be a list of texts."""
    value = record.get(name)
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def identifier(value: Any) -> str:
    """The name of an entity, as a decision's record (``{"type", "id"}``) or that of an attempt (text) has it."""
    if isinstance(value, Mapping):
        return text(value, "id")
    return value if isinstance(value, str) else ""
