"""The entries of an archive, read chunk by chunk.

Rules kept here:

- A chunk stands for itself: what its entries name (facts, attestations) is in the chunks of the same number. So memory is bounded whatever
  the archive holds, and chunks can be read by several processes.
- A line is the entry's record as it was committed to, between a salt and nothing else. What is read here is well-formed; whether it is
  true is for the verifier.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Final

from licet_attestations import archive, canonical, dsse
from licet_attestations.errors import FormatError, VerificationError
from licet_attestations.leaf import MAX_LEAF_BYTES, Leaf

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from licet_attestations.window import Window

MAX_RECORD_BYTES: Final = 16 * 1024 * 1024
ERASED: Final = b'{"erased":true}'
_RECORD: Final = re.compile(rb'\{"record":(\{.*\}),"salt":"([0-9a-f]{64})"\}', re.DOTALL)
_LINE_BYTES: Final = MAX_RECORD_BYTES + 128
_CHUNKS_KEPT: Final = 4


def record_line(salt: bytes | None, record: bytes | None) -> bytes:
    """The line of a record, without its end; that of an erased one where either is None."""
    if salt is None or record is None:
        return ERASED
    return b'{"record":%b,"salt":"%b"}' % (record, salt.hex().encode())


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of an archive.

    Attributes:
        index: Its place in the log.
        text: Its leaf, as it is hashed.
        leaf: The same, read.
        salt: Of its commitment; None where the record is erased.
        data: The record as it was committed to; None where it is erased.
        record: The same, read.
    """

    index: int
    text: bytes
    leaf: Leaf
    salt: bytes | None
    data: bytes | None
    record: Mapping[str, Any] | None


class Chunk:
    """The entries of one chunk and what they name.

    Args:
        files: Of the archive.
        start: First entry.
        end: The entry after the last.
    """

    def __init__(self, files: archive.Files, start: int, end: int) -> None:
        self._files = files
        self.start, self.end = start, end

    def name(self, folder: str) -> str:
        """The file's name in one of the folders."""
        return archive.chunk_name(folder, self.start)

    def leaves(self) -> Iterator[bytes]:
        """The leaves' texts."""
        return self._counted(archive.LEAVES, MAX_LEAF_BYTES)

    def lines(self) -> Iterator[tuple[bytes, bytes]]:
        """The leaves' texts, each with the line of its record.

        Raises:
            VerificationError: There are more or fewer lines than entries.
        """
        return zip(self.leaves(), self._counted(archive.RECORDS, _LINE_BYTES), strict=True)

    def entries(self, kind: str | None = None) -> Iterator[Entry]:
        """The entries, in order; of one kind, if one is given.

        Raises:
            VerificationError: There are more or fewer lines than entries.
            FormatError: A line is not an entry's.
        """
        for index, (text, line) in enumerate(self.lines(), start=self.start):
            leaf = Leaf.from_bytes(text)
            if kind in {None, leaf.kind}:
                yield _entry(index, text, leaf, line)

    def _counted(self, folder: str, max_bytes: int) -> Iterator[bytes]:
        count = self.end - self.start
        number = 0
        for line in self._files.lines(self.name(folder), max_bytes):
            number += 1
            if number > count:
                break
            yield line
        if number != count:
            what = "more lines" if number > count else f"{number} lines"
            raise VerificationError(f"a chunk of {count} entries has {what}", where=self.name(folder))

    @cached_property
    def facts(self) -> Mapping[str, bytes]:
        """Canonical JSON of the facts that its decisions name, by SHA-256.

        Raises:
            VerificationError: They are not in order, or one is there twice.
        """
        return _read_by_digest(self._files, self.name(archive.FACTS), lambda line: line, is_sorted=True)

    @cached_property
    def attestations(self) -> Mapping[str, bytes]:
        """Envelopes of the attestations that its entries name, by the SHA-256 of their payload."""
        return read_envelopes(self._files, self.name(archive.ATTESTATIONS))


class Entries:
    """The entries of an archive.

    Args:
        files: Of the archive.
        window: Which they are.
    """

    def __init__(self, files: archive.Files, window: Window) -> None:
        self._files = files
        self._first, self._end = window.first, window.end
        self._kept = lru_cache(maxsize=_CHUNKS_KEPT)(self._read_chunk)

    def chunks(self, first: int | None = None) -> Iterator[Chunk]:
        """The chunks in order, or those from the one on that begins with ``first``."""
        for start in archive.chunk_starts(self._first if first is None else first, self._end):
            yield Chunk(self._files, start, archive.chunk_end(start, self._end))

    def __iter__(self) -> Iterator[Entry]:
        """The entries in order."""
        for chunk in self.chunks():
            yield from chunk.entries()

    def __getitem__(self, index: int) -> Entry:
        """One entry of the window.

        Raises:
            IndexError: It is not in it.
        """
        if not self._first <= index < self._end:
            raise IndexError(index)
        start = max(self._first, index // archive.CHUNK * archive.CHUNK)
        text, line = self._kept(start)[index - start]
        return _entry(index, text, Leaf.from_bytes(text), line)

    def _read_chunk(self, start: int) -> list[tuple[bytes, bytes]]:
        return list(Chunk(self._files, start, archive.chunk_end(start, self._end)).lines())


def read_envelopes(files: archive.Files, name: str) -> Mapping[str, bytes]:
    """Envelopes, one a line, by the SHA-256 of their payload; none where there is no such file.

    Raises:
        VerificationError: One is there twice.
    """
    return _read_by_digest(files, name, lambda line: dsse.Envelope.from_json(line).payload)


def _read_by_digest(files: archive.Files, name: str, content: Any, *, is_sorted: bool = False) -> Mapping[str, bytes]:
    found: dict[str, bytes] = {}
    last = ""
    for line in files.lines(name, MAX_RECORD_BYTES) if name in files else ():
        digest_hex = hashlib.sha256(content(line)).hexdigest()
        if digest_hex in found or (is_sorted and digest_hex < last):
            raise VerificationError("a line is there twice, or not in its place", where=name)
        found[digest_hex] = line
        last = digest_hex
    return found


def _entry(index: int, text: bytes, leaf: Leaf, line: bytes) -> Entry:
    if line == ERASED:
        return Entry(index, text, leaf, None, None, None)
    found = _RECORD.fullmatch(line)
    if found is None:
        raise FormatError("a line is a record with its salt of 32 bytes in hex, or says that it is erased")
    data, salt = found.groups()
    record = canonical.loads(data, max_bytes=MAX_RECORD_BYTES)
    if not isinstance(record, dict):
        raise FormatError("a record is an object")
    return Entry(index, text, leaf, bytes.fromhex(salt.decode()), data, record)
