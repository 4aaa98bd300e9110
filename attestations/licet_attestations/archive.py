"""The evidence archive: a zip file of one exact form, its writer and its reader.

Rules kept here:

- There is one archive for one content. Files are stored uncompressed, one after another from the first byte, without extra
  fields, comments or times; the reader rebuilds every header from names, sizes and checksums and compares. So there is no place
  for hidden bytes, links, encryption, overlaps or bombs, and no byte that can change unseen. Any unzip program can read it.
- Names are those of the layout and no others; none leads out of the folder it is unpacked to.
- Sizes and counts are bounded before anything is read.
- The writer holds no more than one file in memory, and the same inputs give the same bytes (but for the export's signature).
- What was cut off can be gone on with: every file that was written whole is found by its header and checksum, and what follows is dropped.

Source: PKWARE APPNOTE 6.3.10 sections 4.3.7, 4.3.12, 4.3.14 to 4.3.16.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Self

from licet_attestations.errors import FormatError, VerificationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from types import TracebackType

VERSION = 2
"""Of the archive's layout."""

MANIFEST = "manifest.json"
CHECKPOINT = "checkpoint.txt"
RANGE = "log/range.json"
OUTSIDE = "log/outside.jsonl"
OUTSIDE_ATTESTATIONS = "log/outside.attestations.jsonl"
STATEMENT = "statement.dsse.json"
ISOLATION = "isolation.dsse.json"
DIRECTORY = "directory.json"
README = "README.txt"
REQUIRED = frozenset({MANIFEST, CHECKPOINT, RANGE, STATEMENT, README})
UNLISTED = frozenset({MANIFEST, STATEMENT})
"""What the manifest does not list: itself, and the statement that names it."""
SHEET, INDEX, REPORT, OSCAL = "entries.csv", "index.json", "report.html", "oscal.json"
REPORTS = frozenset({SHEET, INDEX, REPORT, OSCAL})
"""Made from the rest for people and other programs; nothing is verified by them."""

CHUNK = 1024
"""Entries of one chunk; chunks begin at its multiples, and the first with the first entry."""
LEAVES, RECORDS, FACTS, ATTESTATIONS = "leaves", "records", "facts", "attestations"
"""Folders of chunks: a line for each entry, and what these entries name."""
BUNDLES = "bundles"
"""Folder of policy bundles, by digest."""

MAX_FILES = 100_000
MAX_ARCHIVE_BYTES = 2**32 - 1
_MAX_NAME_BYTES = 128
_CHUNK_BYTES = 1024 * 1024

_FIXED = REQUIRED | REPORTS | {OUTSIDE, OUTSIDE_ATTESTATIONS, ISOLATION, DIRECTORY}
_BUNDLE_NAME = re.compile(rf"{BUNDLES}/[0-9a-f]{{64}}\.json")
_CHUNK_NAME = re.compile(rf"({LEAVES}|{RECORDS}|{FACTS}|{ATTESTATIONS})/([0-9]{{12}})\.jsonl")

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_VERSION = 20
_VERSION64 = 45
_MADE_BY = 3 << 8 | _VERSION  # Unix, so that the mode below is read.
_DATE = 1 << 5 | 1  # 1 January 1980, the earliest there is: an archive bears no time of its own.
_MODE = (stat.S_IFREG | 0o644) << 16
_STORED = 0
_MAX_COUNT = 0xFFFF


def chunk_name(folder: str, first: int) -> str:
    """Name of the chunk whose first entry is ``first``."""
    return f"{folder}/{first:012d}.jsonl"


def chunk_with(folder: str, index: int, first: int) -> str:
    """Name of the chunk that has an entry, in a window that begins with ``first``."""
    return chunk_name(folder, max(first, index // CHUNK * CHUNK))


def is_chunk(name: str) -> bool:
    """Whether a file of the layout is a chunk of something."""
    return _CHUNK_NAME.fullmatch(name) is not None


def bundle_name(digest_hex: str) -> str:
    """Name of a policy bundle by its digest."""
    return f"{BUNDLES}/{digest_hex}.json"


def is_of_layout(name: str) -> bool:
    """Whether an archive may have a file of this name."""
    return name in _FIXED or is_chunk(name) or _BUNDLE_NAME.fullmatch(name) is not None


def chunk_starts(first: int, end: int) -> Iterator[int]:
    """The first entry of every chunk of the entries from ``first`` up to ``end``."""
    while first < end:
        yield first
        first = (first // CHUNK + 1) * CHUNK


def chunk_count(first: int, end: int) -> int:
    """How many chunks the entries from ``first`` up to ``end`` come in."""
    return 0 if first >= end else (end - 1) // CHUNK - first // CHUNK + 1


def chunk_end(start: int, end: int) -> int:
    """The entry after the last of the chunk that begins with ``start``, where the entries end at ``end``."""
    return min(end, (start // CHUNK + 1) * CHUNK)


@dataclass(frozen=True, slots=True)
class Member:
    """A file of an archive.

    Attributes:
        name: One of the layout.
        size: Bytes.
        crc: CRC-32 of its bytes, for unzip programs.
        offset: Where its local header begins.
    """

    name: str
    size: int
    crc: int
    offset: int

    def local(self) -> bytes:
        """Its local header."""
        name = self.name.encode("ascii")
        fields = (_VERSION, 0, _STORED, 0, _DATE, self.crc, self.size, self.size, len(name), 0)
        return _LOCAL.pack(b"PK\x03\x04", *fields) + name

    def central(self) -> bytes:
        """Its entry in the central directory."""
        name = self.name.encode("ascii")
        fields = (_MADE_BY, _VERSION, 0, _STORED, 0, _DATE, self.crc, self.size, self.size, len(name), 0, 0, 0, 0)
        return _CENTRAL.pack(b"PK\x01\x02", *fields, _MODE, self.offset) + name

    @property
    def end(self) -> int:
        """The byte after its last."""
        return self.offset + _LOCAL.size + len(self.name) + self.size


def _tail(members: Iterable[Member], offset: int) -> Iterator[bytes]:
    """What stands after the last file: the central directory and its end records."""
    count = size = 0
    for member in members:
        entry = member.central()
        count, size = count + 1, size + len(entry)
        yield entry
    if count >= _MAX_COUNT:
        yield _END64.pack(
            b"PK\x06\x06", _END64.size - 12, _MADE_BY, _VERSION64, 0, 0, count, count, size, offset
        ) + _LOCATOR64.pack(b"PK\x06\x07", 0, offset + size, 1)
    shown = min(count, _MAX_COUNT)
    yield _END.pack(b"PK\x05\x06", 0, 0, shown, shown, size, offset, 0)


class Files:
    """Files that lie one after another in a stream, as an archive has them.

    Attributes:
        members: By name, in their order.
    """

    def __init__(self, stream: BinaryIO, members: dict[str, Member]) -> None:
        self._file = stream
        self.members = members

    def _at(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(length)

    def names(self, folder: str) -> list[str]:
        """The names that begin with ``folder``, in the archive's order."""
        return [name for name in self.members if name.startswith(folder)]

    def __contains__(self, name: str) -> bool:
        return name in self.members

    def chunks(self, name: str) -> Iterator[bytes]:
        """The bytes of a file, in pieces.

        Raises:
            VerificationError: There is no such file.
        """
        member = self.members.get(name)
        if member is None:
            raise VerificationError("the archive lacks a file", where=name)
        position = member.end - member.size
        while position < member.end:
            chunk = self._at(position, min(_CHUNK_BYTES, member.end - position))
            if not chunk:
                raise VerificationError("the archive was cut short while it was read", where=name)
            position += len(chunk)
            yield chunk

    def read(self, name: str, max_bytes: int) -> bytes:
        """The bytes of a file.

        Raises:
            VerificationError: There is no such file, or it is larger than ``max_bytes``.
        """
        member = self.members.get(name)
        if member is not None and member.size > max_bytes:
            raise VerificationError(f"a file of {member.size} bytes is larger than the {max_bytes} allowed", where=name)
        return b"".join(self.chunks(name))

    def lines(self, name: str, max_bytes: int) -> Iterator[bytes]:
        """The lines of a file, without their ends.

        Raises:
            VerificationError: There is no such file, a line is longer than ``max_bytes``, or the last one has no end.
        """
        rest = b""
        for chunk in self.chunks(name):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if len(line) > max_bytes:
                    break
                yield line
            else:
                if len(rest) <= max_bytes:
                    continue
            raise VerificationError(f"a line is longer than the {max_bytes} bytes allowed", where=name)
        if rest:
            raise VerificationError("the last line is cut short", where=name)


class ArchiveWriter:
    """Writes an archive, file by file, to a seekable stream.

    Args:
        out: Stands at its beginning, or holds what a writer that was cut off left in it; can be read, too.
    """

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._members: dict[str, Member] = {}
        self._offset = 0
        self.files: dict[str, dict[str, str | int]] = {}
        """SHA-256 and size of every file so far, as the manifest has them."""

    def take_up(self) -> None:
        """Find the files that were written whole; the first that was not is where writing goes on."""
        self._out.seek(0)
        while (member := self._read_local()) is not None:
            crc, digest, left = 0, hashlib.sha256(), member.size
            while left and (chunk := self._out.read(min(_CHUNK_BYTES, left))):
                crc, left = zlib.crc32(chunk, crc), left - len(chunk)
                digest.update(chunk)
            if left or crc != member.crc:
                break
            self._note(member, digest.hexdigest())
        self.cut(len(self._members))

    def _read_local(self) -> Member | None:
        head = self._out.read(_LOCAL.size)
        if len(head) < _LOCAL.size or not head.startswith(b"PK\x03\x04"):
            return None
        fields = _LOCAL.unpack(head)
        name = self._out.read(min(fields[9], _MAX_NAME_BYTES))
        member = Member(name.decode("ascii", "replace"), fields[8], fields[6], self._offset)
        is_ours = is_of_layout(member.name) and member.name not in self._members and member.local() == head + name
        # One that was begun and not ended has no size yet. None of ours is empty.
        return member if is_ours and member.size else None

    def cut(self, count: int) -> None:
        """Keep the first ``count`` files, and go on behind them."""
        for name in list(self._members)[count:]:
            del self._members[name], self.files[name]
        self._offset = next((member.end for member in reversed(self._members.values())), 0)
        self._out.seek(self._offset)
        self._out.truncate()

    def _note(self, member: Member, digest_hex: str) -> None:
        self._members[member.name] = member
        self._offset = member.end
        self.files[member.name] = {"sha256": digest_hex, "size": member.size}

    def add(self, name: str, chunks: bytes | Iterable[bytes]) -> None:
        """Add a file.

        Raises:
            FormatError: Not a name of the layout, a name twice, or an archive too large.
        """
        if not is_of_layout(name) or name in self._members:
            raise FormatError(f"{name!r} is not a name for a file of an archive, or stands in it already")
        # Sizes and checksum are known at the end only: the header is written first with zeros, then over them.
        start = Member(name, 0, 0, self._offset)
        self._out.seek(self._offset)
        self._out.write(start.local())
        size, crc, digest = 0, 0, hashlib.sha256()
        for chunk in (chunks,) if isinstance(chunks, bytes) else chunks:
            if start.end + size + len(chunk) > MAX_ARCHIVE_BYTES:
                raise FormatError("the archive would be 4 GiB or larger; export a shorter time")
            # What makes the chunks may read what was written before.
            self._out.seek(start.end + size)
            self._out.write(chunk)
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
            digest.update(chunk)
        member = Member(name, size, crc, self._offset)
        self._out.seek(member.offset)
        self._out.write(member.local())
        self._out.seek(member.end)
        self._note(member, digest.hexdigest())

    def written(self) -> Files:
        """What was written so far, to be read."""
        return Files(self._out, dict(self._members))

    def finish(self) -> None:
        """Write the directory; nothing may be added after."""
        for part in _tail(self._members.values(), self._offset):
            self._out.write(part)
        self._out.flush()


class Archive(Files):
    """Reads an archive whose form has been verified when the constructor returns; its contents have not.

    Attributes:
        size: Bytes.
    """

    def __init__(self, path: Path) -> None:
        """Open ``path`` and verify its form.

        Raises:
            VerificationError: Not an archive of the one form that is allowed.
            OSError: It cannot be read.
        """
        super().__init__(path.open("rb"), {})
        try:
            status = os.fstat(self._file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise VerificationError("the archive is not a regular file", where=str(path))
            if not _END.size <= status.st_size <= MAX_ARCHIVE_BYTES:
                raise VerificationError("the archive is empty, cut short, or 4 GiB or larger", where=str(path))
            self.size = status.st_size
            self.members = self._read_directory()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _read_directory(self) -> dict[str, Member]:
        mark, _, _, count, _, _, offset, comment = _END.unpack(self._at(self.size - _END.size, _END.size))
        if mark != b"PK\x05\x06" or comment:
            raise VerificationError("not a zip file that ends where its directory ends: cut short, or added to")
        if count == _MAX_COUNT and self.size >= _END.size + _LOCATOR64.size + _END64.size:
            end64 = self._at(self.size - _END.size - _LOCATOR64.size - _END64.size, _END64.size)
            count = _END64.unpack(end64)[7]
        if count > MAX_FILES or offset > self.size:
            raise VerificationError(f"the archive has more than {MAX_FILES} files, or a directory outside of it")
        tail = self._at(offset, min(self.size - offset, MAX_FILES * (_CENTRAL.size + _MAX_NAME_BYTES)))
        members: dict[str, Member] = {}
        position = expected_offset = 0
        for _ in range(count):
            member = _read_central(tail, position)
            if member.name in members:
                raise VerificationError("the archive has two files of one name", where=member.name)
            if member.offset != expected_offset or self._at(member.offset, len(member.local())) != member.local():
                raise VerificationError(
                    "a file of the archive does not begin where the one before it ends, or its header is not the one of "
                    "this format",
                    where=member.name,
                )
            members[member.name] = member
            expected_offset = member.end
            position += _CENTRAL.size + len(member.name)
        if expected_offset != offset or b"".join(_tail(members.values(), offset)) != tail:
            raise VerificationError("the archive's directory is not the one of this format: something is hidden in it")
        missing = REQUIRED - set(members)
        if missing:
            raise VerificationError("the archive lacks a file", where=", ".join(sorted(missing)))
        return members


def _read_central(tail: bytes, position: int) -> Member:
    """Read the directory's entry at ``position``; whatever is not looked at here, the comparison with the rebuilt one is."""
    if len(tail) < position + _CENTRAL.size:
        raise VerificationError("the archive's directory is cut short")
    fields = _CENTRAL.unpack_from(tail, position)
    mark, method, crc, stored, size, name_bytes, offset = (fields[i] for i in (0, 4, 7, 8, 9, 10, 16))
    raw = tail[position + _CENTRAL.size : position + _CENTRAL.size + min(name_bytes, _MAX_NAME_BYTES)]
    name = raw.decode("ascii", "replace")
    if mark != b"PK\x01\x02":
        raise VerificationError("the archive's directory is damaged")
    if not is_of_layout(name) or len(raw) != name_bytes:
        raise VerificationError("the archive has a file that is not of its layout", where=ascii(name))
    if method != _STORED or stored != size:
        raise VerificationError("a file of the archive is compressed, which this format does not allow", where=name)
    return Member(name, size, crc, offset)
