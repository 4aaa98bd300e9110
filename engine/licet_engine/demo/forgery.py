"""Forged copies of an evidence archive, to show that they are refused."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final

from licet_attestations import archive, canonical, dsse, evidence
from licet_attestations.checkpoint import MAX_NOTE_BYTES, Checkpoint, parse_note, sign_checkpoint
from licet_attestations.entries import Chunk, Entries
from licet_attestations.isolation import Isolation
from licet_attestations.keys import PrivateKey
from licet_attestations.statement import ISOLATION, Statement, Subject
from licet_attestations.window import Window

_P256: Final = "ecdsa-p256-sha256"
_DENIED: Final = b'"decision":"deny"'


def flip_one_byte(source: Path, target: Path) -> str:
    """Copy an archive with one byte of one record changed; return the name of its file."""
    data = bytearray(source.read_bytes())
    with archive.Archive(source) as opened:
        name = next(n for n in opened.names("records/") if _DENIED in b"".join(opened.chunks(n)))
        member = opened.members[name]
    offset = data.index(_DENIED, member.end - member.size)
    data[offset + len(_DENIED) - 2] ^= 0x01
    target.write_bytes(data)
    return name


class _Forged:
    """The contents of an archive, with every attestation signed anew."""

    def __init__(self, files: archive.Files, window: Window, key: PrivateKey) -> None:
        self._files = files
        self._entries = Entries(files, window)
        self._window = window
        self._key = key
        self._chunk = Chunk(files, window.first, window.first)

    def sign(self, payload: bytes) -> bytes:
        """Sign with the forger's key."""
        return dsse.sign(payload, dsse.IN_TOTO_PAYLOAD_TYPE, self._key).to_json()

    def entries(self, first: int, end: int) -> Iterator[evidence.Raw]:
        """The entries as they are, for the forger has no others."""
        self._chunk = Chunk(self._files, first, end)
        for entry in self._chunk.entries():
            yield evidence.Raw(entry.index, entry.text, entry.salt, entry.data)

    def erasures(self, _first: int, _end: int) -> tuple[evidence.Raw, ...]:
        """Of a whole log nothing is outside."""
        return ()

    def erased_in(self, _first: int, _end: int) -> tuple[int, ...]:
        """None is."""
        return ()

    def proof(self, index: int) -> Sequence[bytes]:
        """Of a whole log nothing is outside."""
        raise LookupError(index)

    def facts_of(self, _digests: Sequence[str]) -> Iterator[bytes]:
        """Those of the chunk."""
        yield from self._chunk.facts.values()

    def attestations_of(self, _digests: Sequence[str]) -> Iterator[bytes]:
        """Those of the chunk, signed anew."""
        for envelope in self._chunk.attestations.values():
            yield self.sign(dsse.Envelope.from_json(envelope).payload)

    def examinations(self, _bundles: Collection[str]) -> tuple[int, ...]:
        """Of a whole log nothing is outside."""
        return ()

    def bundle(self, digest_hex: str) -> bytes:
        """As it is."""
        return b"".join(self._files.chunks(archive.bundle_name(digest_hex)))


def resign(source: Path, target: Path) -> None:
    """Copy the archive of a whole log with everything in it signed anew by other keys, as a forger would who holds it."""
    log_key, key = PrivateKey.generate("ed25519"), PrivateKey.generate(_P256)
    with archive.Archive(source) as opened:
        window = Window.from_json(canonical.loads(opened.read(archive.RANGE, canonical.MAX_BYTES)))
        head, _, _ = parse_note(opened.read(archive.CHECKPOINT, MAX_NOTE_BYTES).decode())
        forged = _Forged(opened, window, key)

        def sign_isolation(answer: Isolation) -> bytes:
            subject = Subject(window.origin, hashlib.sha256(head.root).hexdigest())
            return forged.sign(Statement((subject,), ISOLATION, answer.to_predicate()).to_bytes())

        evidence.build_archive(
            target,
            window,
            forged,
            checkpoint_note=sign_checkpoint(Checkpoint(window.origin, head.size, head.root), log_key),
            sign_export=forged.sign,
            exported_at_ms=time.time_ns() // 1_000_000,
            sign_isolation=sign_isolation,
        )
