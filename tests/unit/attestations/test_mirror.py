"""Mirrors of a log: they grow, hold what was signed, never go backwards, and tell where they were touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from licet_attestations import merkle
from licet_attestations.checkpoint import Checkpoint, sign_checkpoint
from licet_attestations.cosignature import cosign
from licet_attestations.errors import VerificationError
from licet_attestations.keys import ED25519, PrivateKey
from licet_attestations.leaf import Leaf
from licet_attestations.mirror import FolderPlace, tenant_of, update, verify_mirror
from licet_attestations.tiles import Tile, tiles_of, write_entries
from licet_attestations.tlogpolicy import Policy
from licet_attestations.trustroot import TrustedKey, TrustRoot
from licet_attestations.vkey import COSIGNER_KIND, VerifierKey

TENANT = "acme"
SIZES = (0, 1, 2, 255, 256, 257, 511, 512, 600, 1000)
KEY = PrivateKey.generate(ED25519)
TRUST = TrustRoot("i", (TrustedKey(KEY.public, "log", 0),), "licet.example/log")


def leaves(count: int, salt: str = "a") -> list[bytes]:
    return [Leaf("decision", number, TENANT, TENANT, salt * 64).to_bytes() for number in range(count)]


class Served:
    """A log as it is served; what is fetched of it is counted."""

    def __init__(self, entries: list[bytes], key: PrivateKey = KEY) -> None:
        self.entries = entries
        self.size = len(entries)
        self.key = key
        self.fetched: list[str] = []
        self.more = ""

    def note(self) -> str:
        root = merkle.root(merkle.leaf_hash(entry) for entry in self.entries[: self.size])
        return sign_checkpoint(Checkpoint(TRUST.origin(TENANT), self.size, root), self.key) + self.more

    def __call__(self, path: str) -> bytes:
        self.fetched.append(path)
        if path == "checkpoint":
            return self.note().encode()
        tile = Tile.from_path(path)
        assert tile.is_entries
        return write_entries(self.entries[tile.first : tile.first + tile.width])


def test_a_mirror_grows_with_the_log_and_is_whole_at_every_size(tmp_path: Path) -> None:
    served, place, before = Served(leaves(1000)), FolderPlace(tmp_path / "m"), 0
    for size in SIZES:
        served.size = size
        found = update(place, served, TRUST, TENANT)
        assert (found.checkpoint.size, found.added) == (size, size - before)
        assert verify_mirror(place, TRUST, TENANT).checkpoint == found.checkpoint
        for tile in tiles_of(size):
            assert (tmp_path / "m" / tile.path()).is_file(), tile
        before = size
    assert not (tmp_path / "m" / "tile/0/000.p").exists()
    assert (tmp_path / "m" / "tile/0/003.p/232").is_file()


def test_only_what_is_new_is_fetched(tmp_path: Path) -> None:
    served, place = Served(leaves(1000)), FolderPlace(tmp_path)
    served.size = 600
    update(place, served, TRUST, TENANT)
    served.fetched.clear()
    served.size = 1000
    update(place, served, TRUST, TENANT)
    assert served.fetched == ["checkpoint", "tile/entries/002", "tile/entries/003.p/232"]
    served.fetched.clear()
    update(place, served, TRUST, TENANT)
    assert served.fetched == ["checkpoint"]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda: Served(leaves(599)), id="older"),
        pytest.param(lambda: Served(leaves(600, "b")), id="another history of this size"),
        pytest.param(lambda: Served(leaves(900, "b")), id="another, longer history"),
        pytest.param(lambda: Served(leaves(512) + leaves(900, "b")[512:]), id="a fork within the unfinished bundle"),
        pytest.param(
            lambda: Served(leaves(256) + leaves(900, "b")[256:600] + leaves(900)[600:]), id="a fork in what was full"
        ),
        pytest.param(lambda: Served(leaves(900), PrivateKey.generate(ED25519)), id="signed by somebody else"),
    ],
)
def test_what_is_not_the_logs_continuation_changes_nothing(tmp_path: Path, other: Callable[[], Served]) -> None:
    place = FolderPlace(tmp_path)
    update(place, Served(leaves(600)), TRUST, TENANT)
    before = (tmp_path / "checkpoint").read_bytes()
    with pytest.raises(VerificationError):
        update(place, other(), TRUST, TENANT)
    assert (tmp_path / "checkpoint").read_bytes() == before
    verify_mirror(place, TRUST, TENANT)
    assert update(place, Served(leaves(900)), TRUST, TENANT).added == 300


def test_entries_that_are_not_those_signed_are_refused(tmp_path: Path) -> None:
    served = Served(leaves(300))

    def lying(path: str) -> bytes:
        data = served(path)
        return data if path == "checkpoint" else data.replace(b"a" * 64, b"c" * 64, 1)

    def garbage(path: str) -> bytes:
        return served(path) if path == "checkpoint" else b"\0\3abc" * 256

    for fetch in (lying, garbage):
        with pytest.raises(VerificationError):
            update(FolderPlace(tmp_path), fetch, TRUST, TENANT)
        assert not (tmp_path / "checkpoint").exists()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("touch", [Path.unlink, _cut, _flip])
@pytest.mark.parametrize(
    "path",
    ["checkpoint", "tile/0/000", "tile/0/002.p/88", "tile/1/000.p/2", "tile/entries/001", "tile/entries/002.p/88"],
)
def test_a_touched_mirror_is_told_with_the_file(tmp_path: Path, touch: Callable[[Path], None], path: str) -> None:
    place = FolderPlace(tmp_path)
    update(place, Served(leaves(600)), TRUST, TENANT)
    touch(tmp_path / path)
    with pytest.raises(VerificationError) as found:
        verify_mirror(place, TRUST, TENANT)
    if path != "checkpoint" and not (touch is _flip and "entries" in path):
        assert found.value.where == path


def test_a_mirror_that_was_touched_is_not_gone_on_with(tmp_path: Path) -> None:
    place = FolderPlace(tmp_path)
    update(place, Served(leaves(600)), TRUST, TENANT)
    _flip(tmp_path / "tile/0/002.p/88")
    with pytest.raises(VerificationError, match="root of its checkpoint"):
        update(place, Served(leaves(900)), TRUST, TENANT)


def test_a_turn_that_was_stopped_is_gone_on_with(tmp_path: Path) -> None:
    place = FolderPlace(tmp_path)
    update(place, Served(leaves(300)), TRUST, TENANT)

    class Stopping(FolderPlace):
        left = 3

        def write(self, path: str, data: bytes) -> None:
            if not self.left:
                raise OSError(28, "no space left on device")
            self.left -= 1
            super().write(path, data)

    with pytest.raises(OSError, match="no space"):
        update(Stopping(tmp_path), Served(leaves(900)), TRUST, TENANT)
    assert verify_mirror(place, TRUST, TENANT).checkpoint.size == 300
    assert update(place, Served(leaves(900)), TRUST, TENANT).checkpoint.size == 900
    assert verify_mirror(place, TRUST, TENANT).checkpoint.size == 900


def test_a_mirror_wants_the_quorum_of_a_policy(tmp_path: Path) -> None:
    served, key = Served(leaves(10)), PrivateKey.generate(ED25519)
    vkey = VerifierKey("w.example", COSIGNER_KIND, key.public)
    policy = Policy.from_bytes(f"witness W {vkey.to_text()}\nquorum W\n".encode())
    place = FolderPlace(tmp_path)
    with pytest.raises(VerificationError, match="cosigned by nobody"):
        update(place, served, TRUST, TENANT, policy)
    served.more = cosign(served.note(), "w.example", key, 1)
    assert update(place, served, TRUST, TENANT, policy).cosigners == ("W",)
    assert verify_mirror(place, TRUST, TENANT, policy).cosigners == ("W",)


def test_whose_log_a_mirror_is_of_follows_from_the_trust_root() -> None:
    assert tenant_of(Served(leaves(1)).note().encode(), TRUST) == TENANT
    for note in (b"", b"else/acme\n", b"\xff\n"):
        with pytest.raises(VerificationError):
            tenant_of(note, TRUST)
