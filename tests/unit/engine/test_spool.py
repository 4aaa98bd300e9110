"""The spool: whole or nothing, one's own, for a short time, and nowhere else."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from licet_engine.domain.errors import Busy, InvalidInput, LicetError, TooLarge
from licet_engine.lifecycle.spool import Spool

ANA, BEN = "northbank/ana", "northbank/ben"
OPERATION = "0123456789abcdef" * 2
MAX_BYTES = 1000
TTL_S = 60
HOSTILE = [
    *("", ".", "..", "/", "*", "?", "../" * 3 + "etc/passwd", "/etc/passwd", "a/b", "0" * 31, "0" * 33, "0" * 31 + "*"),
    *("?" * 32, "0" * 32 + "\n", "0" * 31 + "\0", "A" * 32, "0" * 31 + "٣", "[0-9]" + "0" * 27),
]


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", max_bytes=MAX_BYTES, max_per_principal=3, max_bytes_per_tenant=5000, ttl_s=TTL_S)


def files(tmp_path: Path) -> list[Path]:
    """Every file in the spool, whatever it is called."""
    return sorted(path for path in (tmp_path / "spool").rglob("*") if not path.is_dir())


async def chunks(*parts: bytes | BaseException) -> AsyncIterator[bytes]:
    for part in parts:
        if isinstance(part, BaseException):
            raise part
        yield part


def receive(
    spool: Spool,
    *parts: bytes | BaseException,
    expected_bytes: int | None = None,
    tenant: str = "northbank",
    principal: str = ANA,
) -> tuple[str, str, int]:
    if expected_bytes is None:
        expected_bytes = sum(len(part) for part in parts if isinstance(part, bytes))
    return asyncio.run(spool.receive(tenant, principal, chunks(*parts), expected_bytes=expected_bytes))


# --- Whole or nothing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [(b"rows",), (b"ro", b"", b"ws"), (b"",), (), (bytes(MAX_BYTES),)])
def test_what_was_sent_lies_there(spool: Spool, parts: tuple[bytes, ...]) -> None:
    content = b"".join(parts)
    identifier, digest_hex, size = receive(spool, *parts)
    assert (digest_hex, size) == (hashlib.sha256(content).hexdigest(), len(content))
    assert spool.upload("northbank", identifier, digest_hex, size).read_bytes() == content


def test_a_file_and_its_folders_are_the_service_s_alone(spool: Spool, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        receive(spool, b"rows")
        with spool.new_artifact("northbank", OPERATION, "zip") as path:
            path.write_bytes(b"evidence")
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in files(tmp_path)] == [0o600, 0o600]
    folders = [tmp_path / "spool", *(path for path in (tmp_path / "spool").rglob("*") if path.is_dir())]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}


@pytest.mark.parametrize(
    ("parts", "expected_bytes", "error"),
    [
        ((b"ro",), 4, InvalidInput),
        ((), 4, InvalidInput),
        ((b"",), 1, InvalidInput),
        ((b"rows",), -1, LicetError),
        ((b"rows", b"!"), 4, TooLarge),
        ((b"rows",), 0, TooLarge),
        ((), MAX_BYTES + 1, TooLarge),
        ((bytes(MAX_BYTES), b"!"), MAX_BYTES, TooLarge),
        ((b"ro", ConnectionResetError()), 4, ConnectionResetError),
        ((b"ro", asyncio.CancelledError()), 4, asyncio.CancelledError),
    ],
)
def test_what_is_cut_off_too_long_or_broken_leaves_nothing(
    spool: Spool, tmp_path: Path, parts: tuple[Any, ...], expected_bytes: int, error: type[BaseException]
) -> None:
    with pytest.raises(error):
        receive(spool, *parts, expected_bytes=expected_bytes)
    assert files(tmp_path) == []
    receive(spool, b"rows")
    assert len(files(tmp_path)) == 1


def test_a_truncated_upload_says_so(spool: Spool) -> None:
    with pytest.raises(InvalidInput, match="2 of 4 bytes") as refusal:
        receive(spool, b"ro", expected_bytes=4)
    assert refusal.value.code == "truncated-upload"


def test_more_than_was_said_is_not_read_to_its_end(spool: Spool) -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 1
            yield bytes(100)

    with pytest.raises(TooLarge):
        asyncio.run(spool.receive("northbank", ANA, endless(), expected_bytes=250))
    assert read == 3


def test_what_is_on_its_way_is_no_upload_yet(spool: Spool, tmp_path: Path) -> None:
    seen: list[bool] = []

    async def slow() -> AsyncIterator[bytes]:
        yield b"ro"
        for part in files(tmp_path):
            identifier = part.name.removeprefix(".").partition(".")[0]
            seen.append(spool.is_mine("northbank", ANA, identifier))
            with pytest.raises(InvalidInput):
                spool.upload("northbank", identifier, hashlib.sha256(b"ro").hexdigest(), 2)
        yield b"ws"

    asyncio.run(spool.receive("northbank", ANA, slow(), expected_bytes=4))
    assert seen == [False]


def test_what_is_not_there_or_another_is_refused(spool: Spool) -> None:
    identifier, digest_hex, size = receive(spool, b"rows")
    for asked, code in (
        (("0" * 32, digest_hex, size), "no-such-upload"),
        ((identifier, "0" * 64, size), "other-upload"),
        ((identifier, digest_hex, size + 1), "other-upload"),
        ((identifier, "", size), "other-upload"),
    ):
        with pytest.raises(InvalidInput) as refusal:
            spool.upload("northbank", *asked)
        assert refusal.value.code == code


def test_what_was_altered_on_the_disk_is_refused(spool: Spool, tmp_path: Path) -> None:
    identifier, digest_hex, size = receive(spool, b"rows")
    files(tmp_path)[0].write_bytes(b"rowz")
    with pytest.raises(InvalidInput) as refusal:
        spool.upload("northbank", identifier, digest_hex, size)
    assert refusal.value.code == "other-upload"


# --- One's own ----------------------------------------------------------------------------------------------------------


def test_an_upload_is_its_maker_s_and_its_tenant_s(spool: Spool) -> None:
    identifier, digest_hex, size = receive(spool, b"rows")
    assert spool.is_mine("northbank", ANA, identifier)
    assert not spool.is_mine("northbank", BEN, identifier)
    assert not spool.is_mine("lakeside", ANA, identifier)
    assert not spool.is_mine("northbank", ANA, "0" * 32)
    with pytest.raises(InvalidInput) as refusal:
        spool.upload("lakeside", identifier, digest_hex, size)
    assert refusal.value.code == "no-such-upload"
    spool.forget("lakeside", identifier)
    assert spool.is_mine("northbank", ANA, identifier)


def test_nobody_has_more_waiting_than_they_may(spool: Spool) -> None:
    first, *_ = [receive(spool, b"rows")[0] for _ in range(3)]
    with pytest.raises(Busy):
        receive(spool, b"rows")
    # Others are not kept waiting by it, and what was used counts no more.
    receive(spool, b"rows", principal=BEN)
    receive(spool, b"rows", tenant="lakeside")
    spool.forget("northbank", first)
    receive(spool, b"rows")


def test_what_is_on_its_way_counts_among_what_waits(spool: Spool) -> None:
    async def all_at_once() -> list[Any]:
        begun = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield b"ro"
            await begun.wait()
            yield b"ws"

        sent = [asyncio.create_task(spool.receive("northbank", ANA, slow(), expected_bytes=4)) for _ in range(5)]
        await asyncio.sleep(0.05)
        begun.set()
        return await asyncio.gather(*sent, return_exceptions=True)

    ended = asyncio.run(all_at_once())
    assert sum(isinstance(end, tuple) for end in ended) == 3
    assert sum(isinstance(end, Busy) for end in ended) == 2


def test_an_upload_that_was_used_is_gone(spool: Spool, tmp_path: Path) -> None:
    identifier, digest_hex, size = receive(spool, b"rows")
    spool.forget("northbank", identifier)
    spool.forget("northbank", identifier)
    assert files(tmp_path) == []
    with pytest.raises(InvalidInput):
        spool.upload("northbank", identifier, digest_hex, size)


# --- Artifacts ----------------------------------------------------------------------------------------------------------


def test_an_artifact_appears_when_it_is_whole(spool: Spool, tmp_path: Path) -> None:
    with spool.new_artifact("northbank", OPERATION, "zip") as path:
        path.write_bytes(b"half")
        assert not spool.artifact("northbank", OPERATION, "zip").exists()
        path.write_bytes(b"whole")
        path.chmod(0o644)
    made = spool.artifact("northbank", OPERATION, "zip")
    assert made.read_bytes() == b"whole"
    assert files(tmp_path) == [made]
    assert not spool.artifact("lakeside", OPERATION, "zip").exists()


def test_an_artifact_that_fails_leaves_what_was_there(spool: Spool, tmp_path: Path) -> None:
    with spool.new_artifact("northbank", OPERATION, "zip") as path:
        path.write_bytes(b"first")
    with pytest.raises(OSError, match="disk"), spool.new_artifact("northbank", OPERATION, "zip") as path:  # noqa: PT012  # The block is what fails.
        path.write_bytes(b"second")
        raise OSError("disk")
    assert [file.read_bytes() for file in files(tmp_path)] == [b"first"]


def test_what_a_killed_attempt_left_does_not_hinder_the_next(spool: Spool) -> None:
    left = spool.artifact("northbank", OPERATION, "zip")
    left.with_name(left.name + ".part").write_bytes(b"of a longer attempt")
    with spool.new_artifact("northbank", OPERATION, "zip") as path:
        assert not path.exists()
        path.write_bytes(b"next")
    assert left.read_bytes() == b"next"


# --- A short time -------------------------------------------------------------------------------------------------------


def test_what_nobody_used_is_swept_away_and_nothing_else(spool: Spool, tmp_path: Path) -> None:
    assert spool.sweep() == 0
    receive(spool, b"rows")
    with spool.new_artifact("lakeside", OPERATION, "zip") as path:
        path.write_bytes(b"evidence")
    # And what a killed service left half written.
    (files(tmp_path)[-1].parent / f".{OPERATION}.{'0' * 16}.part").write_bytes(b"ro")
    old_s = time.time() - TTL_S - 5
    for path in files(tmp_path):
        os.utime(path, (old_s, old_s))
    young = receive(spool, b"young")
    assert spool.sweep() == 3
    assert [path.read_bytes() for path in files(tmp_path)] == [b"young"]
    assert spool.is_mine("northbank", ANA, young[0])
    assert spool.sweep() == 0


# --- Nowhere else -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_reaches_no_file(spool: Spool, tmp_path: Path, name: str) -> None:
    receive(spool, b"rows")
    (tmp_path / "secret.zip").write_bytes(b"secret")
    acts: tuple[Callable[[], object], ...] = (
        lambda: spool.upload("northbank", name, hashlib.sha256(b"rows").hexdigest(), 4),
        lambda: spool.is_mine("northbank", ANA, name),
        lambda: spool.forget("northbank", name),
        lambda: spool.artifact("northbank", name, "zip"),
    )
    for act in acts:
        with pytest.raises(InvalidInput):
            act()
    assert len(files(tmp_path)) == 1
    assert (tmp_path / "secret.zip").exists()


@pytest.mark.parametrize("tenant", ["", "..", "../lakeside", "/", "north/bank", "*", "northbank\n", "~void"])
def test_a_hostile_tenant_makes_no_folder(spool: Spool, tmp_path: Path, tenant: str) -> None:
    for act in (
        lambda: receive(spool, b"rows", tenant=tenant),
        lambda: spool.upload(tenant, OPERATION, "0" * 64, 4),
        lambda: spool.is_mine(tenant, ANA, OPERATION),
        lambda: spool.forget(tenant, OPERATION),
        lambda: spool.artifact(tenant, OPERATION, "zip"),
    ):
        with pytest.raises(InvalidInput):
            act()
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("suffix", ["", ".", "../x", "zip/..", "ZIP", "zip\n", "a" * 9, "tar.gz"])
def test_a_hostile_suffix_names_no_artifact(spool: Spool, suffix: str) -> None:
    with pytest.raises(InvalidInput):
        spool.artifact("northbank", OPERATION, suffix)


@pytest.mark.parametrize("principal", ["northbank/../../x", "*", "", "a" * 10_000, "northbank/ana\n", "ana\0"])
def test_a_principal_s_name_is_no_part_of_a_path(spool: Spool, tmp_path: Path, principal: str) -> None:
    identifier, *_ = receive(spool, b"rows", principal=principal)
    assert spool.is_mine("northbank", principal, identifier)
    assert not spool.is_mine("northbank", ANA, identifier)
    assert [path.parent for path in files(tmp_path)] == [tmp_path / "spool" / "northbank" / "uploads"]


def test_all_principals_of_a_tenant_together_have_a_bound(spool: Spool) -> None:
    """Each may have three uploads; there may be any number of principals."""
    for number in range(5):
        receive(spool, bytes(MAX_BYTES), principal=f"northbank/p{number}")
    with pytest.raises(Busy, match="uploads of northbank"):
        receive(spool, b"x", principal="northbank/p9")
    receive(spool, b"x", tenant="lakeside", principal="lakeside/lena")


def test_what_is_on_its_way_counts_as_what_it_will_be(spool: Spool) -> None:
    async def slow() -> AsyncIterator[bytes]:
        # The first of them has sent nothing yet when the sixth begins.
        await ends.wait()
        yield bytes(MAX_BYTES)

    async def six() -> list[Any]:
        sending = [
            asyncio.create_task(spool.receive("northbank", f"northbank/p{n}", slow(), expected_bytes=MAX_BYTES))
            for n in range(6)
        ]
        await asyncio.sleep(0)
        ends.set()
        return await asyncio.gather(*sending, return_exceptions=True)

    ends = asyncio.Event()
    refused = [found for found in asyncio.run(six()) if isinstance(found, BaseException)]
    assert [type(found) for found in refused] == [Busy]
