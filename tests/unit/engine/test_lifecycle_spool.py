"""Uploads and artifacts: whole or not at all, each principal's own, and gone in time."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

from licet_engine.domain.errors import Busy, InvalidInput, TooLarge
from licet_engine.domain.refs import new_id
from licet_engine.lifecycle.spool import Spool

ANA, BEN = "northbank/ana", "northbank/ben"


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", max_bytes=100, max_per_principal=3, max_bytes_per_tenant=5000, ttl_s=60)


def receive(
    spool: Spool, parts: Iterable[bytes | Exception], size: int | None = None, principal: str = ANA
) -> tuple[str, str, int]:
    parts = list(parts)

    async def chunks() -> AsyncIterator[bytes]:
        for part in parts:
            if isinstance(part, Exception):
                raise part
            yield part

    said = size if size is not None else sum(len(part) for part in parts if isinstance(part, bytes))
    return asyncio.run(spool.receive("northbank", principal, chunks(), expected_bytes=said))


def files(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "spool").rglob("*") if path.is_file()]


def test_an_upload_is_kept_whole_and_private(spool: Spool, tmp_path: Path) -> None:
    identifier, digest_hex, size = receive(spool, [b"a,b\n", b"1,2\n"])
    assert (digest_hex, size) == (hashlib.sha256(b"a,b\n1,2\n").hexdigest(), 8)
    path = spool.upload("northbank", identifier, digest_hex, size)
    assert path.read_bytes() == b"a,b\n1,2\n"
    assert files(tmp_path) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for folder in (path.parent, path.parent.parent):
        assert stat.S_IMODE(folder.stat().st_mode) & 0o077 == 0


def test_an_upload_is_its_principals_and_its_tenants_own(spool: Spool) -> None:
    identifier, digest_hex, size = receive(spool, [b"x"])
    assert spool.is_mine("northbank", ANA, identifier)
    assert not spool.is_mine("northbank", BEN, identifier)
    assert not spool.is_mine("lakeside", ANA, identifier)
    assert not spool.is_mine("northbank", ANA, new_id())
    with pytest.raises(InvalidInput):
        spool.upload("lakeside", identifier, digest_hex, size)


@pytest.mark.parametrize(
    ("parts", "size", "error"),
    [
        ([b"abc"], 4, InvalidInput),
        ([b"abc"], 2, TooLarge),
        ([], 1, InvalidInput),
        ([b"x" * 101], 101, TooLarge),
        ([b"x" * 60, b"x" * 60], 100, TooLarge),
        ([b"abc", OSError("gone")], 6, OSError),
        ([b"abc", InvalidInput("broke off")], 6, InvalidInput),
    ],
)
def test_what_is_not_whole_leaves_nothing(
    spool: Spool, tmp_path: Path, parts: list[bytes | Exception], size: int, error: type[Exception]
) -> None:
    with pytest.raises(error):
        receive(spool, parts, size)
    assert files(tmp_path) == []


def test_one_principal_has_a_bounded_number_and_others_are_not_affected(spool: Spool) -> None:
    kept = [receive(spool, [b"x"])[0] for _ in range(3)]
    with pytest.raises(Busy):
        receive(spool, [b"x"])
    assert receive(spool, [b"x"], principal=BEN)
    spool.forget("northbank", kept[0])
    assert receive(spool, [b"x"])


def test_what_was_swapped_or_used_is_not_given_out(spool: Spool) -> None:
    identifier, digest_hex, size = receive(spool, [b"abc"])
    path = spool.upload("northbank", identifier, digest_hex, size)
    for wrong in ((digest_hex, size + 1), ("0" * 64, size)):
        with pytest.raises(InvalidInput) as caught:
            spool.upload("northbank", identifier, *wrong)
        assert caught.value.code == "other-upload"
    path.write_bytes(b"abd")
    with pytest.raises(InvalidInput) as caught:
        spool.upload("northbank", identifier, digest_hex, size)
    assert caught.value.code == "other-upload"
    spool.forget("northbank", identifier)
    spool.forget("northbank", identifier)
    with pytest.raises(InvalidInput) as caught:
        spool.upload("northbank", identifier, digest_hex, size)
    assert caught.value.code == "no-such-upload"


@pytest.mark.parametrize(
    "identifier", ["", "../" * 3, "*" * 32, "?" * 32, "A" * 32, "a" * 31, f"{'a' * 32}\n", "[a-f]" * 8]
)
def test_names_reach_nothing_else(spool: Spool, identifier: str) -> None:
    receive(spool, [b"x"])
    for reach in (
        lambda: spool.upload("northbank", identifier, "0" * 64, 1),
        lambda: spool.is_mine("northbank", ANA, identifier),
        lambda: spool.artifact("northbank", identifier, "csv"),
    ):
        with pytest.raises(InvalidInput):
            reach()
    for tenant in ("..", "", "a/b", "~void"):
        with pytest.raises(InvalidInput):
            spool.artifact(tenant, "a" * 32, "csv")
    for suffix in ("", "../x", "CSV", "c" * 9):
        with pytest.raises(InvalidInput):
            spool.artifact("northbank", "a" * 32, suffix)


def test_an_artifact_counts_once_it_is_whole(spool: Spool, tmp_path: Path) -> None:
    operation = new_id()
    target = spool.artifact("northbank", operation, "csv")

    def half() -> None:
        with spool.new_artifact("northbank", operation, "csv") as path:
            path.write_bytes(b"half")
            assert not target.exists()
            raise OSError("killed")

    with pytest.raises(OSError, match="killed"):
        half()
    assert files(tmp_path) == []
    with spool.new_artifact("northbank", operation, "csv") as path:
        path.write_bytes(b"whole")
    assert target.read_bytes() == b"whole"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    # What a killed attempt left beside it is no obstacle, and made again it replaces what was there.
    target.with_name(target.name + ".part").write_bytes(b"left behind")
    with spool.new_artifact("northbank", operation, "csv") as path:
        assert not path.exists()
        path.write_bytes(b"again")
    assert target.read_bytes() == b"again"
    assert files(tmp_path) == [target]


def test_what_nobody_used_goes_when_its_time_is_over(spool: Spool, tmp_path: Path) -> None:
    assert spool.sweep() == 0
    old, _, _ = receive(spool, [b"old"])
    young, _, _ = receive(spool, [b"young"])
    (path,) = [path for path in files(tmp_path) if path.name.startswith(old)]
    part = path.with_name(f".{new_id()}.part")
    part.write_bytes(b"of a killed process")
    for aged in (path, part):
        os.utime(aged, (1, 1))
    assert spool.sweep() == 2
    assert spool.is_mine("northbank", ANA, young)
    assert not spool.is_mine("northbank", ANA, old)
