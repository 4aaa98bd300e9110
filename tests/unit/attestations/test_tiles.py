"""Tiles: their paths, which a tree has, and that they are made of its leaves."""

from __future__ import annotations

import pytest

from licet_attestations import merkle
from licet_attestations.errors import FormatError
from licet_attestations.tiles import WIDTH, Tile, TileBuilder, read_entries, tiles_of, write_entries


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (Tile(0, 0), "tile/0/000"),
        (Tile(0, 999), "tile/0/999"),
        (Tile(1, 1000), "tile/1/x001/000"),
        (Tile(0, 1234067), "tile/0/x001/x234/067"),
        (Tile(-1, 1234067, 3), "tile/entries/x001/x234/067.p/3"),
        (Tile(2, 5, 255), "tile/2/005.p/255"),
    ],
)
def test_a_tile_has_one_path(tile: Tile, path: str) -> None:
    assert tile.path() == path
    assert Tile.from_path(path) == tile


@pytest.mark.parametrize(
    "path",
    [
        *("", "tile/0/0", "tile/0/00", "tile/0/0000", "tile/0/1000", "tile/0/x000/001", "tile/00/000", "tile/64/000"),
        *(
            "tile/0/001/000",
            "tile/0/x001/x000",
            "tile/0/000.p/256",
            "tile/0/000.p/0",
            "tile/0/000.p/01",
            "tile/0/000.p",
        ),
        *(
            "tile/-1/000",
            "tile/data/000",
            "tile/0/../000",
            "tile/0/000/",
            "/tile/0/000",
            "tile/0/\u0660\u0660\u0660",
            "tile/0/000.p/1000",
        ),
        "tile/0/" + "x000/" * 40 + "000",
    ],
)
def test_another_spelling_is_no_path(path: str) -> None:
    with pytest.raises(FormatError):
        Tile.from_path(path)


def test_the_specifications_tree_of_70000_has_the_tiles_that_it_names() -> None:
    tiles = [tile for tile in tiles_of(70_000) if not tile.is_entries]
    assert len([tile for tile in tiles if tile.level == 0 and tile.width == WIDTH]) == 273
    assert [tile for tile in tiles if tile.width < WIDTH] == [Tile(0, 273, 112), Tile(1, 1, 17), Tile(2, 0, 1)]
    assert [tile for tile in tiles if tile.level == 1] == [Tile(1, 0), Tile(1, 1, 17)]
    assert [tile for tile in tiles_of(256) if not tile.is_entries] == [Tile(0, 0), Tile(1, 0, 1)]
    assert list(tiles_of(0)) == []


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 600, 65_536, 65_800])
def test_tiles_are_made_of_leaves(size: int) -> None:
    hashes = [merkle.leaf_hash(str(number).encode()) for number in range(size)]
    builder = TileBuilder()
    made = {}
    for hash_ in hashes:
        builder.append(hash_)
        made |= dict(builder.take_full())
    made |= dict(builder.partial())
    assert set(made) == {tile for tile in tiles_of(size) if not tile.is_entries}
    assert all(len(data) == tile.width * 32 for tile, data in made.items())
    if size > 300:
        assert made[Tile(0, 1, min(WIDTH, size - WIDTH))][32:64] == hashes[257]
        assert next(data for tile, data in made.items() if tile.level == 1)[:32] == merkle.root(hashes[:256])
    assert builder.frontier.root() == merkle.root(hashes)


def test_a_bundle_has_its_entries_and_nothing_else() -> None:
    entries = [b"", b"a", b"b" * 65_535]
    data = write_entries(entries)
    assert read_entries(data, 3) == entries
    for wrong, count in ((data, 2), (data, 4), (data[:-1], 3), (data + b"\0", 3), (data + b"\0\0", 3), (b"", 1)):
        with pytest.raises(FormatError):
            read_entries(wrong, count)
    with pytest.raises(FormatError):
        write_entries([b"c" * 65_536])
