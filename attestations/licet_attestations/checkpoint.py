"""Checkpoints: the signed head of a log, as C2SP signed notes.

Rules kept here:

- The first line is the log's origin and must be the one asked for: a checkpoint of one tenant's log never stands for another's.
- The signing key's name is the origin. Lines of keys that are not pinned are skipped (witnesses may add theirs); a line that
  names a pinned key and does not verify is a refusal.
- A pinned log key must have signed; nothing else counts.

Source: C2SP signed-note (v1), tlog-checkpoint (v1), algorithm byte 0x01 for Ed25519.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from licet_attestations import merkle, vkey
from licet_attestations.dsse import decode_base64
from licet_attestations.errors import FormatError, VerificationError
from licet_attestations.keys import ED25519, PrivateKey, PublicKey
from licet_attestations.vkey import ID_BYTES, LOG_KIND, VerifierKey

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_NOTE_BYTES = 64 * 1024
_MAX_SIGNATURES = 64
_KEY_ID_BYTES = ID_BYTES
_SIZE = re.compile(r"0|[1-9][0-9]{0,15}")
_NAME = re.compile(r"[^\s+]{1,255}")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")
MARK = "\u2014 "
"""What a signature line of a note begins with."""


def encode_hash(hash_: bytes) -> str:
    """A hash as it stands in a line of a note or a proof."""
    return base64.b64encode(hash_).decode()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The head of a log.

    Attributes:
        origin: The log's name.
        size: Number of entries.
        root: Root of the tree over them, 32 bytes.
    """

    origin: str
    size: int
    root: bytes

    def to_text(self) -> str:
        """The note's text: origin, size and root, a line each."""
        if not _NAME.fullmatch(self.origin) or _CONTROL.search(self.origin):
            raise FormatError(f"{self.origin!r} is not an origin: no spaces, no '+'")
        if self.size < 0 or not _SIZE.fullmatch(str(self.size)) or len(self.root) != merkle.HASH_BYTES:
            raise FormatError("a checkpoint has a size from 0 and a root of 32 bytes")
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


def key_id(name: str, key: PublicKey) -> bytes:
    """The four bytes by which a note names a log's key."""
    return vkey.key_id(name, LOG_KIND, key)


def verifier_key(origin: str, key: PublicKey) -> str:
    """A log's key as a C2SP ``vkey`` line, for verifiers that are not ours."""
    return VerifierKey(origin, LOG_KIND, key).to_text()


def sign_checkpoint(checkpoint: Checkpoint, key: PrivateKey) -> str:
    """Sign ``checkpoint`` as a note, with the log's Ed25519 key.

    Raises:
        FormatError: The key is of another kind, or the checkpoint cannot be written.
    """
    if key.public.alg != ED25519:
        raise FormatError("a log is signed with an Ed25519 key")
    text = checkpoint.to_text()
    signature = key_id(checkpoint.origin, key.public) + key.sign(text.encode())
    return f"{text}\n{MARK}{checkpoint.origin} {base64.b64encode(signature).decode()}\n"


def parse_note(note: str) -> tuple[Checkpoint, str, list[tuple[str, bytes]]]:
    """Split a note into its checkpoint, signed text and (name, signature) lines; verifies nothing.

    Raises:
        FormatError: Not a signed checkpoint.
    """
    if len(note) > MAX_NOTE_BYTES or _CONTROL.search(note):
        raise FormatError("a note is too long, or has control characters in it")
    text, blank, rest = note.rpartition("\n\n")
    text += "\n"
    if not blank or not rest.endswith("\n"):
        raise FormatError("a note has a text, a blank line and signature lines, each ended by a newline")
    lines = text[:-1].split("\n")
    # NOTE: tlog-checkpoint allows extension lines and advises against them. Ours have none, so none are accepted.
    if len(lines) != 3 or not _SIZE.fullmatch(lines[1]) or not lines[0]:  # noqa: PLR2004  # Origin, size, root.
        raise FormatError("a checkpoint has exactly an origin, a size and a root")
    root = decode_base64(lines[2], "a checkpoint's root")
    if len(root) != merkle.HASH_BYTES:
        raise FormatError("a checkpoint's root has 32 bytes")
    signatures = []
    for line in rest[:-1].split("\n"):
        name, space, encoded = line.removeprefix(MARK).partition(" ")
        if not line.startswith(MARK) or not space or not _NAME.fullmatch(name):
            raise FormatError("a signature line of a note is a dash, a key's name and base64")
        signature = decode_base64(encoded, "a note's signature")
        if len(signature) <= _KEY_ID_BYTES:
            raise FormatError("a note's signature is too short")
        signatures.append((name, signature))
    if len(signatures) > _MAX_SIGNATURES:
        raise FormatError(f"a note has more than {_MAX_SIGNATURES} signatures")
    return Checkpoint(lines[0], int(lines[1]), root), text, signatures


def verify_checkpoint(note: str, origin: str, keys: Iterable[PublicKey]) -> Checkpoint:
    """Verify that one of ``keys`` signed ``note`` as the head of log ``origin``, and return the checkpoint.

    Args:
        note: Signed note, not trusted.
        origin: The log it must be of.
        keys: Pinned Ed25519 log keys.

    Raises:
        VerificationError: Not a checkpoint, of another log, or not signed by any of the keys.
    """
    try:
        checkpoint, text, signatures = parse_note(note)
    except FormatError as error:
        raise VerificationError(f"not a checkpoint: {error}") from error
    if checkpoint.origin != origin:
        raise VerificationError(f"the checkpoint is of log {checkpoint.origin!r}, not {origin!r}")
    pinned = {key_id(origin, key): key for key in keys if key.alg == ED25519}
    signed = False
    for name, signature in signatures:
        key = pinned.get(signature[:_KEY_ID_BYTES]) if name == origin else None
        if key is not None:
            key.verify(signature[_KEY_ID_BYTES:], text.encode())
            signed = True
    if not signed:
        raise VerificationError(f"no pinned log key signed the checkpoint of {origin!r}")
    return checkpoint
