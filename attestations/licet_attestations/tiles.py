"""Tiles: a tree and its entries as files that never change, in C2SP tlog-tiles form.

Rules kept here:

- A path has one spelling; another is refused, so that a cache can never hold two of one.
- What is told of a tree are its leaves: every hash above is computed from them, never taken.

Source: C2SP tlog-tiles (v0).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from licet_attestations import merkle
from licet_attestations.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

HEIGHT = 8
WIDTH = 1 << HEIGHT
MAX_LEVEL = 6
"""A tree of 2^53 entries has no higher tiles."""
CHECKPOINT = "checkpoint"
_ENTRIES = "entries"
_LENGTH = struct.Struct(">H")
_PATH = re.compile(
    r"tile/(?P<level>entries|[0-9]|[1-5][0-9]|6[0-3])/(?P<index>(?:x[0-9]{3}/){0,5}[0-9]{3})(?:\.p/(?P<width>[1-9][0-9]{0,2}))?"
)


@dataclass(frozen=True, slots=True, order=True)
class Tile:
    """A tile.

    Attributes:
        level: From 0 at the leaves; -1 for the bundle of the entries themselves.
        index: Within its level.
        width: Hashes or entries in it, 1 to 256.
    """

    level: int
    index: int
    width: int = WIDTH

    @property
    def is_entries(self) -> bool:
        """Whether it holds entries, not hashes."""
        return self.level < 0

    @property
    def first(self) -> int:
        """The first of its hashes or entries within the level."""
        return self.index * WIDTH

    def path(self) -> str:
        """Where it lies under a log's prefix."""
        level = _ENTRIES if self.is_entries else str(self.level)
        digits = f"{self.index:03d}"
        digits = digits.zfill((len(digits) + 2) // 3 * 3)
        parts = [digits[at : at + 3] for at in range(0, len(digits), 3)]
        encoded = "/".join([*(f"x{part}" for part in parts[:-1]), parts[-1]])
        return f"tile/{level}/{encoded}" + ("" if self.width == WIDTH else f".p/{self.width}")

    @classmethod
    def from_path(cls, path: str) -> Tile:
        """Read a path.

        Raises:
            FormatError: Not one, or not in its one spelling.
        """
        found = _PATH.fullmatch(path)
        if found is None:
            raise FormatError("the path of a tile is tile/LEVEL/INDEX[.p/WIDTH], an index in groups of three digits")
        width = int(found["width"]) if found["width"] else WIDTH
        level = -1 if found["level"] == _ENTRIES else int(found["level"])
        tile = cls(level, int(found["index"].replace("x", "").replace("/", "")), width)
        if tile.path() != path:
            raise FormatError("the path of a tile has one spelling: no partial tile of 256, no needless zeroes")
        return tile


def partials_of(size: int) -> Iterator[Tile]:
    """The unfinished tiles of a tree of ``size``, that of its entries first."""
    for level in range(-1, MAX_LEVEL + 1):
        full, width = divmod(size >> (HEIGHT * max(level, 0)), WIDTH)
        if width:
            yield Tile(level, full, width)


def tiles_of(size: int) -> Iterator[Tile]:
    """Every tile that a tree of ``size`` has, its bundles of entries first."""
    for level in range(-1, MAX_LEVEL + 1):
        count = size >> (HEIGHT * max(level, 0))
        full, width = divmod(count, WIDTH)
        for index in range(full):
            yield Tile(level, index)
        if width:
            yield Tile(level, full, width)


def write_entries(entries: Iterable[bytes]) -> bytes:
    """A bundle of entries.

    Raises:
        FormatError: One is longer than the format can say.
    """
    parts = []
    for entry in entries:
        if len(entry) >= 1 << 16:
            raise FormatError("an entry of a bundle has at most 65535 bytes")
        parts += [_LENGTH.pack(len(entry)), entry]
    return b"".join(parts)


def read_entries(data: bytes, count: int) -> list[bytes]:
    """The entries of a bundle that must have ``count``.

    Raises:
        FormatError: It has more or fewer, or ends within one.
    """
    entries: list[bytes] = []
    at = 0
    while at < len(data) and len(entries) <= count:
        if at + _LENGTH.size > len(data):
            break
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if at + length > len(data):
            break
        entries.append(data[at : at + length])
        at += length
    if at != len(data) or len(entries) != count:
        raise FormatError(f"a bundle of entries is not {count} whole ones")
    return entries


class TileBuilder:
    """Makes tiles of hashes as leaves come.

    Args:
        frontier: The tree so far.
        partial: Hashes of the unfinished tile of each level, as far as they are there.
    """

    def __init__(self, frontier: merkle.Frontier | None = None, partial: dict[int, list[bytes]] | None = None) -> None:
        self.frontier = frontier or merkle.Frontier()
        self._open: dict[int, list[bytes]] = {level: list(hashes) for level, hashes in (partial or {}).items()}
        self._done: list[tuple[Tile, bytes]] = []

    def append(self, leaf_hash: bytes) -> None:
        """Take the next leaf's hash."""
        self.frontier.append(leaf_hash, self._emit)

    def take_full(self) -> list[tuple[Tile, bytes]]:
        """The tiles that became full since the last call."""
        done, self._done = self._done, []
        return done

    def partial(self) -> list[tuple[Tile, bytes]]:
        """The tiles that are not full."""
        return [
            (Tile(level, (self.frontier.size >> (HEIGHT * level)) // WIDTH, len(hashes)), b"".join(hashes))
            for level, hashes in sorted(self._open.items())
            if hashes
        ]

    def _emit(self, level: int, index: int, hash_: bytes) -> None:
        if level % HEIGHT:
            return
        hashes = self._open.setdefault(level // HEIGHT, [])
        hashes.append(hash_)
        if len(hashes) == WIDTH:
            self._done.append((Tile(level // HEIGHT, index // WIDTH), b"".join(hashes)))
            hashes.clear()
