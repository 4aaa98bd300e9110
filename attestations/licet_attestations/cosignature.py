"""Cosignatures: a witness's word that a log did not fork, as far as it saw.

Rules kept here:

- What is signed are a header, a time, and the checkpoint's whole text: no other signature can be taken for one.
- A cosigner's key is of its own kind (0x04), so a log's key never cosigns.
- A line that names a known key and does not verify is a refusal, as in any note; lines of unknown keys are skipped.

Source: C2SP tlog-cosignature (v1), Ed25519.
"""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from licet_attestations.checkpoint import MARK, parse_note
from licet_attestations.errors import FormatError, VerificationError
from licet_attestations.keys import ED25519, PrivateKey
from licet_attestations.vkey import COSIGNER_KIND, ID_BYTES, VerifierKey

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_TIME_S = 2**63 - 1
MAX_LINES_BYTES = 16 * 1024
_TIME = struct.Struct(">Q")
_SIGNATURE_BYTES = 64


@dataclass(frozen=True, slots=True)
class Cosignature:
    """A verified cosignature.

    Attributes:
        key: Whose.
        time_s: When it was made, by the cosigner's clock, in seconds since the epoch.
        line: The line of the note, with its newline.
    """

    key: VerifierKey
    time_s: int
    line: str


def message(text: str, time_s: int) -> bytes:
    """What a cosigner signs: the header, the time, and a checkpoint's text with its last newline."""
    return f"cosignature/v1\ntime {time_s}\n{text}".encode()


def cosign(note: str, name: str, key: PrivateKey, time_s: int) -> str:
    """Cosign a checkpoint; return the line to be added to its note.

    Args:
        note: A signed checkpoint. That it is the log's, and extends what was seen before, is for the caller to have verified.
        name: The cosigner's.
        key: Ed25519, used for nothing else.
        time_s: Now.

    Raises:
        FormatError: Not a checkpoint, a key of another kind, or a time that cannot be written.
    """
    if key.public.alg != ED25519:
        raise FormatError("a witness signs with an Ed25519 key")
    if not 0 <= time_s <= MAX_TIME_S:
        raise FormatError("the time of a cosignature is seconds since the epoch, below 2^63")
    _, text, _ = parse_note(note)
    named = VerifierKey(name, COSIGNER_KIND, key.public)
    signature = named.id + _TIME.pack(time_s) + key.sign(message(text, time_s))
    return _line(name, signature)


def verify_cosignatures(note: str, keys: Iterable[VerifierKey]) -> dict[VerifierKey, Cosignature]:
    """Verify the lines of ``note`` that name one of ``keys``; the newest of each key.

    That the log itself signed the note is for ``checkpoint.verify_checkpoint`` to say.

    Raises:
        VerificationError: Not a checkpoint, or a line that names one of the keys is not its cosignature.
    """
    try:
        _, text, signatures = parse_note(note)
    except FormatError as error:
        raise VerificationError(f"not a checkpoint: {error}") from error
    known = {(key.name, key.id): key for key in keys if key.kind == COSIGNER_KIND}
    found: dict[VerifierKey, Cosignature] = {}
    for name, signature in signatures:
        key = known.get((name, signature[:ID_BYTES]))
        if key is None:
            continue
        body = signature[ID_BYTES:]
        if len(body) != _TIME.size + _SIGNATURE_BYTES:
            raise VerificationError(f"the line of {name!r} is not a cosignature of Ed25519", where=f"witness {name}")
        (time_s,) = _TIME.unpack(body[: _TIME.size])
        if time_s > MAX_TIME_S:
            raise VerificationError(f"the cosignature of {name!r} has a time beyond all times", where=f"witness {name}")
        key.key.verify(body[_TIME.size :], message(text, time_s))
        if key not in found or found[key].time_s < time_s:
            found[key] = Cosignature(key, time_s, _line(name, signature))
    return found


def read_lines(note: str, lines: str, key: VerifierKey) -> Cosignature:
    """The cosignature of ``key`` among what a witness answered for ``note``; other lines are ignored.

    Raises:
        VerificationError: Not signature lines, none of the key, or one of it that does not verify.
    """
    if len(lines.encode()) > MAX_LINES_BYTES or not lines.endswith("\n"):
        raise VerificationError("a witness answers with signature lines, each ended by a newline")
    found = verify_cosignatures(without_signatures(note) + lines, (key,))
    if key not in found:
        raise VerificationError(f"the answer has no cosignature of {key.name!r} under the key that is pinned")
    return found[key]


def without_signatures(note: str) -> str:
    """A note's text and blank line, for other signature lines to follow."""
    text, blank, _ = note.rpartition("\n\n")
    return text + blank


def _line(name: str, signature: bytes) -> str:
    return f"{MARK}{name} {base64.b64encode(signature).decode()}\n"
