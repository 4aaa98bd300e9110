"""The trust root: the public keys that an auditor or an adapter pins, each with one purpose and a time.

Rules kept here:

- A trust root is handed over apart from any evidence; nothing in this room takes one from an archive.
- A key serves one purpose, and only within its time.
- A key that is declared compromised from some moment on counts for what is known to have been signed before it, and for nothing else: a
  signature that bears no time may as well be a thief's.
- An empty answer is a refusal at the caller: no keys never verify anything.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from licet_attestations import canonical
from licet_attestations.dsse import Envelope, decode_base64, verify_envelope
from licet_attestations.errors import FormatError, VerificationError
from licet_attestations.keys import PublicKey

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Purpose = Literal["log", "attestation", "warrant", "model"]
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)

MAX_TRUST_ROOT_BYTES = 1024 * 1024
_MAX_KEYS = 1024
_ALGORITHM_OF: Mapping[Purpose, str] = {
    "log": "ed25519",
    "attestation": "ecdsa-p256-sha256",
    "warrant": "ecdsa-p256-sha256",
    "model": "ecdsa-p256-sha256",
}
_ORIGIN_PREFIX = re.compile(r"[A-Za-z0-9._~/-]{1,128}")
_FIELDS = frozenset({"v", "instance", "keys", "log_origin_prefix"})
_KEY_FIELDS = frozenset({"keyid", "alg", "spki", "purpose", "valid_from_ms", "valid_until_ms"})
_COMPROMISED = "compromised_from_ms"
"""A field that a key has only if it is: software that does not know it refuses the trust root, and does not trust the key."""


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A pinned key.

    Attributes:
        key: The key itself.
        purpose: The one thing it may sign.
        valid_from_ms: First moment it counts, milliseconds since the epoch.
        valid_until_ms: First moment it counts no more, or None.
        compromised_from_ms: First moment from which others may have signed with it, or None.
    """

    key: PublicKey
    purpose: Purpose
    valid_from_ms: int
    valid_until_ms: int | None = None
    compromised_from_ms: int | None = None

    def is_valid_at(self, at_ms: int) -> bool:
        """Whether the key counts at ``at_ms``."""
        return self.valid_from_ms <= at_ms and self.lasts_at(at_ms) and self.is_sound_by(at_ms)

    def is_sound_by(self, seen_ms: int | None) -> bool:
        """Whether a signature of its own counts that is known to have been there at ``seen_ms``; None for one that bears no time."""
        return self.compromised_from_ms is None or (seen_ms is not None and seen_ms < self.compromised_from_ms)

    def lasts_at(self, at_ms: int) -> bool:
        """Whether the key has not ended by ``at_ms``."""
        return self.valid_until_ms is None or at_ms < self.valid_until_ms


@dataclass(frozen=True, slots=True)
class TrustRoot:
    """What is trusted of one instance of Licet.

    Attributes:
        instance: Its name.
        trusted: Its keys.
        log_origin_prefix: A tenant's log is ``prefix/tenant``.
    """

    instance: str
    trusted: tuple[TrustedKey, ...]
    log_origin_prefix: str

    def origin(self, tenant: str) -> str:
        """The origin of ``tenant``'s log."""
        return f"{self.log_origin_prefix}/{tenant}"

    def keys(self, purpose: Purpose, at_ms: int | None = None) -> tuple[PublicKey, ...]:
        """The keys for ``purpose``, at a time or (for a signature that bears none) of any time; then none that is compromised."""
        if at_ms is None:
            return self.keys_seen(purpose, None)
        return tuple(k.key for k in self.trusted if k.purpose == purpose and k.is_valid_at(at_ms))

    def keys_seen(self, purpose: Purpose, seen_ms: int | None) -> tuple[PublicKey, ...]:
        """The keys for ``purpose`` of any time, for a signature that is known, by other keys, to have been there at ``seen_ms``."""
        return tuple(k.key for k in self.trusted if k.purpose == purpose and k.is_sound_by(seen_ms))

    def keys_since(self, purpose: Purpose, at_ms: int) -> tuple[PublicKey, ...]:
        """The keys for ``purpose`` that count at ``at_ms`` or begin later: for what was signed then or later, as a log's head is."""
        of_purpose = (k for k in self.trusted if k.purpose == purpose and k.is_sound_by(None))
        return tuple(k.key for k in of_purpose if k.lasts_at(at_ms))

    def keys_that_vouch(self, purpose: Purpose, at_ms: int) -> tuple[PublicKey, ...]:
        """The keys for ``purpose`` at a time that only the signature itself tells: none that is compromised, for its thief tells any time."""
        of_purpose = (k for k in self.trusted if k.purpose == purpose and k.is_sound_by(None))
        return tuple(k.key for k in of_purpose if k.is_valid_at(at_ms))

    def verify_envelope(self, envelope: Envelope, purpose: Purpose, keys: Iterable[PublicKey]) -> bytes:
        """Verify that one of ``keys``, which are those of this trust root that count, signed; return the payload.

        Raises:
            VerificationError: None did; says what became of the key that is named.
        """
        try:
            return verify_envelope(envelope, keys)
        except VerificationError as error:
            named = {signature.keyid for signature in envelope.signatures}
            known = next((k for k in self.trusted if k.purpose == purpose and k.key.keyid in named), None)
            if known is None:
                told = "if a key was rotated since this trust root was pinned, fetch the rotations and follow them"
            elif known.compromised_from_ms is not None:
                told = (
                    f"that key is declared compromised from {known.compromised_from_ms} ms on; evidence of the time before, and "
                    "of that of its successor, verifies"
                )
            else:
                told = "that key did not count at that time"
            raise VerificationError(f"{error}: {told}") from error

    def every_key(self, purpose: Purpose) -> tuple[PublicKey, ...]:
        """All keys for ``purpose``, also such as count for nothing: to tell what was signed here from what never was, not to believe it."""
        return tuple(k.key for k in self.trusted if k.purpose == purpose)

    def to_dict(self) -> dict[str, Any]:
        """The trust root as its JSON object."""
        return {
            "v": 1,
            "instance": self.instance,
            "log_origin_prefix": self.log_origin_prefix,
            "keys": [
                {
                    "keyid": k.key.keyid,
                    "alg": k.key.alg,
                    "spki": base64.b64encode(k.key.spki_der).decode(),
                    "purpose": k.purpose,
                    "valid_from_ms": k.valid_from_ms,
                    "valid_until_ms": k.valid_until_ms,
                    **({} if k.compromised_from_ms is None else {_COMPROMISED: k.compromised_from_ms}),
                }
                for k in self.trusted
            ],
        }

    def to_json(self) -> bytes:
        """The trust root as canonical JSON."""
        return canonical.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, value: Any) -> TrustRoot:
        """Read a trust root's JSON object.

        Raises:
            FormatError: Not one, or a key that is not what it says.
        """
        if not isinstance(value, dict) or set(value) != _FIELDS or value["v"] != 1:
            raise FormatError("not a trust root of version 1")
        instance, prefix, keys = value["instance"], value["log_origin_prefix"], value["keys"]
        if not isinstance(instance, str) or not isinstance(prefix, str) or not _ORIGIN_PREFIX.fullmatch(prefix):
            raise FormatError("a trust root names its instance and the prefix of its logs' origins")
        if not isinstance(keys, list) or not 1 <= len(keys) <= _MAX_KEYS:
            raise FormatError(f"a trust root has 1 to {_MAX_KEYS} keys")
        trusted = tuple(_trusted_key(k) for k in keys)
        # A key that served two purposes could have a signature for one shown as a signature for the other.
        if len({k.key.keyid for k in trusted}) != len(trusted):
            raise FormatError("a trust root names a key twice; a key has one purpose")
        return cls(instance, trusted, prefix)

    @classmethod
    def from_json(cls, data: bytes) -> TrustRoot:
        """Read a trust root.

        Raises:
            FormatError: As ``from_dict``.
        """
        return cls.from_dict(canonical.loads(data, max_bytes=MAX_TRUST_ROOT_BYTES))


def _trusted_key(value: Any) -> TrustedKey:
    if not isinstance(value, dict) or set(value) - {_COMPROMISED} != _KEY_FIELDS:
        raise FormatError("a key of a trust root has exactly " + ", ".join(sorted(_KEY_FIELDS)))
    key = PublicKey.from_der(decode_base64(value["spki"], "a trust root's spki"))
    purpose, begin, end = value["purpose"], value["valid_from_ms"], value["valid_until_ms"]
    if purpose not in PURPOSES:
        raise FormatError(f"{purpose!r} is not a purpose of a key; they are {', '.join(PURPOSES)}")
    if key.keyid != value["keyid"] or key.alg != value["alg"] or key.alg != _ALGORITHM_OF[purpose]:
        raise FormatError(f"key {str(value['keyid'])[:16]!r} is not what the trust root says it is")
    compromised = value.get(_COMPROMISED, begin)
    if type(begin) is not int or (end is not None and type(end) is not int) or type(compromised) is not int:
        raise FormatError("a key's times are integers in milliseconds")
    if compromised < begin or (_COMPROMISED in value and end is None):
        raise FormatError("a key that is compromised has ended, and was so from its beginning or later")
    return TrustedKey(key, purpose, begin, end, compromised if _COMPROMISED in value else None)
