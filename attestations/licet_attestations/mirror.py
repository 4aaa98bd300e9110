"""A mirror of a log: static files in C2SP tlog-tiles form, that grow and are never put back.

Rules kept here:

- Only a log's checkpoint and its entries are taken from where it is mirrored from; every hash is computed from the entries.
- Nothing is replaced before the whole is verified: what the mirror had must be what its own checkpoint says, and with what was added must
  make the root that a pinned key of the log signed. The checkpoint is written last.
- A mirror never goes backwards, and never to another history.
- Stopped at any moment, a mirror is what its checkpoint says, with some files more; the next turn goes on.

Source: C2SP tlog-tiles (v0).
"""

from __future__ import annotations

import os
import secrets
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from licet_attestations import merkle, tlogpolicy
from licet_attestations.checkpoint import MAX_NOTE_BYTES, Checkpoint, verify_checkpoint
from licet_attestations.errors import FormatError, VerificationError
from licet_attestations.leaf import Leaf
from licet_attestations.signer.files import sync_directory
from licet_attestations.tiles import CHECKPOINT, HEIGHT, WIDTH, Tile, TileBuilder, partials_of, read_entries, tiles_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from licet_attestations.tlogpolicy import Policy
    from licet_attestations.trustroot import TrustRoot

MAX_BUNDLE_BYTES = WIDTH * (1024 + 2)
"""Of entries that are leaves of ours."""
_MOST_HELD = 2048


class Place(Protocol):
    """Where a mirror lies. What is written is there whole once ``write`` returned, or not at all."""

    def read(self, path: str, max_bytes: int) -> bytes | None:
        """A file, or None if there is none; longer than that is refused."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Write a file, or write over it."""
        ...

    def drop_partials(self, path: str) -> None:
        """Remove the partial tiles of a tile that is full now."""
        ...


class FolderPlace:
    """A mirror in a folder, for any server of static files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, path: str, max_bytes: int) -> bytes | None:
        """See ``Place``."""
        try:
            with (self._folder / path).open("rb") as stream:
                data = stream.read(max_bytes + 1)
        except FileNotFoundError:
            return None
        if len(data) > max_bytes:
            raise VerificationError(f"{path} of the mirror is longer than such a file can be", where=path)
        return data

    def write(self, path: str, data: bytes) -> None:
        """See ``Place``."""
        target = self._folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.parent / f".tmp-{secrets.token_hex(8)}"
        try:
            with part.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        sync_directory(target.parent)

    def drop_partials(self, path: str) -> None:
        """See ``Place``."""
        shutil.rmtree(self._folder / f"{path}.p", ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Mirrored:
    """What a mirror holds: the checkpoint, who cosigned it, and how many entries were new."""

    checkpoint: Checkpoint
    cosigners: tuple[str, ...]
    added: int


def update(
    place: Place, fetch: Callable[[str], bytes], trust: TrustRoot, tenant: str, policy: Policy | None = None
) -> Mirrored:
    """Bring a mirror up to the log's newest checkpoint.

    Args:
        place: The mirror; may be empty.
        fetch: Gets a file of the log; not trusted.
        trust: Pinned keys.
        tenant: Whose log.
        policy: Whose quorum must have cosigned the checkpoint.

    Raises:
        VerificationError: What was fetched, or what the mirror holds, is not what was signed, or is older than the mirror. The mirror's
            checkpoint is as it was.
    """
    note, new, cosigners = _verified(fetch(CHECKPOINT), trust, tenant, policy)
    kept = place.read(CHECKPOINT, MAX_NOTE_BYTES)
    old = Checkpoint(new.origin, 0, merkle.EMPTY_ROOT) if kept is None else _verified(kept, trust, tenant, None)[1]
    if new.size < old.size:
        raise VerificationError(
            f"the log has {new.size} entries, and the mirror {old.size}: the log was put back, or an old answer was given",
            where=CHECKPOINT,
        )
    builder = _taken_up(place, old)
    entries: list[bytes] = _tail(place, old.size)
    fresh: dict[Tile, bytes] = {}
    written: set[Tile] = set()
    position = old.size
    while position < new.size:
        bundle = Tile(-1, position // WIDTH, min(WIDTH, new.size - position // WIDTH * WIDTH))
        data = fetch(bundle.path())
        found = _entries(data, bundle, new.size)
        if found[: len(entries)] != entries:
            raise VerificationError("the log's entries are not those that the mirror has", where=bundle.path())
        for entry in found[len(entries) :]:
            builder.append(merkle.leaf_hash(entry))
        fresh[bundle] = data
        position = bundle.first + bundle.width
        entries = []
        fresh |= dict(builder.take_full())
        if len(fresh) >= _MOST_HELD:
            # A whole log need not fit into memory. These lie beyond what the mirror's checkpoint names, so nothing is replaced.
            full = {tile: data for tile, data in fresh.items() if tile.width == WIDTH}
            written |= _write(place, full)
            fresh = {tile: data for tile, data in fresh.items() if tile not in full}
    fresh |= dict(builder.partial())
    if builder.frontier.root() != new.root:
        raise VerificationError(
            "the log's entries do not make the root that it signed, or what the mirror has is not their beginning",
            where=CHECKPOINT,
        )
    written |= _write(place, fresh)
    if kept is None or kept != note.encode():
        place.write(CHECKPOINT, note.encode())
    for tile in partials_of(old.size):
        if (filled := Tile(tile.level, tile.index)) in written:
            place.drop_partials(filled.path())
    return Mirrored(new, cosigners, new.size - old.size)


def verify_mirror(
    place: Place,
    trust: TrustRoot,
    tenant: str,
    policy: Policy | None = None,
    progress: Callable[[int, int], None] = lambda _done, _size: None,
) -> Mirrored:
    """Verify a mirror from its first entry to its checkpoint, and every tile.

    Raises:
        VerificationError: It is not what the log signed; ``where`` names the file.
    """
    kept = place.read(CHECKPOINT, MAX_NOTE_BYTES)
    if kept is None:
        raise VerificationError("the mirror has no checkpoint", where=CHECKPOINT)
    _, head, cosigners = _verified(kept, trust, tenant, policy)
    builder = TileBuilder()
    for bundle in (tile for tile in tiles_of(head.size) if tile.is_entries):
        data = place.read(bundle.path(), MAX_BUNDLE_BYTES)
        if data is None:
            raise VerificationError("a bundle of entries is missing", where=bundle.path())
        for entry in _entries(data, bundle, head.size):
            builder.append(merkle.leaf_hash(entry))
        _compare(place, builder.take_full())
        progress(builder.frontier.size, head.size)
    _compare(place, builder.partial())
    if builder.frontier.root() != head.root:
        raise VerificationError("the entries do not make the root that was signed", where=CHECKPOINT)
    return Mirrored(head, cosigners, head.size)


def tenant_of(note: bytes, trust: TrustRoot) -> str:
    """Whose log a note says that it is of; not verified."""
    origin = note.split(b"\n", 1)[0].decode("utf-8", "replace")
    prefix, slash, tenant = origin.rpartition("/")
    if not slash or prefix != trust.log_origin_prefix:
        raise VerificationError(f"{origin!r} is not a log under the pinned trust root", where=CHECKPOINT)
    return tenant


def _write(place: Place, tiles: dict[Tile, bytes]) -> set[Tile]:
    for tile, data in tiles.items():
        place.write(tile.path(), data)
    return set(tiles)


def _compare(place: Place, tiles: list[tuple[Tile, bytes]]) -> None:
    for tile, data in tiles:
        if place.read(tile.path(), WIDTH * merkle.HASH_BYTES) != data:
            raise VerificationError("a tile is missing, or is not what the entries make", where=tile.path())


def _verified(
    data: bytes, trust: TrustRoot, tenant: str, policy: Policy | None
) -> tuple[str, Checkpoint, tuple[str, ...]]:
    try:
        note = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise VerificationError("the checkpoint is not UTF-8", where=CHECKPOINT) from error
    origin = trust.origin(tenant)
    keys = tlogpolicy.log_keys(note, policy, trust)
    if policy is None:
        return note, verify_checkpoint(note, origin, keys), ()
    found = tlogpolicy.verify(note, policy, origin, keys)
    return note, found.checkpoint, tuple(sorted(found.cosignatures))


def _entries(data: bytes, bundle: Tile, size: int) -> list[bytes]:
    try:
        found = read_entries(data, bundle.width)
        for entry in found:
            Leaf.from_bytes(entry)
    except FormatError as error:
        raise VerificationError(f"not the entries of a log of {size}: {error}", where=bundle.path()) from error
    return found


def _tail(place: Place, size: int) -> list[bytes]:
    """The entries of the unfinished bundle that a mirror has."""
    width = size % WIDTH
    if not width:
        return []
    bundle = Tile(-1, size // WIDTH, width)
    return _entries(place.read(bundle.path(), MAX_BUNDLE_BYTES) or b"", bundle, size)


def _taken_up(place: Place, old: Checkpoint) -> TileBuilder:
    """Go on from a mirror's own tiles, after verifying that they make the root of its checkpoint."""
    partial: dict[int, list[bytes]] = {}
    frontier: list[bytes] = []
    for tile in sorted((tile for tile in partials_of(old.size) if not tile.is_entries), reverse=True):
        data = place.read(tile.path(), WIDTH * merkle.HASH_BYTES)
        if data is None or len(data) != tile.width * merkle.HASH_BYTES:
            raise VerificationError("the mirror lacks a tile of its own checkpoint", where=tile.path())
        partial[tile.level] = list(_hashes(data))
        frontier += _ranges(partial[tile.level])
    try:
        taken = merkle.Frontier(old.size, frontier)
    except FormatError as error:
        raise VerificationError(f"the mirror's tiles make no tree: {error}", where=CHECKPOINT) from error
    if taken.root() != old.root:
        raise VerificationError("the mirror's tiles do not make the root of its checkpoint", where=CHECKPOINT)
    return TileBuilder(taken, partial)


def _hashes(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data), merkle.HASH_BYTES):
        yield data[at : at + merkle.HASH_BYTES]


def _ranges(hashes: list[bytes]) -> list[bytes]:
    """The roots of the full subtrees over the hashes of one tile, largest first."""
    found, at = [], 0
    for height in reversed(range(HEIGHT)):
        if len(hashes) >> height & 1:
            part = hashes[at : at + (1 << height)]
            at += 1 << height
            while len(part) > 1:
                part = [merkle.node_hash(part[n], part[n + 1]) for n in range(0, len(part), 2)]
            found.append(part[0])
    return found
