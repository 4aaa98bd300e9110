"""The offline verifier of single attestations: a signed statement, against a pinned trust root.

Rules kept here:

- Every kind of statement has one purpose of key: warrants that of warrants, models that of models, all others that of attestations.
- A statement that has its proof in it is verified with it: of an entry of a log, an isolation answer, a warrant, a key's rotation.
- A statement that has none is signed, and no more: that it is logged, and when, is shown by the entry that names it, if that is at hand.
- What a key signed that was compromised later counts only with that entry, from before.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from licet_attestations import canonical, dsse, isolation_pair, logged, oms, rotation, statement, warrant
from licet_attestations.errors import FormatError, LicetAttestationError, VerificationError
from licet_attestations.window import moment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from licet_attestations.keys import PublicKey
    from licet_attestations.leaf import Leaf
    from licet_attestations.trustroot import Purpose, TrustRoot

MAX_BYTES = dsse.MAX_ENVELOPE_BYTES


ENTRY_FIELDS = frozenset({"tenant", "leaf", "salt", "record", "proof"})
"""Of a file that has an entry of a log with its proof."""
MAX_ENTRY_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Attested:
    """What was verified of a statement.

    Attributes:
        claim: What it says.
        digest_hex: By which the log names it.
        keyid: Of the key that signed.
        leaf: Of the entry of the log that names it, if that was at hand.
        shown: What is known beyond the signature, in words.
        limits: What is not, in words.
    """

    claim: statement.Statement
    digest_hex: str
    keyid: str
    leaf: Leaf | None
    shown: tuple[str, ...]
    limits: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "verified": True,
            "predicate_type": self.claim.predicate_type,
            "tenant": statement.tenant_of(self.claim.predicate),
            "digest": self.digest_hex,
            "keyid": self.keyid,
            "logged_at_ms": None if self.leaf is None else self.leaf.time_ms,
            "subject": [{"name": s.name, "sha256": s.sha256_hex} for s in self.claim.subject],
            "shown": list(self.shown),
            "limits": list(self.limits),
        }

    def lines(self) -> list[str]:
        """In words."""
        tenant = statement.tenant_of(self.claim.predicate)
        return [
            f"Verified: {self.claim.predicate_type}, {'which names no tenant' if tenant is None else f'of tenant {tenant}'}.",
            *(
                []
                if self.leaf is None
                else [f"  it is in the log of {tenant}, sequenced at {moment(self.leaf.time_ms)}"]
            ),
            *(f"  about {s.name}: sha256 {s.sha256_hex}" for s in self.claim.subject),
            *(f"  {line}" for line in self.shown),
            "",
            "What this does not prove:",
            *(f"  - {line}" for line in self.limits),
        ]


_TRUE_LIMIT = "That what it says is so: it shows who said it, and that no word was changed since."
_TIME_LIMIT = (
    "When it was signed, and that it is in the log: the entry that names it shows that, or an evidence archive."
)


def verify_attestation(data: bytes, trust: TrustRoot, entry: logged.LoggedEntry | None = None) -> Attested:
    """Verify a signed statement of any kind.

    Args:
        data: A DSSE envelope, or a Sigstore bundle of one, as JSON; nothing in it is trusted.
        trust: Pinned keys.
        entry: Of the log of its tenant, that names it, if it is at hand: it shows since when the statement is there.

    Raises:
        VerificationError: It is none, no pinned key for its kind signed it, what it proves is not what it says, or the entry is
            another's. A key that is compromised counts only with an entry from before.
    """
    try:
        envelope = _envelope_of(data)
        claim = statement.Statement.from_bytes(envelope.payload)
        digest_hex = hashlib.sha256(envelope.payload).hexdigest()
        leaf = None if entry is None else _verify_logged(claim, digest_hex, entry, trust)
        seen_ms = None if leaf is None else leaf.time_ms
        keyid = _signer(envelope, trust, purpose_of(claim.predicate_type), seen_ms)
        shown, limits = _looked_into(claim, data, envelope, trust, seen_ms)
    except VerificationError:
        raise
    except LicetAttestationError as error:
        raise VerificationError(f"not an attestation: {error}") from error
    return Attested(claim, digest_hex, keyid, leaf, shown, (*limits, _TRUE_LIMIT))


def read_entry(data: bytes) -> logged.LoggedEntry:
    """Read the file of an entry of a log.

    Raises:
        FormatError: It is none.
    """
    value = canonical.loads(data, max_bytes=MAX_ENTRY_BYTES)
    if not isinstance(value, dict) or set(value) != ENTRY_FIELDS or not all(isinstance(v, str) for v in value.values()):
        raise FormatError(f"an entry of a log has exactly {', '.join(sorted(ENTRY_FIELDS))}, as text")
    try:
        salt = bytes.fromhex(value["salt"])
    except ValueError as error:
        raise FormatError("an entry's salt is hex text") from error
    return logged.LoggedEntry(value["tenant"], value["leaf"], salt, value["record"].encode(), value["proof"])


def entry_file(tenant: str, entry: Mapping[str, Any]) -> bytes:
    """The file of an entry of a log, as ``read_entry`` reads it.

    Args:
        tenant: Whose log.
        entry: With the other fields of ``ENTRY_FIELDS``.
    """
    return canonical.dumps({"tenant": tenant, **{name: entry[name] for name in ENTRY_FIELDS - {"tenant"}}})


def _verify_logged(claim: statement.Statement, digest_hex: str, entry: logged.LoggedEntry, trust: TrustRoot) -> Leaf:
    """Verify that a statement is in the log of its tenant, by the entry that names it."""
    try:
        leaf = logged.verify_entry(entry, trust)
        record = canonical.loads(entry.record, canonical=True)
    except (FormatError, VerificationError) as error:
        raise VerificationError(str(error), step="log entry") from error
    names = record.get("digest") if isinstance(record, dict) else None
    if leaf.kind != "attestation" or names != digest_hex:
        raise VerificationError("the entry names another attestation than this", step="log entry")
    if entry.tenant != statement.tenant_of(claim.predicate):
        raise VerificationError("the entry is in another tenant's log than the attestation's", step="log entry")
    return leaf


def _envelope_of(data: bytes) -> dsse.Envelope:
    value = canonical.loads(data, max_bytes=MAX_BYTES)
    if isinstance(value, dict) and "dsseEnvelope" in value:
        if value.get("mediaType") != oms.MEDIA_TYPE:
            raise FormatError(f"a Sigstore bundle here is of type {oms.MEDIA_TYPE}")
        return dsse.Envelope.from_dict(value["dsseEnvelope"])
    return dsse.Envelope.from_json(data)


def purpose_of(predicate_type: str) -> Purpose:
    """For what the key is that signs statements of a type."""
    return {statement.WARRANT: "warrant", oms.PREDICATE_TYPE: "model"}.get(predicate_type, "attestation")  # type: ignore[return-value]  # All three are purposes.


def _signer(envelope: dsse.Envelope, trust: TrustRoot, purpose: Purpose, seen_ms: int | None) -> str:
    """Which key signed: one that counted when the log took note of it, or where that is not known, one that is not compromised."""
    signers = [key for key in trust.every_key(purpose) if _signed(envelope, key)]
    counting = trust.keys(purpose, seen_ms)
    for key in signers:  # A rotation of this very key is signed by the old one as well.
        if key in counting:
            return key.keyid
    if signers and seen_ms is not None:
        named = signers[0].keyid[:16]
        raise VerificationError(f"the {purpose} key {named} that signed did not count when this was logged")
    if signers:
        raise VerificationError(
            f"the {purpose} key {signers[0].keyid[:16]} that signed is compromised: "
            "the log entry that names this would show whether it is from before"
        )
    raise VerificationError(f"no pinned {purpose} key signed this")


def _signed(envelope: dsse.Envelope, key: PublicKey) -> bool:
    try:
        dsse.verify_envelope(envelope, [key])
    except VerificationError:
        return False
    return True


def _looked_into(
    claim: statement.Statement, data: bytes, envelope: dsse.Envelope, trust: TrustRoot, seen_ms: int | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What is shown beyond the signature, and what is not."""
    if claim.predicate_type in logged.KINDS:
        leaf = logged.verify_predicate(claim, trust, seen_ms)
        return (f"its entry is in the log, sequenced at {moment(leaf.time_ms)}",), ()
    if claim.predicate_type == statement.ISOLATION_PAIR:
        answer = isolation_pair.verify_statement(envelope.to_json(), trust)
        return tuple(isolation_pair.report_lines(answer)), ()
    if claim.predicate_type == statement.WARRANT:
        permitted = warrant.Warrant.from_statement(claim)
        leaf = warrant.verify_logged(permitted, trust)
        return (f"its decision is in the log, sequenced at {moment(leaf.time_ms)}",), (
            "That it was used: see what it permits.",
        )
    if claim.predicate_type in rotation.KINDS:
        return _rotation(claim, envelope, trust)
    if claim.predicate_type == oms.PREDICATE_TYPE:
        signed, _, _ = oms.read_bundle(data)
        named = tuple(f"signs {name}: sha256 {digest}" for name, digest in sorted(signed.files.items()))
        return named, ("That the files at hand are these: compare their digests, or use model_signing verify.",)
    return (), (_TIME_LIMIT,) if seen_ms is None else ()


def _rotation(
    claim: statement.Statement, envelope: dsse.Envelope, trust: TrustRoot
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Whether a rotation leads on from the pinned trust root, or led to it."""
    if claim.predicate.get("before") == {"sha256": rotation.digest_hex(trust)}:
        after = rotation.verify_rotation(envelope.to_json(), trust)
        return (f"it leads from the pinned trust root to the one with SHA-256 {rotation.digest_hex(after)}",), ()
    if claim.subject == (statement.Subject(rotation.SUBJECT, rotation.digest_hex(trust)),):
        return ("it led to the trust root that is pinned",), (
            "From where: pin the one before, and verify it with that.",
        )
    raise VerificationError("the rotation neither begins nor ends at the trust root that is pinned")
