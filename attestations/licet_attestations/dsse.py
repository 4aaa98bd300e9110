"""Dead Simple Signing Envelopes (DSSE v1).

Rules kept here:

- The payload is used only after a signature over it, with its type, has been verified.
- A key id is a hint that narrows which pinned key to try; it never decides anything.
- One envelope has one text: what is read back must be what ``to_json`` writes, so that no byte of it can change unseen.
  (Foreign envelopes, such as those in model signature bundles, are read with ``from_dict``.)

Source: github.com/secure-systems-lab/dsse protocol.md and envelope.md, v1.0.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from licet_attestations import canonical
from licet_attestations.errors import FormatError, VerificationError

if TYPE_CHECKING:
    from licet_attestations.keys import PrivateKey, PublicKey

IN_TOTO_PAYLOAD_TYPE = "application/vnd.in-toto+json"

MAX_ENVELOPE_BYTES = 16 * 1024 * 1024
_MAX_SIGNATURES = 16


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature of an envelope.

    Attributes:
        keyid: Hint at the key; may be empty.
        sig: The signature over the pre-authentication encoding.
    """

    keyid: str
    sig: bytes


@dataclass(frozen=True, slots=True)
class Envelope:
    """A payload, its type, and signatures over both. Nothing in it is verified yet."""

    payload_type: str
    payload: bytes
    signatures: tuple[Signature, ...]

    def to_dict(self) -> dict[str, Any]:
        """The envelope as its JSON object."""
        return {
            "payload": base64.b64encode(self.payload).decode(),
            "payloadType": self.payload_type,
            "signatures": [{"keyid": s.keyid, "sig": base64.b64encode(s.sig).decode()} for s in self.signatures],
        }

    def to_json(self) -> bytes:
        """The envelope as canonical JSON."""
        return canonical.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, value: Any) -> Envelope:
        """Read an envelope's JSON object.

        Raises:
            FormatError: Not an envelope.
        """
        if not isinstance(value, Mapping):
            raise FormatError("a DSSE envelope is a JSON object")
        payload_type, signatures = value.get("payloadType"), value.get("signatures")
        if not isinstance(payload_type, str) or not payload_type:
            raise FormatError("a DSSE envelope needs a payloadType")
        if not isinstance(signatures, list) or not 1 <= len(signatures) <= _MAX_SIGNATURES:
            raise FormatError(f"a DSSE envelope needs 1 to {_MAX_SIGNATURES} signatures")
        read = []
        for signature in signatures:
            if not isinstance(signature, Mapping):
                raise FormatError("a DSSE signature is a JSON object")
            keyid = signature.get("keyid", "")
            if not isinstance(keyid, str):
                raise FormatError("a DSSE keyid is text")
            read.append(Signature(keyid, decode_base64(signature.get("sig"), "a DSSE sig")))
        return cls(payload_type, decode_base64(value.get("payload"), "a DSSE payload"), tuple(read))

    @classmethod
    def from_json(cls, data: bytes) -> Envelope:
        """Read an envelope that ``to_json`` wrote.

        Raises:
            FormatError: Not an envelope, or not the one text it has.
        """
        envelope = cls.from_dict(canonical.loads(data, max_bytes=MAX_ENVELOPE_BYTES))
        if envelope.to_json() != data:
            raise FormatError("a DSSE envelope is not in its canonical form")
        return envelope


def decode_base64(text: Any, what: str) -> bytes:
    """Decode standard base64 that has one spelling only.

    Raises:
        FormatError: Not text, not base64, or with stray bits or characters.
    """
    if not isinstance(text, str):
        raise FormatError(f"{what} is missing or not text")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FormatError(f"{what} is not standard base64") from error
    if base64.b64encode(data).decode() != text:
        raise FormatError(f"{what} is not base64 in its one canonical spelling")
    return data


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: the bytes that are signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign(payload: bytes, payload_type: str, key: PrivateKey) -> Envelope:
    """Sign ``payload`` as of ``payload_type`` with one key."""
    return Envelope(payload_type, payload, (Signature(key.keyid, key.sign(pae(payload_type, payload))),))


def verify_envelope(envelope: Envelope, keys: Iterable[PublicKey], payload_type: str = IN_TOTO_PAYLOAD_TYPE) -> bytes:
    """Verify that one of ``keys`` signed the envelope, and return its payload.

    Args:
        envelope: As read; nothing in it is trusted.
        keys: Pinned keys that may sign this. None of them: never verified.
        payload_type: What the payload must be.

    Raises:
        VerificationError: Another type, or no valid signature by any of the keys.

    Source: DSSE protocol.md, "Verifier".
    """
    if envelope.payload_type != payload_type:
        raise VerificationError(f"the envelope holds {envelope.payload_type!r}, not {payload_type!r}")
    message = pae(envelope.payload_type, envelope.payload)
    pinned = tuple(keys)
    for signature in envelope.signatures:
        for key in pinned:
            if signature.keyid not in ("", key.keyid):
                continue
            try:
                key.verify(signature.sig, message)
            except VerificationError:
                continue
            return envelope.payload
    named = ", ".join(s.keyid[:16] or "(unnamed)" for s in envelope.signatures)
    raise VerificationError(f"no pinned key signed this envelope (it names {named})")
