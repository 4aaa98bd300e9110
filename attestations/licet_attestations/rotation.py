"""Rotation and compromise of keys: the statements by which one trust root leads to the next.

Rules kept here:

- A purpose has one key at a time. By a rotation the new one counts from the moment at which the old one counts no more, and the old one
  stays in the trust root with its end: what it signed in its time verifies for ever.
- A key that ended may be declared compromised from a moment on, and again from an earlier one, never from a later one.
- Such a statement is signed by every key that counts, of all purposes, and a new key signs for itself: it is the one thing that they all sign.
  So who has stolen some of the keys cannot lead anybody's trust root anywhere.
- Who pins a trust root follows it by such statements alone, each from the very trust root that it names; nothing else adds or ends a key.

What this does not help against: who has all the keys, as the signer has. It is seen in the log of the platform, and in that the true
signer's statement from the same trust root is another one.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from licet_attestations import dsse
from licet_attestations.errors import FormatError, LicetAttestationError, VerificationError
from licet_attestations.keys import PublicKey
from licet_attestations.statement import KEY_COMPROMISE, KEY_ROTATION, Statement, Subject
from licet_attestations.trustroot import PURPOSES, Purpose, TrustedKey, TrustRoot

if TYPE_CHECKING:
    from collections.abc import Iterable

    from licet_attestations.keys import PrivateKey

TENANT: Final = "platform"
SUBJECT: Final = "trust-root"
KINDS: Final = frozenset({KEY_ROTATION, KEY_COMPROMISE})
"""The predicate types of the statements by which one trust root leads to the next."""
MAX_ROTATION_BYTES: Final = 4 * 1024 * 1024
_LEAST_KEYID_CHARS: Final = 8


def digest_hex(trust: TrustRoot) -> str:
    """By which a statement names a trust root: SHA-256 of its canonical JSON."""
    return hashlib.sha256(trust.to_json()).hexdigest()


def current(trust: TrustRoot, purpose: Purpose) -> TrustedKey:
    """The key for a purpose that has no end.

    Raises:
        FormatError: There is none, or there are several.
    """
    found = [key for key in trust.trusted if key.purpose == purpose and key.valid_until_ms is None]
    if len(found) != 1:
        raise FormatError(f"a trust root whose {purpose} key is rotated has exactly one without an end")
    return found[0]


# --- the trust root that follows --------------------------------------------------------------------------------------


def rotated(trust: TrustRoot, purpose: Purpose, key: PublicKey, at_ms: int) -> TrustRoot:
    """The trust root after a rotation: the old key ends, the new one begins.

    Raises:
        FormatError: It would end before it began, or the key is none for this purpose or is there already.
    """
    old = current(trust, purpose)
    if at_ms <= old.valid_from_ms:
        raise FormatError(f"the {purpose} key counts from {old.valid_from_ms} ms: it cannot end at {at_ms} ms")
    kept = tuple(replace(one, valid_until_ms=at_ms) if one is old else one for one in trust.trusted)
    made = replace(trust, trusted=(*kept, TrustedKey(key, purpose, at_ms)))
    return TrustRoot.from_dict(made.to_dict())  # Its rules hold of this one as well.


def compromised(trust: TrustRoot, keyid: str, from_ms: int) -> TrustRoot:
    """The trust root after a key that ended was declared compromised from a moment on.

    Raises:
        FormatError: There is no such key, it counts still, it began later, or it is declared so from that moment or an earlier one.
    """
    old = named(trust, keyid)
    if old.valid_until_ms is None:
        raise FormatError(f"the {old.purpose} key {keyid[:16]} counts still: it is rotated first")
    if old.compromised_from_ms is not None and from_ms >= old.compromised_from_ms:
        raise FormatError(f"key {keyid[:16]} is declared compromised from {old.compromised_from_ms} ms already")
    if from_ms < old.valid_from_ms:
        raise FormatError(f"key {keyid[:16]} counts from {old.valid_from_ms} ms: it was not compromised before")
    made = replace(
        trust, trusted=tuple(replace(k, compromised_from_ms=from_ms) if k is old else k for k in trust.trusted)
    )
    return TrustRoot.from_dict(made.to_dict())


def named(trust: TrustRoot, keyid: str) -> TrustedKey:
    """A key by its identifier, or its beginning of at least eight digits.

    Raises:
        FormatError: There is none, or there are several.
    """
    found = [key for key in trust.trusted if key.key.keyid.startswith(keyid)]
    if len(keyid) < _LEAST_KEYID_CHARS:
        raise FormatError(f"{keyid!r} is too short for a key's identifier: give at least {_LEAST_KEYID_CHARS} digits")
    if len(found) != 1:
        what = "no key's identifier begins" if not found else f"the identifiers of {len(found)} keys begin"
        raise FormatError(f"{what} with {keyid[:64]!r} in the trust root")
    return found[0]


# --- statements -------------------------------------------------------------------------------------------------------


def rotation_statement(before: TrustRoot, after: TrustRoot, purpose: Purpose) -> Statement:
    """The statement that a rotation led from ``before`` to ``after``."""
    old, new = current(before, purpose), current(after, purpose)
    predicate: dict[str, Any] = {
        "purpose": purpose,
        "at_ms": new.valid_from_ms,
        "old": {"keyid": old.key.keyid},
        "new": {
            "keyid": new.key.keyid,
            "alg": new.key.alg,
            "spki": base64.b64encode(new.key.spki_der).decode(),
        },
    }
    return _statement(KEY_ROTATION, before, after, predicate)


def compromise_statement(before: TrustRoot, after: TrustRoot, keyid: str) -> Statement:
    """The statement that a declaration led from ``before`` to ``after``."""
    key = named(after, keyid)
    told = {"purpose": key.purpose, "key": {"keyid": key.key.keyid}, "from_ms": key.compromised_from_ms}
    return _statement(KEY_COMPROMISE, before, after, told)


def _statement(kind: str, before: TrustRoot, after: TrustRoot, told: dict[str, Any]) -> Statement:
    predicate = {
        "v": 1,
        "tenant": TENANT,
        "instance": before.instance,
        **told,
        "before": {"sha256": digest_hex(before)},
        "trust_root": after.to_dict(),
    }
    return Statement((Subject(SUBJECT, digest_hex(after)),), kind, predicate)


def sign(claim: Statement, keys: Iterable[PrivateKey]) -> bytes:
    """Sign such a statement with all keys that must, each once; the envelope as JSON."""
    payload = claim.to_bytes()
    each = {key.keyid: key for key in keys}
    made = [dsse.sign(payload, dsse.IN_TOTO_PAYLOAD_TYPE, key).signatures[0] for key in each.values()]
    return dsse.Envelope(dsse.IN_TOTO_PAYLOAD_TYPE, payload, tuple(made)).to_json()


# --- following --------------------------------------------------------------------------------------------------------


def verify_rotation(data: bytes, trust: TrustRoot) -> TrustRoot:
    """Verify that a rotation, or a compromise, leads on from a pinned trust root, and return the one that follows.

    Args:
        data: The DSSE envelope as JSON; nothing in it is trusted.
        trust: The pinned trust root.

    Raises:
        VerificationError: It is none, begins at another trust root, changes more than one key, or a key that must did not sign.
    """
    try:
        envelope = dsse.Envelope.from_json(data)
        claim = Statement.from_bytes(envelope.payload)
        if claim.predicate.get("before") != {"sha256": digest_hex(trust)}:
            raise VerificationError(
                "the statement begins at another trust root than the one that is pinned; each leads on from the one before it: name them all, in their order"
            )
        again, after = _again(claim, trust)
        if claim.to_bytes() != again.to_bytes():
            raise VerificationError("the statement says something else than what it makes of the one key that it names")
        # Each of them by itself: any one signature of them would satisfy an envelope.
        for root in (trust, after):
            for purpose in PURPOSES:
                dsse.verify_envelope(envelope, [current(root, purpose).key])
    except VerificationError:
        raise
    except LicetAttestationError as error:
        raise VerificationError(f"neither a rotation nor a compromise of a key: {error}") from error
    return after


def _again(claim: Statement, trust: TrustRoot) -> tuple[Statement, TrustRoot]:
    """What the statement says of a key, said of the pinned trust root; and the one that follows."""
    told = claim.predicate
    purpose, new, key = told.get("purpose"), told.get("new"), told.get("key")
    if claim.predicate_type == KEY_ROTATION and isinstance(new, dict) and purpose in PURPOSES:
        public = PublicKey.from_der(dsse.decode_base64(new.get("spki"), "the new key"))
        after = rotated(trust, purpose, public, _time(told.get("at_ms")))
        return rotation_statement(trust, after, purpose), after
    if claim.predicate_type == KEY_COMPROMISE and isinstance(key, dict) and isinstance(key.get("keyid"), str):
        after = compromised(trust, key["keyid"], _time(told.get("from_ms")))
        return compromise_statement(trust, after, key["keyid"]), after
    raise FormatError("it names a purpose and the new key, or the key that is compromised")


def _time(value: object) -> int:
    if type(value) is not int:
        raise FormatError("it has a time in milliseconds")
    return value


def follow(statements: Iterable[bytes], trust: TrustRoot) -> TrustRoot:
    """Follow rotations and compromises, in their order, from a pinned trust root.

    Raises:
        VerificationError: One of them does not lead on.
    """
    for data in statements:
        trust = verify_rotation(data, trust)
    return trust


def from_where(data: bytes) -> tuple[str, str]:
    """The digests of the trust roots that a statement says it leads from and to, unverified.

    Raises:
        FormatError: It is none.
    """
    claim = Statement.from_bytes(dsse.Envelope.from_json(data).payload)
    match claim.predicate:
        case {"before": {"sha256": str(before)}} if claim.predicate_type in KINDS and len(claim.subject) == 1:
            return before, claim.subject[0].sha256_hex
    raise FormatError("neither a rotation nor a compromise of a key")


def beyond(statements: Iterable[bytes], trust: TrustRoot) -> list[bytes]:
    """Of all statements, in their order, those that follow a trust root, unverified; none if none names it as the one before.

    Raises:
        FormatError: One of them is none.
    """
    all_of_them = list(statements)
    at = digest_hex(trust)
    return next((all_of_them[i:] for i, data in enumerate(all_of_them) if from_where(data)[0] == at), [])
