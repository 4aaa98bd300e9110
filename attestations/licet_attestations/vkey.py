"""Verifier keys: a key with its name and its kind, as C2SP ``vkey`` text.

Rules kept here:

- The four bytes that name a key are computed again from name, kind and key; a text that states others is refused.
- A log's key is of kind 0x01, a cosigner's of kind 0x04: neither stands for the other.

Source: C2SP signed-note (v1), "Verifier keys"; tlog-cosignature (v1).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass

from licet_attestations.dsse import decode_base64
from licet_attestations.errors import FormatError
from licet_attestations.keys import PublicKey

LOG_KIND = 0x01
COSIGNER_KIND = 0x04
ID_BYTES = 4
MAX_VKEY_CHARS = 512
_KEY_BYTES = 32
_NAME = re.compile(r"[^\s+\x00-\x1f\x7f]{1,255}")
_ID = re.compile(r"[0-9a-f]{8}")


def key_id(name: str, kind: int, key: PublicKey) -> bytes:
    """The four bytes by which a note names a key (signed-note, "Signatures")."""
    return hashlib.sha256(name.encode() + b"\n" + bytes((kind,)) + key.raw()).digest()[:ID_BYTES]


def is_key_name(text: str) -> bool:
    """Whether ``text`` may name a key: no spaces, no '+'."""
    return _NAME.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A named Ed25519 key.

    Attributes:
        name: Of the key; a log's is its origin.
        kind: ``LOG_KIND`` or ``COSIGNER_KIND``.
        key: The key itself.
    """

    name: str
    kind: int
    key: PublicKey

    @property
    def id(self) -> bytes:
        """What a signature line begins with."""
        return key_id(self.name, self.kind, self.key)

    def to_text(self) -> str:
        """The key as a ``vkey`` line."""
        encoded = base64.b64encode(bytes((self.kind,)) + self.key.raw()).decode()
        return f"{self.name}+{self.id.hex()}+{encoded}"

    @classmethod
    def from_text(cls, text: str, kind: int) -> VerifierKey:
        """Read a ``vkey`` that must be of ``kind``.

        Raises:
            FormatError: Not one, of another kind, or its four bytes are not those of its key.
        """
        name, plus, rest = text.partition("+")
        stated, second, encoded = rest.partition("+")
        if len(text) > MAX_VKEY_CHARS or not plus or not second or not is_key_name(name) or not _ID.fullmatch(stated):
            raise FormatError("a vkey is NAME+8 hex digits+base64, with a name without spaces")
        data = decode_base64(encoded, "a vkey's key")
        if len(data) != 1 + _KEY_BYTES or data[0] != kind:
            raise FormatError(f"the vkey of {name!r} is not an Ed25519 key of kind 0x{kind:02x}")
        found = cls(name, kind, PublicKey.from_raw(data[1:]))
        if not hmac.compare_digest(found.id.hex(), stated):
            raise FormatError(f"the vkey of {name!r} states another key's name than its own: it was not copied whole")
        return found
