"""Offline proofs of inclusion, in the C2SP ``.tlog-proof`` text.

Rules kept here:

- A proof proves nothing until ``verify`` has checked the checkpoint's signature and the path under it.
- Extra data is carried by the format but authenticated by nothing: ours have none, and none are accepted.

Source: C2SP tlog-proof (v1).
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from licet_attestations import checkpoint as checkpoints
from licet_attestations import merkle
from licet_attestations.dsse import decode_base64
from licet_attestations.errors import FormatError, VerificationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from licet_attestations.keys import PublicKey

HEADER = "c2sp.org/tlog-proof@v1"
_MAX_PATH = 64
_INDEX = re.compile(r"index (0|[1-9][0-9]{0,15})")


@dataclass(frozen=True, slots=True)
class TlogProof:
    """A proof that something is entry ``index`` of a checkpointed log.

    Attributes:
        index: 0-based.
        path: Sibling hashes, leaf to root.
        note: The signed checkpoint, verbatim.
    """

    index: int
    path: tuple[bytes, ...]
    note: str

    def to_text(self) -> str:
        """The proof as text."""
        hashes = "".join(f"{base64.b64encode(part).decode()}\n" for part in self.path)
        return f"{HEADER}\nindex {self.index}\n{hashes}\n{self.note}"

    @classmethod
    def from_text(cls, text: str) -> TlogProof:
        """Read a proof; verifies nothing.

        Raises:
            FormatError: Not a proof.
        """
        if len(text) > checkpoints.MAX_NOTE_BYTES + 64 * _MAX_PATH:
            raise FormatError("a log proof is too long")
        head, blank, note = text.partition("\n\n")
        lines = head.split("\n")
        if not blank or lines[0] != HEADER or len(lines) < 2:  # noqa: PLR2004  # The header and the index.
            raise FormatError(f"a log proof begins with {HEADER!r} and an index, and ends with a checkpoint")
        index = _INDEX.fullmatch(lines[1])
        if index is None:
            raise FormatError("a log proof's second line is its index")
        path = tuple(decode_base64(line, "a hash of a log proof") for line in lines[2:])
        if len(path) > _MAX_PATH or any(len(part) != merkle.HASH_BYTES for part in path):
            raise FormatError("a log proof's path is at most 64 hashes of 32 bytes")
        return cls(int(index.group(1)), path, note)


def verify(text: str, leaf: bytes, origin: str, keys: Iterable[PublicKey]) -> tuple[int, checkpoints.Checkpoint]:
    """Verify that ``leaf`` is in log ``origin``, and return its index and the checkpoint it stands under.

    Args:
        text: The proof, not trusted.
        leaf: Raw leaf bytes, not their hash.
        origin: The log it must be of.
        keys: Pinned Ed25519 log keys.

    Raises:
        VerificationError: Not a proof, another log, no pinned signature, or another root.
    """
    try:
        proof = TlogProof.from_text(text)
    except FormatError as error:
        raise VerificationError(f"not a log proof: {error}") from error
    head = checkpoints.verify_checkpoint(proof.note, origin, keys)
    merkle.verify_inclusion(merkle.leaf_hash(leaf), proof.index, head.size, proof.path, head.root)
    return proof.index, head
