"""A sparse Merkle map: from keys of 256 bits to values, with short proofs that a key is there and that it is not.

Rules kept here:

- A subtree without keys has one fixed hash; a subtree with one key is that key's leaf, wherever it stands; every other is a node over its
  two halves, the next bit of the key deciding which. So a map has one root, whatever the order its keys came in.
- An empty subtree, a leaf and a node can never be taken for each other: their hashes begin with tags of their own. The path of a key ends
  at one place under a root, so of presence and absence only one can be proved.
- A leaf that ends the path of another key must itself belong on that path.
- A proof has one form: siblings from the root down, those of empty subtrees left out and marked, and none below which nothing is.

Source: the map is that of the Libra blockchain's "Jellyfish" tree in its binary form; tags and bytes are ours.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from licet_attestations.errors import FormatError, VerificationError
from licet_attestations.statement import is_sha256_hex

if TYPE_CHECKING:
    from collections.abc import Mapping

KEY_BYTES = 32
KEY_BITS = 8 * KEY_BYTES
_LEAF = b"licet:sparse-map:leaf:v1\x00"
_NODE = b"licet:sparse-map:node:v1\x00"
EMPTY_ROOT = hashlib.sha256(b"licet:sparse-map:empty:v1\x00").digest()
"""Root of a map without keys, and of every empty subtree."""


def _leaf_hash(key: bytes, value_digest: bytes) -> bytes:
    return hashlib.sha256(_LEAF + key + value_digest).digest()


def _node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(_NODE + left + right).digest()


def _bit(key: bytes, depth: int) -> int:
    return key[depth >> 3] >> (7 - (depth & 7)) & 1


def _shares(key: bytes, other: bytes, bits: int) -> bool:
    """Whether two keys have the same first bits."""
    shift = KEY_BITS - bits
    return int.from_bytes(key) >> shift == int.from_bytes(other) >> shift


class _Leaf:
    __slots__ = ("digest", "hash", "key", "value")

    def __init__(self, key: bytes, value: bytes) -> None:
        self.key = key
        self.value = value
        self.digest = hashlib.sha256(value).digest()
        self.hash = _leaf_hash(key, self.digest)


class _Node:
    __slots__ = ("halves", "hash")

    def __init__(self, left: _Tree, right: _Tree) -> None:
        self.halves = (left, right)
        self.hash = _node_hash(_root(left), _root(right))


_Tree = _Leaf | _Node | None


def _root(tree: _Tree) -> bytes:
    return EMPTY_ROOT if tree is None else tree.hash


def _pair(bit: int, on: _Tree, off: _Tree) -> _Node:
    return _Node(off, on) if bit else _Node(on, off)


def _with(tree: _Tree, leaf: _Leaf, depth: int) -> _Tree:
    """The tree with a leaf more, or with the leaf's value for its key."""
    if tree is None or (isinstance(tree, _Leaf) and tree.key == leaf.key):
        return leaf
    bit = _bit(leaf.key, depth)
    if isinstance(tree, _Node):
        return _pair(bit, _with(tree.halves[bit], leaf, depth + 1), tree.halves[1 - bit])
    if _bit(tree.key, depth) == bit:
        return _pair(bit, _with(tree, leaf, depth + 1), None)
    return _pair(bit, leaf, tree)


@dataclass(frozen=True, slots=True)
class MapProof:
    """Where the path of a key leads under a root.

    Attributes:
        siblings: Hashes beside the path, from the root down; `EMPTY_ROOT` for an empty subtree, but never at the end.
        other: Where the path ends at the leaf of another key: that key and the SHA-256 of its value.
    """

    siblings: tuple[bytes, ...] = ()
    other: tuple[bytes, bytes] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The proof as a JSON object; ``empty`` has a character for each sibling, ``1`` where its subtree is empty."""
        return {
            "empty": "".join("1" if hash_ == EMPTY_ROOT else "0" for hash_ in self.siblings),
            "siblings": [hash_.hex() for hash_ in self.siblings if hash_ != EMPTY_ROOT],
            "other": None if self.other is None else {"key": self.other[0].hex(), "value": self.other[1].hex()},
        }

    @classmethod
    def from_dict(cls, value: object) -> MapProof:
        """Read what `to_dict` wrote; verifies nothing.

        Raises:
            FormatError: It is something else.
        """
        match value:
            case {"empty": str(empty), "siblings": list(given), "other": other, **rest} if not rest:
                pass
            case _:
                raise FormatError("a proof of a map has exactly empty, siblings and other")
        if len(empty) > KEY_BITS or set(empty) - {"0", "1"} or empty.count("0") != len(given):
            raise FormatError(f"a proof of a map has a mark for each of at most {KEY_BITS} siblings")
        if not all(is_sha256_hex(hash_) for hash_ in given):
            raise FormatError("a sibling in a proof of a map is a SHA-256 in hex")
        left = (bytes.fromhex(hash_) for hash_ in given)
        siblings = tuple(EMPTY_ROOT if mark == "1" else next(left) for mark in empty)
        proof = cls(siblings, _other(other))
        if proof.to_dict() != value:
            raise FormatError("a proof of a map names an empty subtree by its hash")
        return proof


def _other(value: object) -> tuple[bytes, bytes] | None:
    match value:
        case None:
            return None
        case {"key": str(key), "value": str(digest), **rest} if (
            not rest and is_sha256_hex(key) and is_sha256_hex(digest)
        ):
            return bytes.fromhex(key), bytes.fromhex(digest)
    raise FormatError("the other leaf of a proof of a map has exactly a key and a value's digest, in hex")


class SparseMap:
    """A map that grows; its root and proofs are those of what it holds at the moment.

    Args:
        items: What it holds at first.
    """

    __slots__ = ("_size", "_tree")

    def __init__(self, items: Mapping[bytes, bytes] | None = None) -> None:
        self._tree: _Tree = None
        self._size = 0
        for key, value in (items or {}).items():
            self.put(key, value)

    def __len__(self) -> int:
        """How many keys it holds."""
        return self._size

    def copy(self) -> SparseMap:
        """An independent copy. Nothing of a tree ever changes, so it is shared."""
        copy = SparseMap()
        copy._tree, copy._size = self._tree, self._size
        return copy

    def put(self, key: bytes, value: bytes) -> None:
        """Set the value of a key.

        Raises:
            FormatError: A key that has not 32 bytes.
        """
        is_new = self.get(key) is None
        self._tree = _with(self._tree, _Leaf(key, value), 0)
        self._size += is_new

    def get(self, key: bytes) -> bytes | None:
        """The value of a key, or None."""
        found = self._walk(key)[1]
        return found.value if found is not None and found.key == key else None

    def root(self) -> bytes:
        """Root of the map."""
        return _root(self._tree)

    def prove(self, key: bytes) -> MapProof:
        """The proof that a key is there with its value, or that it is not."""
        siblings, found = self._walk(key)
        other = None if found is None or found.key == key else (found.key, found.digest)
        return MapProof(tuple(siblings), other)

    def _walk(self, key: bytes) -> tuple[list[bytes], _Leaf | None]:
        """Follow a key: the hashes beside its path, and the leaf at its end."""
        if len(key) != KEY_BYTES:
            raise FormatError(f"a key of a map has {KEY_BYTES} bytes")
        tree, siblings = self._tree, list[bytes]()
        while isinstance(tree, _Node):
            bit = _bit(key, len(siblings))
            siblings.append(_root(tree.halves[1 - bit]))
            tree = tree.halves[bit]
        return siblings, tree


def verify_present(root: bytes, key: bytes, value: bytes, proof: MapProof) -> None:
    """Verify that the map under ``root`` has ``value`` for ``key``.

    Raises:
        VerificationError: The proof does not show it.
    """
    if proof.other is not None:
        raise VerificationError("the proof of the map ends at another key: it shows absence")
    if len(key) != KEY_BYTES or _lead(key, _leaf_hash(key, hashlib.sha256(value).digest()), proof) != root:
        raise VerificationError("the proof of the map leads to another root")


def verify_absent(root: bytes, key: bytes, proof: MapProof) -> None:
    """Verify that the map under ``root`` does not have ``key``.

    Raises:
        VerificationError: The proof does not show it.
    """
    if len(key) != KEY_BYTES:
        raise VerificationError(f"a key of a map has {KEY_BYTES} bytes")
    end = EMPTY_ROOT
    if proof.other is not None:
        other, digest = proof.other
        if other == key or not _shares(key, other, len(proof.siblings)):
            raise VerificationError("the proof of the map ends at a key that does not stand on the path asked for")
        end = _leaf_hash(other, digest)
    if _lead(key, end, proof) != root:
        raise VerificationError("the proof of the map leads to another root")


def _lead(key: bytes, end: bytes, proof: MapProof) -> bytes:
    """The root to which the path of ``key`` leads from its end."""
    if len(proof.siblings) > KEY_BITS or any(len(hash_) != KEY_BYTES for hash_ in proof.siblings):
        raise VerificationError(f"a proof of a map has at most {KEY_BITS} siblings of 32 bytes")
    if proof.siblings and proof.siblings[-1] == EMPTY_ROOT:
        raise VerificationError("the proof of the map goes on where only one key is left")
    result = end
    for depth in range(len(proof.siblings) - 1, -1, -1):
        sibling = proof.siblings[depth]
        result = _node_hash(sibling, result) if _bit(key, depth) else _node_hash(result, sibling)
    return result
