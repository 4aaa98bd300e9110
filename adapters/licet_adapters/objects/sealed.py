"""The format of an object at rest: a header in the clear and chunks sealed with AES-256-GCM.

A file is ``LICETOB1``, the header's length (4 bytes, big-endian), the header (canonical JSON), then the chunks, each as
long as ``chunk_bytes`` of plaintext and a tag, the last one as long as what is left. An empty object has one empty chunk.

Rules kept here:

- Every chunk is bound to tenant, object, header, index and whether it is the last: cut off, reordered, doubled, or moved
  from another object or tenant, it does not open.
- The header tells nothing of the content: not its id and not its digest, only a tag over the digest that needs the
  object's key. Size is not hidden.
- The key is fresh for each file, so the index can be the nonce.
- Plaintext is given out only after its chunk was verified; a whole object only after its digest was, too.

We invent this format because none of the standard ones binds chunks to a tenant and an object id of ours; it is the
STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizar 2015) with the binding in the associated data.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from licet_adapters.errors import Conflict, InputRefused, IntegrityError
from licet_attestations import canonical
from licet_attestations.errors import FormatError
from licet_attestations.rpc import decode_bytes, encode_bytes
from licet_attestations.signer import aead

if TYPE_CHECKING:
    from collections.abc import Iterator

    from licet_adapters.ports import ObjectRef

MAGIC = b"LICETOB1"
MIN_CHUNK_BYTES = 64 * 1024
MAX_CHUNK_BYTES = 1024 * 1024
DEFAULT_CHUNK_BYTES = 256 * 1024
_LENGTH_BYTES = 4
_MAX_HEADER_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Header:
    """What stands in front of the chunks.

    Attributes:
        chunk_bytes: Plaintext in each chunk but the last.
        size_bytes: Plaintext in all.
        wrapped: The object's key, sealed by the signer.
        tag_hex: HMAC-SHA256 of the plaintext's digest under the object's key.
    """

    chunk_bytes: int
    size_bytes: int
    wrapped: bytes
    tag_hex: str

    def to_bytes(self) -> bytes:
        """Magic, length and header."""
        value = {
            "v": 1,
            "chunk_bytes": self.chunk_bytes,
            "size_bytes": self.size_bytes,
            "wrapped": encode_bytes(self.wrapped),
            "tag": self.tag_hex,
        }
        data = canonical.dumps(value)
        return MAGIC + len(data).to_bytes(_LENGTH_BYTES, "big") + data

    @property
    def chunk_count(self) -> int:
        """Number of chunks; at least one."""
        return max(1, -(-self.size_bytes // self.chunk_bytes))

    def chunk_plain_bytes(self, index: int) -> int:
        """Plaintext in chunk ``index``."""
        return min(self.chunk_bytes, self.size_bytes - index * self.chunk_bytes)


def read_header(source: BinaryIO) -> Header:
    """Read the header; nothing in it is authentic until a chunk opens.

    Raises:
        IntegrityError: Not a header.
    """
    start = source.read(len(MAGIC) + _LENGTH_BYTES)
    if len(start) != len(MAGIC) + _LENGTH_BYTES or not start.startswith(MAGIC):
        raise IntegrityError("the stored file is not a sealed object", code="integrity.header")
    length = int.from_bytes(start[len(MAGIC) :], "big")
    data = source.read(length) if length <= _MAX_HEADER_BYTES else b""
    try:
        match canonical.loads(data, canonical=True):
            case {
                "v": 1,
                "chunk_bytes": int(chunk_bytes),
                "size_bytes": int(size_bytes),
                "wrapped": str(wrapped),
                "tag": str(tag_hex),
                **rest,
            } if not rest and MIN_CHUNK_BYTES <= chunk_bytes <= MAX_CHUNK_BYTES and size_bytes >= 0:
                return Header(chunk_bytes, size_bytes, decode_bytes(wrapped), tag_hex)
    except FormatError as error:
        raise IntegrityError(f"the sealed object's header is damaged: {error}", code="integrity.header") from error
    raise IntegrityError("the sealed object's header is damaged", code="integrity.header")


def make_header(ref: ObjectRef, key: bytes, wrapped: bytes, chunk_bytes: int = DEFAULT_CHUNK_BYTES) -> Header:
    """Return the header for ``ref`` sealed with ``key``."""
    return Header(chunk_bytes, ref.size_bytes, wrapped, _tag_hex(key, ref))


def check_header(header: Header, ref: ObjectRef, key: bytes) -> None:
    """Verify that the object behind ``header`` is the content ``ref`` names.

    Raises:
        Conflict: It is other content (or its header was altered): either way not what was asked for.
    """
    check_tag(header, ref, _tag_hex(key, ref))


def check_tag(header: Header, ref: ObjectRef, tag_hex: str) -> None:
    """Verify the same for whoever has no key, but the tag of the content from the signer.

    Raises:
        Conflict: As ``check_header``.
    """
    if header.size_bytes != ref.size_bytes or not hmac.compare_digest(header.tag_hex.encode(), tag_hex.encode()):
        raise Conflict("other content stands under this object id", code="conflict.content")


def open_unknown(header: Header, ref: ObjectRef, key: bytes, source: BinaryIO, max_bytes: int) -> bytes:
    """Return the plaintext of a small object whose content is not known: each chunk is verified to be this object's own.

    What binds a chunk is tenant, object and header: the digest is not among it, and what ``ref`` says of content and size is not looked at.

    Raises:
        IntegrityError: It is not, or it is larger.
    """
    if header.size_bytes > max_bytes:
        raise IntegrityError(f"the sealed object has more than {max_bytes} bytes", code="integrity.header")
    prefix = _bound_prefix(header, ref)
    return b"".join(_open_chunk(header, prefix, key, index, source) for index in range(header.chunk_count))


def seal_chunks(header: Header, ref: ObjectRef, key: bytes, source: BinaryIO) -> Iterator[bytes]:
    """Yield the sealed chunks of ``source``.

    Raises:
        InputRefused: ``source`` is shorter, longer or other than ``ref`` says; raised before the last chunk is given out.
    """
    content = hashlib.sha256()
    prefix = _bound_prefix(header, ref)
    for index in range(header.chunk_count):
        wanted = header.chunk_plain_bytes(index)
        plain = _read_fully(source, wanted)
        if len(plain) != wanted:
            raise InputRefused("the content is shorter than its declared size", code="input.truncated")
        content.update(plain)
        is_last = index == header.chunk_count - 1
        if is_last and source.read(1):
            raise InputRefused("the content is longer than its declared size", code="input.oversize")
        if is_last and content.hexdigest() != ref.digest_hex:
            raise InputRefused("the content has another digest than was declared", code="input.digest")
        yield aead.seal(key, _nonce(index), plain, _bound(prefix, index, is_last=is_last))


def open_chunks(header: Header, ref: ObjectRef, key: bytes, source: BinaryIO) -> Iterator[bytes]:
    """Yield the plaintext of all chunks, each verified; the digest of the whole is verified before the end.

    Whoever uses what was yielded before the end holds verified chunks of an object that may still prove cut off.

    Raises:
        IntegrityError: A chunk is missing, altered, moved or foreign, or bytes follow the last.
    """
    content = hashlib.sha256()
    prefix = _bound_prefix(header, ref)
    for index in range(header.chunk_count):
        plain = _open_chunk(header, prefix, key, index, source)
        content.update(plain)
        yield plain
    if source.read(1):
        raise IntegrityError("bytes follow the last chunk", code="integrity.trailing")
    if content.hexdigest() != ref.digest_hex:
        raise IntegrityError("the content has another digest than was stored", code="integrity.digest")


def open_range(header: Header, ref: ObjectRef, key: bytes, source: BinaryIO, *, start: int, length: int) -> bytes:
    """Return plaintext from ``start``, at most ``length`` bytes; only the chunks it lies in are read and verified.

    Args:
        header: Read from ``source``, which stands at the first chunk.
        ref: What is read.
        key: Its key.
        source: Seekable.
        start: First byte.
        length: How many.

    Raises:
        IntegrityError: As ``open_chunks``.
        InputRefused: The range does not begin within the object.
    """
    if start < 0 or length < 0 or start > header.size_bytes:
        raise InputRefused("the range does not lie in the object", code="input.range")
    stop = min(start + length, header.size_bytes)
    if start == stop:
        return b""
    prefix = _bound_prefix(header, ref)
    first, last = start // header.chunk_bytes, (stop - 1) // header.chunk_bytes
    source.seek(first * (header.chunk_bytes + aead.TAG_BYTES), 1)
    plain = b"".join(_open_chunk(header, prefix, key, index, source) for index in range(first, last + 1))
    begin = start - first * header.chunk_bytes
    return plain[begin : begin + stop - start]


def _open_chunk(header: Header, prefix: bytes, key: bytes, index: int, source: BinaryIO) -> bytes:
    sealed = _read_fully(source, header.chunk_plain_bytes(index) + aead.TAG_BYTES)
    is_last = index == header.chunk_count - 1
    try:
        return aead.unseal(key, _nonce(index), sealed, _bound(prefix, index, is_last=is_last))
    except aead.SealBroken as error:
        raise IntegrityError(
            f"chunk {index} of the sealed object is missing, altered or not its own", code="integrity.chunk"
        ) from error


def _read_fully(source: BinaryIO, size: int) -> bytes:
    parts = []
    while size > 0 and (part := source.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _tag_hex(key: bytes, ref: ObjectRef) -> str:
    return aead.object_tag_hex(key, ref.tenant, ref.object_id, ref.digest_hex)


def _bound_prefix(header: Header, ref: ObjectRef) -> bytes:
    header_digest = hashlib.sha256(header.to_bytes()).digest()
    return aead.associated_data("licet-object-chunk-v1", ref.tenant, ref.object_id, header_digest)


def _bound(prefix: bytes, index: int, *, is_last: bool) -> bytes:
    return prefix + index.to_bytes(8, "big") + bytes([is_last])


def _nonce(index: int) -> bytes:
    return index.to_bytes(aead.NONCE_BYTES, "big")
