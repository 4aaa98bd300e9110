"""The rotation of a key: the statement by which one trust root leads to the next.

Rules kept here:

- A purpose has one key at a time. The new one counts from the moment at which the old one counts no more, and the old one stays in the
  trust root with its end: what it signed in its time verifies for ever.
- A rotation is signed by the old key and by the new one, and by the key for attestations, so that it can be logged like any other.
- Who pins a trust root follows it by rotations alone, each from the very trust root that it names; nothing else adds a key.

What this does not help against: who has the old key can rotate it to a key of their own. It is seen in the log of the platform, and in
that the true signer's rotation from the same trust root is another one.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from licet_attestations import canonical, dsse
from licet_attestations.errors import FormatError, LicetAttestationError, VerificationError
from licet_attestations.keys import PublicKey
from licet_attestations.statement import KEY_ROTATION, Statement, Subject
from licet_attestations.trustroot import PURPOSES, Purpose, TrustedKey, TrustRoot

if TYPE_CHECKING:
    from collections.abc import Mapping

    from licet_attestations.keys import PrivateKey

TENANT: Final = "platform"
SUBJECT: Final = "trust-root"
MAX_ROTATION_BYTES: Final = 4 * 1024 * 1024


def digest_hex(trust: TrustRoot) -> str:
    """By which a rotation names a trust root: SHA-256 of its canonical JSON."""
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


def rotation_statement(before: TrustRoot, after: TrustRoot, purpose: Purpose) -> Statement:
    """The statement that ``after`` follows ``before``."""
    old, new = current(before, purpose), current(after, purpose)
    predicate: dict[str, Any] = {
        "v": 1,
        "tenant": TENANT,
        "instance": before.instance,
        "purpose": purpose,
        "at_ms": new.valid_from_ms,
        "old": {"keyid": old.key.keyid},
        "new": {
            "keyid": new.key.keyid,
            "alg": new.key.alg,
            "spki": base64.b64encode(new.key.spki_der).decode(),
        },
        "before": {"sha256": digest_hex(before)},
        "trust_root": after.to_dict(),
    }
    return Statement((Subject(SUBJECT, digest_hex(after)),), KEY_ROTATION, predicate)


def sign_rotation(
    before: TrustRoot, after: TrustRoot, purpose: Purpose, *, old: PrivateKey, new: PrivateKey, attestation: PrivateKey
) -> bytes:
    """Sign that ``after`` follows ``before``, with all the keys that must; the envelope as JSON."""
    payload = rotation_statement(before, after, purpose).to_bytes()
    keys = {key.keyid: key for key in (attestation, old, new)}
    made = [dsse.sign(payload, dsse.IN_TOTO_PAYLOAD_TYPE, key).signatures[0] for key in keys.values()]
    return dsse.Envelope(dsse.IN_TOTO_PAYLOAD_TYPE, payload, tuple(made)).to_json()


def verify_rotation(data: bytes, trust: TrustRoot) -> TrustRoot:
    """Verify that a rotation leads on from a pinned trust root, and return the one that follows.

    Args:
        data: The DSSE envelope as JSON; nothing in it is trusted.
        trust: The pinned trust root.

    Raises:
        VerificationError: It is none, begins at another trust root, changes more than one key, or a key that must did not sign.
    """
    try:
        envelope = dsse.Envelope.from_json(data)
        claim = Statement.from_bytes(envelope.payload)
        purpose, new, at_ms = _read(claim)
        if claim.predicate["before"] != {"sha256": digest_hex(trust)}:
            raise VerificationError("the rotation begins at another trust root than the one that is pinned")
        after = rotated(trust, purpose, new, at_ms)
        if claim.to_bytes() != rotation_statement(trust, after, purpose).to_bytes():
            raise VerificationError("the rotation says something else than that one key takes another's place")
        # Each of them by itself: any one signature of the three would satisfy an envelope.
        dsse.verify_envelope(envelope, [current(trust, purpose).key])
        dsse.verify_envelope(envelope, [new])
        dsse.verify_envelope(envelope, [current(trust, "attestation").key])
    except VerificationError:
        raise
    except LicetAttestationError as error:
        raise VerificationError(f"not a rotation of a key: {error}") from error
    return after


def _read(claim: Statement) -> tuple[Purpose, PublicKey, int]:
    predicate: Mapping[str, Any] = claim.predicate
    new = predicate.get("new")
    if claim.predicate_type != KEY_ROTATION or not isinstance(new, dict) or not isinstance(new.get("spki"), str):
        raise FormatError("a rotation names the new key")
    purpose, at_ms = predicate.get("purpose"), predicate.get("at_ms")
    if purpose not in PURPOSES or type(at_ms) is not int or "before" not in predicate:
        raise FormatError("a rotation has a purpose, a time, and the trust root before it")
    return purpose, PublicKey.from_der(dsse.decode_base64(new["spki"], "the new key")), at_ms


def follow(rotations: list[bytes], trust: TrustRoot) -> TrustRoot:
    """Follow rotations, in their order, from a pinned trust root.

    Raises:
        VerificationError: One of them does not lead on.
    """
    for data in rotations:
        trust = verify_rotation(data, trust)
    return trust


def read_trust_root(predicate: Mapping[str, Any]) -> TrustRoot:
    """The trust root that a rotation ends at, unverified.

    Raises:
        FormatError: It is none.
    """
    return TrustRoot.from_json(canonical.dumps(predicate.get("trust_root")))
