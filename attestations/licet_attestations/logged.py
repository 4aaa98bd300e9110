"""Statements about one entry of a log: a decision, policies that came into force, traffic that a router moved by itself.

Rules kept here:

- Such a statement has its proof in it: the entry's leaf, what the leaf commits to, and the way from the leaf to a signed checkpoint.
- It says what the record says and nothing else: it is made of the entry alone, and who verifies makes it anew and compares.
- The record is in it whole. What is later erased of the log is not erased of statements that were made before.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from licet_attestations import canonical, tlogproof
from licet_attestations.errors import FormatError, VerificationError
from licet_attestations.leaf import Leaf, is_tenant, verify_commitment
from licet_attestations.statement import DECISION, POLICY, TRAFFIC, Statement, Subject, is_sha256_hex

if TYPE_CHECKING:
    from collections.abc import Mapping

    from licet_attestations.trustroot import TrustRoot

KINDS: Final = frozenset({DECISION, POLICY, TRAFFIC})
"""The predicate types of such statements."""
EVENTS: Final = {"policy-activated": "activated", "policy-rolled-back": "rolled-back"}
"""What of a bundle is attested, by the event that a record names."""

_FIELDS: Final = frozenset({"v", "tenant", "leaf", "salt", "record", "log_proof"})
MOVES: Final = frozenset({"step", "completed", "rolled-back", "failed"})
"""What of an endpoint's traffic is attested."""
_MOVED: Final = ("endpoint", "weights", "shadow", "cause", "at_ms", "time_ms")
_TOLD: Final = frozenset({"event", "bundle", "before", "by", "decision", "time_ms"})


@dataclass(frozen=True, slots=True)
class LoggedEntry:
    """An entry of a log with its proof.

    Attributes:
        tenant: Whose log.
        leaf: Its header, as text.
        salt: Of its commitment.
        record: What it says, as canonical JSON.
        log_proof: ``.tlog-proof`` text.
    """

    tenant: str
    leaf: str
    salt: bytes
    record: bytes
    log_proof: str


def entry_statement(entry: LoggedEntry) -> Statement:
    """The statement that an entry is attested by. Verifies nothing.

    Raises:
        FormatError: The entry is of another kind than is attested.
    """
    record = canonical.loads(entry.record, canonical=True)
    leaf = Leaf.from_bytes(entry.leaf.encode())
    if not isinstance(record, dict):
        raise FormatError("the record of an entry is a JSON object")
    proved: dict[str, Any] = {
        "v": 1,
        "tenant": entry.tenant,
        "leaf": entry.leaf,
        "salt": entry.salt.hex(),
        "record": record,
        "log_proof": entry.log_proof,
    }
    if leaf.kind == "decision" and isinstance(record.get("id"), str):
        subject = Subject(f"decision/{record['id']}", hashlib.sha256(entry.record).hexdigest())
        return Statement((subject,), DECISION, proved)
    if leaf.kind == "policy" and record.get("event") in EVENTS:
        told = {name: record.get(name) for name in _TOLD} | {"event": EVENTS[record["event"]]}
        if not is_sha256_hex(record.get("bundle")):
            raise FormatError("the record of a bundle that came into force names it by its digest")
        return Statement((Subject("policy-bundle", record["bundle"]),), POLICY, told | proved)
    if leaf.kind == "traffic" and record.get("kind") in MOVES and isinstance(record.get("endpoint"), str):
        told = {name: record.get(name) for name in _MOVED}
        told |= {"event": record["kind"], "operation": record.get("operation_id")}
        return Statement(
            (Subject(record["endpoint"], hashlib.sha256(entry.record).hexdigest()),), TRAFFIC, told | proved
        )
    raise FormatError(f"entries of kind {leaf.kind!r} are not attested by themselves")


def verify_entry(entry: LoggedEntry, trust: TrustRoot, seen_ms: int | None = None) -> Leaf:
    """Verify that an entry is in its tenant's log, and return its leaf.

    Args:
        entry: With its proof.
        trust: Pinned keys.
        seen_ms: When the proof is known to have been there, if it is: a log key that was compromised later counts then.

    Raises:
        VerificationError: It is not proved to be, or its leaf commits to something else.
    """
    leaf = entry.leaf.encode()
    if not is_tenant(entry.tenant):
        raise VerificationError("an entry is in the log of a tenant")
    tlogproof.verify(entry.log_proof, leaf, trust.origin(entry.tenant), trust.keys_seen("log", seen_ms))
    try:
        found = Leaf.from_bytes(leaf)
    except FormatError as error:
        raise VerificationError(f"not a leaf: {error}") from error
    verify_commitment(found, entry.salt, entry.record)
    return found


def verify_predicate(claim: Statement, trust: TrustRoot, seen_ms: int | None = None) -> Leaf:
    """Verify that a statement about an entry follows from an entry that is in the log, and return its leaf.

    Args:
        claim: The statement; who signed it is not looked at here.
        trust: Pinned keys.
        seen_ms: When the statement is known to have been there, if it is.

    Raises:
        VerificationError: It does not.
    """
    try:
        entry = _entry_of(claim.predicate)
        again = entry_statement(entry)
    except FormatError as error:
        raise VerificationError(f"not a statement about an entry of a log: {error}") from error
    leaf = verify_entry(entry, trust, seen_ms)
    if again.to_bytes() != claim.to_bytes():
        raise VerificationError("the statement says something else than the entry that it is about")
    return leaf


def _entry_of(predicate: Mapping[str, Any]) -> LoggedEntry:
    told = {name: predicate.get(name) for name in _FIELDS}
    if told["v"] != 1 or not all(isinstance(told[name], str) for name in ("tenant", "leaf", "salt", "log_proof")):
        raise FormatError("the predicate has not the fields of version 1")
    try:
        salt = bytes.fromhex(str(told["salt"]))
    except ValueError as error:
        raise FormatError("a salt is hex text") from error
    return LoggedEntry(
        str(told["tenant"]), str(told["leaf"]), salt, canonical.dumps(told["record"]), str(told["log_proof"])
    )
