"""Building an evidence archive from what a log holds.

Rules kept here:

- What would not verify is not written: indices in order, the root of the checkpoint, and every record against its commitment are
  checked on the way.
- An erased record is named as erased, in a statement that is signed. It cannot merely be left out.
- The archive holds only one file in memory at a time and takes its inputs as iterables.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from licet_attestations import archive, canonical, checkpoint, dsse, merkle, statement
from licet_attestations.errors import FormatError
from licet_attestations.leaf import Leaf, verify_commitment

Record = tuple[int, bytes | None, bytes | None]
"""Index, salt and record bytes of an entry; salt and bytes are None where the record is erased."""

SignExport = Callable[[bytes], bytes]
"""Signs the export statement with an attestation key; returns the DSSE envelope as JSON."""

README = """\
Licet evidence archive
======================

What a tenant's log holds over a range of entries, with all that is needed to verify it offline.

  manifest.json           SHA-256 and size of every file but itself and statement.dsse.json
  statement.dsse.json     signed statement that names the manifest, the tenant and the range
  checkpoint.txt          signed head of the log (C2SP signed note)
  log/leaves.jsonl        one entry's header a line, in order (leaves of an RFC 6962 tree)
  log/range.json          which entries these are, and which records are erased
  records/N.json          the record of entry N and the salt of its commitment
  facts/, bundles/        what decisions were made on, by SHA-256
  attestations/           signed in-toto statements (DSSE), by SHA-256 of their payload
  isolation.dsse.json     signed isolation answer, where one was asked for

Verify it with

  python -m licet_attestations THIS.zip --trust-root trust-root.json

where the trust root has come to you by another way than this archive.
"""


@dataclass(frozen=True, slots=True)
class BuiltArchive:
    """What was written.

    Attributes:
        manifest_digest_hex: SHA-256 of the manifest, which the signed statement names.
        first: First entry.
        size: Size of the log at the checkpoint: the entry after the last.
        erased: How many records are erased.
        files: Number of files.
    """

    manifest_digest_hex: str
    first: int
    size: int
    erased: int
    files: int


class _Range:
    """Collects what must agree about the range while the inputs stream by."""

    def __init__(self, first: int, frontier: Sequence[bytes]) -> None:
        self.first = first
        self.tree = merkle.Frontier(first, frontier)
        self.leaves: list[Leaf] = []
        self.erased: list[int] = []

    def leaf_lines(self, leaves: Iterable[Leaf | bytes]) -> Iterator[bytes]:
        for given in leaves:
            leaf = given if isinstance(given, Leaf) else Leaf.from_bytes(given)
            text = leaf.to_bytes()
            self.tree.append(merkle.leaf_hash(text))
            self.leaves.append(leaf)
            yield text + b"\n"

    @property
    def last_time_ms(self) -> int:
        return self.leaves[-1].time_ms if self.leaves else 0

    def to_dict(self, tenant: str, origin: str, frontier: Sequence[bytes]) -> dict[str, object]:
        return {
            "v": 1,
            "tenant": tenant,
            "origin": origin,
            "first": self.first,
            "size": self.tree.size,
            "frontier_first": [part.hex() for part in frontier],
            "erased": self.erased,
        }

    def record_file(self, index: int, expected: int, salt: bytes | None, record: bytes | None) -> bytes | None:
        position = index - self.first
        if index != expected or position >= len(self.leaves):
            raise FormatError(f"records must come one for each entry in order; {expected} was due, {index} came")
        if salt is None or record is None:
            self.erased.append(index)
            return None
        verify_commitment(self.leaves[position], salt, record)
        value = canonical.loads(record, canonical=True)
        return canonical.dumps({"salt": salt.hex(), "record": value})


def build_archive(
    out: Path | BinaryIO,
    *,
    tenant: str,
    origin: str,
    leaves: Iterable[Leaf | bytes],
    records: Iterable[Record],
    facts: Iterable[bytes],
    bundles: Iterable[bytes],
    attestations: Iterable[bytes],
    checkpoint_note: str,
    sign_export: SignExport,
    first: int = 0,
    frontier: Sequence[bytes] = (),
    isolation: bytes | None = None,
    exported_at_ms: int | None = None,
) -> BuiltArchive:
    """Write an evidence archive.

    Args:
        out: Where to: a path (written beside it, renamed when whole) or a seekable stream.
        tenant: Whose log.
        origin: The log's origin.
        leaves: Every leaf from ``first`` up to the checkpoint's size.
        records: One for each leaf, in order.
        facts: Canonical JSON of every entity that a decision in the range names. Twice the same is once.
        bundles: Canonical JSON of every policy bundle that a decision in the range names.
        attestations: Envelope (JSON) of every attestation that the range logs.
        checkpoint_note: Signed checkpoint at the end of the range.
        sign_export: Signs the export statement.
        first: First entry.
        frontier: The tree's frontier before ``first``: hashes, largest subtree first.
        isolation: Envelope of a signed isolation answer.
        exported_at_ms: When; the last entry's time if not given.

    Raises:
        FormatError: Inputs that do not fit each other.
        VerificationError: A record that is not what its leaf commits to.
    """
    with _stream(out) as stream:
        writer = archive.ArchiveWriter(stream)
        span = _Range(first, frontier)
        writer.add(archive.README, README.encode())
        writer.add(archive.CHECKPOINT, checkpoint_note.encode())
        writer.add(archive.LEAVES, span.leaf_lines(leaves))
        head, _, _ = checkpoint.parse_note(checkpoint_note)
        if (head.origin, head.size, head.root) != (origin, span.tree.size, span.tree.root()):
            raise FormatError(f"the leaves do not lead to the checkpoint of {head.origin!r} at size {head.size}")
        expected = first
        for expected, (index, salt, record) in enumerate(records, start=first):
            content = span.record_file(index, expected, salt, record)
            if content is not None:
                writer.add(f"records/{index}.json", content)
        if span.leaves and expected + 1 != head.size:
            raise FormatError(f"records end at entry {expected}, the log at {head.size - 1}")
        writer.add(archive.RANGE, canonical.dumps(span.to_dict(tenant, origin, frontier)))
        _add_by_digest(writer, "facts/{}.json", facts, lambda data: data)
        _add_by_digest(writer, "bundles/{}.json", bundles, lambda data: data)
        _add_by_digest(writer, "attestations/{}.dsse.json", attestations, lambda e: dsse.Envelope.from_json(e).payload)
        if isolation is not None:
            writer.add(archive.ISOLATION, isolation)
        manifest = canonical.dumps({"v": 1, "tenant": tenant, "files": dict(sorted(writer.files.items()))})
        writer.add(archive.MANIFEST, manifest)
        digest_hex = hashlib.sha256(manifest).hexdigest()
        predicate = {
            "v": 1,
            "tenant": tenant,
            "origin": origin,
            "first": first,
            "size": head.size,
            "root": head.root.hex(),
            "erased": len(span.erased),
            "exported_at_ms": span.last_time_ms if exported_at_ms is None else exported_at_ms,
        }
        subject = statement.Subject(archive.MANIFEST, digest_hex)
        claim = statement.Statement((subject,), statement.EXPORT, predicate)
        writer.add(archive.STATEMENT, sign_export(claim.to_bytes()))
        writer.finish()
    return BuiltArchive(digest_hex, first, head.size, len(span.erased), len(writer.files))


def _add_by_digest(
    writer: archive.ArchiveWriter, name: str, items: Iterable[bytes], content: Callable[[bytes], bytes]
) -> None:
    for item in items:
        path = name.format(hashlib.sha256(content(item)).hexdigest())
        if path not in writer.files:
            writer.add(path, item)


@contextlib.contextmanager
def _stream(out: Path | BinaryIO) -> Iterator[BinaryIO]:
    """The stream to write to. For a path, a file beside it that takes its name only when it is whole and synced."""
    if not isinstance(out, Path):
        yield out
        return
    part = out.with_name(out.name + ".part")
    try:
        with part.open("w+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(out)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
