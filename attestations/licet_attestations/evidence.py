"""Building an evidence archive from what a log holds.

Rules kept here:

- What would not verify is not written: indices in order, both frontiers, the checkpoint's root, and every record against its commitment
  are checked on the way.
- An erased record is named as erased, and the entry of the log that erased it is there, from wherever it stands. It cannot merely be left out.
- One chunk of entries is held in memory at a time, and what it names.
- What was cut off is gone on with: the chunks that are there whole are read back and verified as the others, up to one of which a record
  was erased since.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from licet_attestations import archive, canonical, checkpoint, dsse, erasure, merkle, statement
from licet_attestations.entries import Chunk, Entries, Entry, record_line
from licet_attestations.errors import ErasedSince, FormatError, LicetAttestationError, VerificationError
from licet_attestations.isolation import Isolation, IsolationCount
from licet_attestations.leaf import Leaf, verify_commitment
from licet_attestations.warrant import Warrant
from licet_attestations.window import MAX_OUTSIDE_BYTES, Outside, Window

if TYPE_CHECKING:
    from pathlib import Path

PART: Final = ".part"
"""What the name of an archive ends with while it is not whole."""

SignExport = Callable[[bytes], bytes]
"""Signs the export statement with an attestation key; returns the DSSE envelope as JSON."""

SignIsolation = Callable[[Isolation], bytes]
"""Signs the isolation answer; returns the DSSE envelope as JSON."""

Progress = Callable[[int, int], None]
"""Told how many entries are written, of how many."""

README: Final = """\
Licet evidence archive
======================

What a tenant's log holds over a time, with all that is needed to verify it offline.

  manifest.json           SHA-256 and size of every file but itself and statement.dsse.json
  statement.dsse.json     signed statement that names the manifest, the tenant and the range
  checkpoint.txt          signed head of the log (C2SP signed note), with the cosignatures of witnesses
  log/range.json          which entries these are, and the tree before and after them
  log/outside.jsonl       entries before and after them, each with its proof of inclusion
  log/outside.attestations.jsonl  the signed statements that these name
  leaves/N.jsonl          one entry's header a line, from entry N on (leaves of an RFC 6962 tree)
  records/N.jsonl         the record of each and the salt of its commitment, or that it is erased
  facts/N.jsonl           the facts that the decisions among them were made on
  attestations/N.jsonl    the signed in-toto statements (DSSE) that they name
  bundles/                the policies that decisions were made under, by SHA-256
  isolation.dsse.json     signed isolation answer
  directory.json          proof that the log is the one that the directory of all logs has

For people and other programs, made from the above, and proof of nothing by themselves:

  report.html             open it in a browser
  index.json              what happened, in figures
  entries.csv             one row for each entry
  oscal.json              OSCAL assessment results

Verify it with

  python -m licet_attestations THIS.zip --trust-root trust-root.json

where the trust root has come to you by another way than this archive.
"""


@dataclass(frozen=True, slots=True)
class Raw:
    """An entry as a log stores it; salt and record are None where the record is erased."""

    index: int
    text: bytes
    salt: bytes | None
    record: bytes | None


class Source(Protocol):
    """What an archive is made from. What is asked for and is not there is an error of the source."""

    def entries(self, first: int, end: int) -> Iterable[Raw]:
        """The entries from ``first`` up to ``end``, in order."""
        ...

    def erasures(self, first: int, end: int) -> Iterable[Raw]:
        """The entries among these that erase others, in order."""
        ...

    def erased_in(self, first: int, end: int) -> Collection[int]:
        """The entries among these whose records are erased."""
        ...

    def proof(self, index: int) -> Sequence[bytes]:
        """Proof of inclusion of an entry in the tree of the checkpoint."""
        ...

    def facts_of(self, digests: Sequence[str]) -> Iterable[bytes]:
        """Canonical JSON of the facts of these SHA-256, in any order."""
        ...

    def attestations_of(self, digests: Sequence[str]) -> Iterable[bytes]:
        """Envelopes of the attestations of these payloads' SHA-256, in any order."""
        ...

    def bundle(self, digest_hex: str) -> bytes:
        """Canonical JSON of the policies of this SHA-256."""
        ...

    def examinations(self, bundles: Collection[str]) -> Iterable[int]:
        """The entries of the newest attestations of whether policies keep tenants apart, by the policies' SHA-256."""
        ...


@dataclass(frozen=True, slots=True)
class Contents:
    """What an archive holds, while what is made from it is added.

    Attributes:
        files: What is written.
        window: Which entries.
        isolation: The answer over them.
        root: Of the tree at the checkpoint.
        exported_at_ms: When the archive is made.
    """

    files: archive.Files
    window: Window
    isolation: Isolation
    root: bytes
    exported_at_ms: int

    def entries(self) -> Entries:
        """The entries."""
        return Entries(self.files, self.window)


Derive = Callable[[Contents], Iterable[tuple[str, Iterable[bytes]]]]
"""Makes reports from what is written: names (of `archive.REPORTS`) and bytes."""


@dataclass(frozen=True, slots=True)
class BuiltArchive:
    """What was written.

    Attributes:
        manifest_digest_hex: SHA-256 of the manifest, which the signed statement names.
        first: First entry.
        end: The entry after the last.
        size: Size of the log at the checkpoint.
        erased: How many records are erased.
        files: Number of files.
    """

    manifest_digest_hex: str
    first: int
    end: int
    size: int
    erased: int
    files: int


def part_of(out: Path) -> Path:
    """Where an archive is written until it is whole."""
    return out.with_name(out.name + PART)


def begun(out: Path) -> tuple[Window, str] | None:
    """The window and checkpoint of an archive that was begun and cut off, to go on with; None where there is none."""
    try:
        with part_of(out).open("r+b") as stream:
            writer = archive.ArchiveWriter(stream)
            writer.take_up()
            files = writer.written()
            window = Window.from_json(canonical.loads(files.read(archive.RANGE, canonical.MAX_BYTES)))
            return window, files.read(archive.CHECKPOINT, checkpoint.MAX_NOTE_BYTES).decode()
    except (OSError, UnicodeDecodeError, LicetAttestationError):
        return None


def build_archive(
    out: Path,
    window: Window,
    source: Source,
    *,
    checkpoint_note: str,
    sign_export: SignExport,
    exported_at_ms: int,
    sign_isolation: SignIsolation | None = None,
    directory: bytes | None = None,
    derive: Derive | None = None,
    progress: Progress = lambda _done, _count: None,
) -> BuiltArchive:
    """Write an evidence archive; go on with it where one of the same window and checkpoint was cut off.

    Args:
        out: Where to. It is written beside it and renamed when it is whole and synced; what is cut off stays there.
        window: Which entries.
        source: Has them.
        checkpoint_note: Signed checkpoint of the log at the window's size.
        sign_export: Signs the export statement.
        exported_at_ms: When.
        sign_isolation: Signs the isolation answer; without, none is in it.
        directory: What shows the log to be the one the directory has (`directory.archive_file`).
        derive: Makes the reports.
        progress: Told of chunks.

    Raises:
        FormatError: What the source has does not fit the window or the checkpoint, or more stands outside the window than may.
        VerificationError: A record is not what its leaf commits to, or is missing though its kind is never erased, or no decision allowed its erasure.
        ErasedSince: A record is missing, and nothing up to the checkpoint says that it was erased.
        OSError: It cannot be written.
    """
    part = part_of(out)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    with part.open("r+b") as stream:
        builder = _Builder(archive.ArchiveWriter(stream), window, source, checkpoint_note)
        builder.begin()
        builder.write_entries(progress)
        built = builder.end(sign_export, exported_at_ms, sign_isolation, directory, derive)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(out)
    return built


@dataclass
class _Kept:
    """What must be known of the entries so far; made again from the archive where it is gone on with."""

    tree: merkle.Frontier
    isolation: IsolationCount
    erased: int = 0
    missing: erasure.Missing = field(default_factory=erasure.Missing)
    before: tuple[str, Mapping[str, Any] | None] = ("", None)  # Kind and record of the entry before.
    emptied: set[int] = field(default_factory=set)  # Of those outside, what has no record.
    last_ms: int = 0
    bundles: set[str] = field(default_factory=set)
    outside: set[int] = field(default_factory=set)


class _Builder:
    def __init__(self, writer: archive.ArchiveWriter, window: Window, source: Source, note: str) -> None:
        self._writer = writer
        self._window = window
        self._source = source
        self._note = note
        self._head, _, _ = checkpoint.parse_note(note)
        if (self._head.origin, self._head.size) != (window.origin, window.size):
            raise FormatError(f"the checkpoint is of {self._head.origin!r} at size {self._head.size}")
        self._kept = _Kept(merkle.Frontier(window.first, window.frontier_first), IsolationCount(window.tenant))
        self._next = window.first

    def begin(self) -> None:
        """Write what comes first, or take up what was begun."""
        first = {
            archive.README: README.encode(),
            archive.CHECKPOINT: self._note.encode(),
            archive.RANGE: self._window.to_bytes(),
        }
        self._writer.take_up()
        listed = {name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for name, data in first.items()}
        if list(self._writer.files.items())[: len(first)] == list(listed.items()):
            self._take_up(len(first))
            return
        self._writer.cut(0)
        for name, data in first.items():
            self._writer.add(name, data)

    def _take_up(self, count: int) -> None:
        """Read back the chunks that are whole: those after which another was begun."""
        files = self._writer.written()
        names = list(files.members)
        for start in archive.chunk_starts(self._window.first, self._window.end):
            end = archive.chunk_end(start, self._window.end)
            following = archive.chunk_name(archive.LEAVES, end)
            if end == self._window.end or following not in files:
                break
            chunk = Chunk(files, start, end)
            entries = list(chunk.entries())
            if set(self._source.erased_in(start, end)) != {entry.index for entry in entries if entry.record is None}:
                break  # A record was erased meanwhile: from here on the chunks are made anew, without it.
            for entry in entries:
                if entry.salt is not None and entry.data is not None:
                    verify_commitment(entry.leaf, entry.salt, entry.data)
                self._take(entry)
            for envelope in chunk.attestations.values():
                self._note_warrant(envelope)
            count = names.index(following)
            self._next = end
        self._writer.cut(count)

    def write_entries(self, progress: Progress) -> None:
        """Write the chunks that are not there yet."""
        total = self._window.end - self._window.first
        for start in archive.chunk_starts(self._next, self._window.end):
            progress(start - self._window.first, total)
            self._write_chunk(start, archive.chunk_end(start, self._window.end))
        progress(total, total)
        self._window.verify_end(self._kept.tree, self._head.root)
        if self._kept.tree.hashes() != list(self._window.frontier_end):
            raise FormatError("the frontier behind the last entry is another than the entries make")

    def _write_chunk(self, start: int, end: int) -> None:
        leaves, records = bytearray(), bytearray()
        facts: set[str] = set()
        attestations: dict[str, None] = {}
        index = start
        for raw in self._source.entries(start, end):
            if raw.index != index:
                raise FormatError(f"entries must come in order: {index} was due, {raw.index} came")
            index += 1
            leaf = Leaf.from_bytes(raw.text)
            record = None
            if raw.salt is not None and raw.record is not None:
                verify_commitment(leaf, raw.salt, raw.record)
                record = canonical.loads(raw.record, canonical=True)
            entry = Entry(raw.index, raw.text, leaf, raw.salt, raw.record, record)
            self._take(entry)
            leaves += raw.text + b"\n"
            records += record_line(raw.salt, raw.record) + b"\n"
            if record is not None and leaf.kind == "decision":
                facts.update(record["facts"])
            elif record is not None and leaf.kind == "attestation":
                attestations[str(record.get("digest"))] = None
        if index != end:
            raise FormatError(f"entries end at {index}, {end} are due")
        self._writer.add(archive.chunk_name(archive.LEAVES, start), bytes(leaves))
        self._writer.add(archive.chunk_name(archive.RECORDS, start), bytes(records))
        if facts:
            bodies = _by_digest(self._source.facts_of(sorted(facts)), lambda data: data)
            self._add_lines(archive.FACTS, start, [_found(bodies, name, "fact") for name in sorted(facts)])
        if attestations:
            envelopes = _by_digest(self._source.attestations_of(list(attestations)), _payload)
            lines = [_found(envelopes, name, "attestation") for name in attestations]
            for line in lines:
                self._note_warrant(line)
            self._add_lines(archive.ATTESTATIONS, start, lines)

    def _add_lines(self, folder: str, start: int, lines: list[bytes]) -> None:
        self._writer.add(archive.chunk_name(folder, start), b"".join(line + b"\n" for line in lines))

    def _take(self, entry: Entry) -> None:
        kept = self._kept
        self._window.verify_time(entry.index, entry.leaf.time_ms)
        kept.tree.append(merkle.leaf_hash(entry.text))
        kept.isolation.take(entry.leaf, entry.record)
        if entry.record is None:
            kept.erased += 1
            kept.missing.add(entry.index, entry.leaf)
        elif entry.leaf.kind == erasure.KIND and kept.missing.take(entry.index, entry.record):
            erasure.verify_decided(entry.index, entry.record, *kept.before)
        kept.before = entry.leaf.kind, entry.record
        kept.last_ms = entry.leaf.time_ms
        if entry.record is not None and entry.leaf.kind == "decision":
            facts, bundle = entry.record.get("facts"), entry.record.get("bundle")
            if not isinstance(facts, list) or not all(statement.is_sha256_hex(name) for name in (*facts, bundle)):
                raise FormatError(f"decision {entry.index} does not name what it was made on by SHA-256")
            kept.bundles.add(entry.record["bundle"])

    def _note_warrant(self, envelope: bytes) -> None:
        """A warrant stands on its decision, which may be from before the window."""
        claim = statement.Statement.from_bytes(_payload(envelope))
        if claim.predicate_type == statement.WARRANT:
            index = Warrant.from_statement(claim).decision.leaf_index
            if index < self._window.first:
                self._kept.outside.add(index)

    def end(
        self,
        sign_export: SignExport,
        exported_at_ms: int,
        sign_isolation: SignIsolation | None,
        directory: bytes | None,
        derive: Derive | None,
    ) -> BuiltArchive:
        """Write what stands behind the entries."""
        kept, window, writer = self._kept, self._window, self._writer
        kept.outside |= {
            index
            for index in self._source.examinations(kept.bundles)
            if not window.first <= index < window.end and index < window.size
        }
        self._find_erasures()
        outside = list(self._outside())
        window.verify_times({entry.index: entry for entry in outside})
        # Times never run backwards in a log; the clock of this process may have been set back since.
        exported_at_ms = max([exported_at_ms, kept.last_ms, *(entry.leaf.time_ms for entry in outside)])
        if outside:
            writer.add(archive.OUTSIDE, (entry.to_bytes() + b"\n" for entry in outside))
            self._add_outside_attestations(outside)
        for digest_hex in sorted(kept.bundles):
            writer.add(archive.bundle_name(digest_hex), self._source.bundle(digest_hex))
        answer = kept.isolation.answer()
        if sign_isolation is not None:
            writer.add(archive.ISOLATION, sign_isolation(answer))
        if directory is not None:
            writer.add(archive.DIRECTORY, directory)
        if derive is not None:
            for name, chunks in derive(Contents(writer.written(), window, answer, self._head.root, exported_at_ms)):
                writer.add(name, chunks)
        files = dict(sorted(writer.files.items()))
        manifest = canonical.dumps({"v": archive.VERSION, "tenant": window.tenant, "files": files})
        writer.add(archive.MANIFEST, manifest)
        digest_hex = hashlib.sha256(manifest).hexdigest()
        claim = export_statement(window, self._head.root, digest_hex, kept.erased, exported_at_ms)
        writer.add(archive.STATEMENT, sign_export(claim.to_bytes()))
        writer.finish()
        return BuiltArchive(digest_hex, window.first, window.end, window.size, kept.erased, len(writer.files))

    def _add_outside_attestations(self, outside: Iterable[Outside]) -> None:
        names = [str(entry.read()["digest"]) for entry in outside if entry.leaf.kind == "attestation" and entry.record]
        if names:
            envelopes = _by_digest(self._source.attestations_of(names), _payload)
            lines = [_found(envelopes, name, "attestation") + b"\n" for name in dict.fromkeys(names)]
            self._writer.add(archive.OUTSIDE_ATTESTATIONS, lines)

    def _find_erasures(self) -> None:
        """What erased a record may stand behind the window, or have erased what stands before it."""
        kept, window = self._kept, self._window
        for index in kept.outside:
            leaf, record = self._entry(index)
            if record is None:
                kept.emptied.add(index)
                kept.missing.add(index, leaf)
        if kept.missing.first is None:
            return
        for raw in self._source.erasures(window.first, window.size):
            record = {} if raw.record is None else canonical.loads(raw.record)
            if record and kept.missing.take(raw.index, record):
                # And the decision that allowed it, right before it.
                decided, decision = self._entry(raw.index - 1)
                erasure.verify_decided(raw.index, record, decided.kind, decision)
                kept.outside |= {
                    index for index in (raw.index - 1, raw.index) if not window.first <= index < window.end
                }
        if (first := kept.missing.first) is not None:
            raise ErasedSince(
                f"the record of entry {first} is missing, and no entry up to the checkpoint of {window.size} says that it was erased"
            )

    def _entry(self, index: int) -> tuple[Leaf, Mapping[str, Any] | None]:
        (raw,) = self._source.entries(index, index + 1)
        return Leaf.from_bytes(raw.text), None if raw.record is None else canonical.loads(raw.record)

    def _outside(self) -> Iterator[Outside]:
        size = 0
        for index in sorted({*self._window.edges, *self._kept.outside}):
            (raw,) = self._source.entries(index, index + 1)
            # Those that only show what time it was are given without what they say.
            is_stood_on = index in self._kept.outside
            outside = Outside(
                index=index,
                leaf=Leaf.from_bytes(raw.text),
                proof=self._source.proof(index),
                salt=raw.salt if is_stood_on else None,
                record=raw.record if is_stood_on else None,
            )
            if is_stood_on and raw.record is None and index not in self._kept.emptied:
                raise ErasedSince(f"the record of entry {index} was erased just now")
            outside.verify(self._window.size, self._head.root)
            size += len(outside.to_bytes()) + 1
            if size > MAX_OUTSIDE_BYTES:
                raise FormatError(
                    f"what shows why records are missing takes more than {MAX_OUTSIDE_BYTES} bytes: export a shorter time, or one with the erasures in it"
                )
            yield outside


def export_statement(
    window: Window, root: bytes, manifest_digest_hex: str, erased: int, exported_at_ms: int
) -> statement.Statement:
    """The statement that an export signs: what the archive is of, and which manifest it has."""
    predicate = {
        "v": archive.VERSION,
        "tenant": window.tenant,
        "origin": window.origin,
        "first": window.first,
        "end": window.end,
        "size": window.size,
        "from_ms": window.from_ms,
        "to_ms": window.to_ms,
        "root": root.hex(),
        "erased": erased,
        "exported_at_ms": exported_at_ms,
    }
    subject = statement.Subject(archive.MANIFEST, manifest_digest_hex)
    return statement.Statement((subject,), statement.EXPORT, predicate)


def _payload(envelope: bytes) -> bytes:
    return dsse.Envelope.from_json(envelope).payload


def _by_digest(items: Iterable[bytes], content: Callable[[bytes], bytes]) -> Mapping[str, bytes]:
    return {hashlib.sha256(content(item)).hexdigest(): item for item in items}


def _found(items: Mapping[str, bytes], digest_hex: str, what: str) -> bytes:
    item = items.get(digest_hex)
    if item is None:
        raise VerificationError(f"{what} {digest_hex} is named in the log, and the source does not have it")
    if b"\n" in item:
        raise FormatError(f"{what} {digest_hex} is not one line")
    return item
