"""The sealed format: whatever was sealed opens to the same, and nothing else opens."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from licet_adapters.errors import AdapterError, Conflict, InputRefused, IntegrityError
from licet_adapters.objects import sealed
from licet_adapters.ports import ObjectRef

KEY = bytes(range(32))
CHUNK = sealed.MIN_CHUNK_BYTES
# Content is a few whole chunks and an odd rest, cheap to make and to shrink.
contents = st.builds(
    lambda chunks, rest, fill: (
        bytes([fill]) * (chunks * CHUNK) + bytes(range(256)) * (rest // 256) + b"\x07" * (rest % 256)
    ),
    st.integers(0, 3),
    st.one_of(st.just(0), st.just(1), st.integers(0, CHUNK)),
    st.integers(0, 255),
)


def reference(content: bytes, tenant: str = "northbank", object_id: str = "northbank/hmda") -> ObjectRef:
    digest_hex = hashlib.sha256(content).hexdigest()
    return ObjectRef(tenant=tenant, object_id=object_id, digest_hex=digest_hex, size_bytes=len(content))


def seal(content: bytes, ref: ObjectRef, key: bytes = KEY) -> tuple[bytes, list[bytes]]:
    header = sealed.make_header(ref, key, b"wrapped", CHUNK)
    return header.to_bytes(), list(sealed.seal_chunks(header, ref, key, io.BytesIO(content)))


def unseal(data: bytes, ref: ObjectRef, key: bytes = KEY) -> bytes:
    source = io.BytesIO(data)
    header = sealed.read_header(source)
    sealed.check_header(header, ref, key)
    return b"".join(sealed.open_chunks(header, ref, key, source))


@settings(deadline=None)
@given(contents)
def test_what_was_sealed_opens_to_the_same(content: bytes) -> None:
    ref = reference(content)
    header, chunks = seal(content, ref)
    assert unseal(header + b"".join(chunks), ref) == content
    assert len(chunks) == max(1, -(-len(content) // CHUNK))


@settings(deadline=None)
@given(contents, st.integers(0, 4 * CHUNK), st.integers(0, 4 * CHUNK))
def test_a_range_is_the_slice_of_the_whole(content: bytes, start: int, length: int) -> None:
    ref = reference(content)
    header, chunks = seal(content, ref)
    source = io.BytesIO(header + b"".join(chunks))
    read = sealed.read_header(source)
    if start > len(content):
        with pytest.raises(InputRefused):
            sealed.open_range(read, ref, KEY, source, start=start, length=length)
    else:
        found = sealed.open_range(read, ref, KEY, source, start=start, length=length)
        assert found == content[start : start + length]


@settings(deadline=None, max_examples=200)
@given(contents, st.data())
def test_a_changed_bit_anywhere_is_refused(content: bytes, data: st.DataObject) -> None:
    ref = reference(content)
    header, chunks = seal(content, ref)
    whole = bytearray(header + b"".join(chunks))
    # Half of the changes fall in the header, which is short beside the chunks.
    at = data.draw(st.one_of(st.integers(0, len(header) - 1), st.integers(0, len(whole) - 1)))
    whole[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises((IntegrityError, Conflict)):
        unseal(bytes(whole), ref)


@settings(deadline=None, max_examples=200)
@given(contents, st.data())
def test_a_file_cut_off_or_grown_anywhere_is_refused(content: bytes, data: st.DataObject) -> None:
    ref = reference(content)
    header, chunks = seal(content, ref)
    whole = header + b"".join(chunks)
    at = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(IntegrityError):
        unseal(whole[:at], ref)
    with pytest.raises(IntegrityError):
        unseal(whole + b"\0" * data.draw(st.integers(1, 3)), ref)


@settings(deadline=None)
@given(st.permutations(range(4)).filter(lambda order: order != list(range(4))))
def test_chunks_in_another_order_are_refused(order: list[int]) -> None:
    content = b"".join(bytes([number]) * CHUNK for number in range(4))
    ref = reference(content)
    header, chunks = seal(content, ref)
    with pytest.raises(IntegrityError):
        unseal(header + b"".join(chunks[number] for number in order), ref)


@settings(deadline=None)
@given(st.integers(1, 3))
def test_leading_chunks_alone_are_refused_even_under_a_header_that_says_so(kept: int) -> None:
    content = b"".join(bytes([number]) * CHUNK for number in range(4))
    ref = reference(content)
    _, chunks = seal(content, ref)
    cut = content[: kept * CHUNK]
    cut_ref = reference(cut)
    forged = sealed.make_header(cut_ref, KEY, b"wrapped", CHUNK).to_bytes()
    with pytest.raises(IntegrityError):
        unseal(forged + b"".join(chunks[:kept]), cut_ref)


@pytest.mark.parametrize(
    "other",
    [
        {"tenant": "lakeside"},
        {"object_id": "northbank/other"},
        {"digest_hex": "0" * 64},
        {"size_bytes": 11},
    ],
)
def test_an_object_does_not_open_as_another(other: dict[str, object]) -> None:
    content = b"ten bytes!"
    ref = reference(content)
    header, chunks = seal(content, ref)
    with pytest.raises((IntegrityError, Conflict)):
        unseal(header + b"".join(chunks), replace(ref, **other))  # type: ignore[arg-type]
    with pytest.raises((IntegrityError, Conflict)):
        unseal(header + b"".join(chunks), ref, bytes(32))


def test_a_chunk_of_another_object_under_the_same_key_is_refused() -> None:
    first, second = reference(b"same bytes"), reference(b"same bytes", object_id="northbank/other")
    header, _ = seal(b"same bytes", first)
    _, foreign = seal(b"same bytes", second)
    with pytest.raises(IntegrityError):
        unseal(header + foreign[0], first)


@settings(deadline=None)
@given(contents, st.sampled_from(["shorter", "longer", "other"]))
def test_content_that_is_not_as_declared_never_gives_a_last_chunk(content: bytes, how: str) -> None:
    ref = reference(content)
    wrong = {
        "shorter": content[:-1],
        "longer": content + b"x",
        "other": content[:-1] + bytes([content[-1] ^ 1]) if content else b"x",
    }[how]
    if wrong == content:  # Nothing is shorter than nothing.
        return
    header = sealed.make_header(ref, KEY, b"wrapped", CHUNK)
    given_out: list[bytes] = []
    with pytest.raises(InputRefused):
        given_out.extend(sealed.seal_chunks(header, ref, KEY, io.BytesIO(wrong)))
    assert len(given_out) < header.chunk_count


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=400))
def test_any_bytes_are_an_error_and_never_a_crash(data: bytes) -> None:
    for prefix in (b"", sealed.MAGIC, sealed.MAGIC + (len(data)).to_bytes(4, "big")):
        with pytest.raises(AdapterError):
            unseal(prefix + data, reference(b"content"))
