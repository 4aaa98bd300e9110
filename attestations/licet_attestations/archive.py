"""The evidence archive: a zip file of one exact form, its writer and its reader.

Rules kept here:

- There is one archive for one content. Files are stored uncompressed, one after another from the first byte, without extra
  fields, comments or times; the reader rebuilds every header from names, sizes and checksums and compares. So there is no place
  for hidden bytes, links, encryption, overlaps or bombs, and no byte that can change unseen. Any unzip program can read it.
- Names are those of the layout and no others; none leads out of the folder it is unpacked to.
- Sizes and counts are bounded before anything is read.
- The writer holds no more than one file in memory, and the same inputs give the same bytes (but for the export's signature).

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

MANIFEST = "manifest.json"
CHECKPOINT = "checkpoint.txt"
LEAVES = "log/leaves.jsonl"
RANGE = "log/range.json"
STATEMENT = "statement.dsse.json"
ISOLATION = "isolation.dsse.json"
README = "README.txt"
REQUIRED = frozenset({MANIFEST, CHECKPOINT, LEAVES, RANGE, STATEMENT, README})
UNLISTED = frozenset({MANIFEST, STATEMENT})
"""What the manifest does not list: itself, and the statement that names it."""

MAX_FILES = 2_000_000
MAX_ARCHIVE_BYTES = 2**32 - 1
_MAX_NAME_BYTES = 128
_CHUNK_BYTES = 1024 * 1024

_NAME = re.compile(
    r"manifest\.json|checkpoint\.txt|log/leaves\.jsonl|log/range\.json|statement\.dsse\.json|isolation\.dsse\.json"
    r"|README\.txt|records/(?:0|[1-9][0-9]{0,15})\.json|(?:facts|bundles)/[0-9a-f]{64}\.json"
    r"|attestations/[0-9a-f]{64}\.dsse\.json"
)

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


class ArchiveWriter:
    """Writes an archive, file by file, to a seekable stream that stands at its beginning."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._members: dict[str, Member] = {}
        self._offset = 0
        self.files: dict[str, dict[str, str | int]] = {}
        """SHA-256 and size of every file so far, as the manifest has them."""

    def add(self, name: str, chunks: bytes | Iterable[bytes]) -> None:
        """Add a file.

        Raises:
            FormatError: Not a name of the layout, a name twice, or an archive too large.
        """
        if not _NAME.fullmatch(name) or name in self._members:
            raise FormatError(f"{name!r} is not a name for a file of an archive, or stands in it already")
        # Sizes and checksum are known at the end only: the header is written first with zeros, then over them.
        start = Member(name, 0, 0, self._offset)
        self._out.write(start.local())
        size, crc, digest = 0, 0, hashlib.sha256()
        for chunk in (chunks,) if isinstance(chunks, bytes) else chunks:
            size += len(chunk)
            if start.end + size > MAX_ARCHIVE_BYTES:
                raise FormatError("the archive would be 4 GiB or larger; export a shorter range of the log")
            crc = zlib.crc32(chunk, crc)
            digest.update(chunk)
            self._out.write(chunk)
        member = Member(name, size, crc, self._offset)
        self._out.seek(-(member.end - member.offset), os.SEEK_CUR)
        self._out.write(member.local())
        self._out.seek(size, os.SEEK_CUR)
        self._members[name] = member
        self._offset = member.end
        self.files[name] = {"sha256": digest.hexdigest(), "size": size}

    def finish(self) -> None:
        """Write the directory; nothing may be added after."""
        for part in _tail(self._members.values(), self._offset):
            self._out.write(part)
        self._out.flush()


class Archive:
    """Reads an archive whose form has been verified when the constructor returns; its contents have not."""

    def __init__(self, path: Path) -> None:
        """Open ``path`` and verify its form.

        Raises:
            VerificationError: Not an archive of the one form that is allowed.
            OSError: It cannot be read.
        """
        self._file = path.open("rb")
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

    def _at(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(length)

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
    if not _NAME.fullmatch(name) or len(raw) != name_bytes:
        raise VerificationError("the archive has a file that is not of its layout", where=ascii(name))
    if method != _STORED or stored != size:
        raise VerificationError("a file of the archive is compressed, which this format does not allow", where=name)
    return Member(name, size, crc, offset)
