"""The Merkle tree of RFC 6962: roots, compact ranges, inclusion and consistency proofs.

Rules kept here:

- A leaf and a node can never be taken for each other: their hashes begin with 0x00 and 0x01.
- A proof has exactly the length its indices demand; one hash more or less is refused.
- Hashes are addressed as (level, index): the node over leaves ``[index << level, (index + 1) << level)``, always full.

Source: RFC 6962 section 2.1; RFC 9162 sections 2.1.3.2 and 2.1.4.2 for the verifiers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

from licet_attestations.errors import FormatError, VerificationError

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()

HashAt = Callable[[int, int], bytes]
"""``hash_at(level, index)``: the stored hash of a full subtree."""


def leaf_hash(leaf: bytes) -> bytes:
    """Hash of a leaf's bytes (RFC 6962 section 2.1)."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node (RFC 6962 section 2.1)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root(leaf_hashes: Iterable[bytes]) -> bytes:
    """Root of the tree over ``leaf_hashes``; of no leaves, SHA-256 of nothing."""
    frontier = Frontier()
    frontier.append_many(leaf_hashes)
    return frontier.root()


class Frontier:
    """A compact range from leaf 0: the roots of the full subtrees that make up a tree, largest first.

    There is one per set bit of ``size``; with them the tree can grow and its root be told without any leaf.
    """

    __slots__ = ("_hashes", "_size")

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        """Take up a frontier where it was left.

        Raises:
            FormatError: Not as many hashes as ``size`` has set bits, or one is not 32 bytes.
        """
        if size < 0 or len(hashes) != size.bit_count() or any(len(h) != HASH_BYTES for h in hashes):
            raise FormatError(f"a frontier of size {size} needs {max(size, 0).bit_count()} hashes of 32 bytes")
        self._size = size
        self._hashes = list(hashes)

    @property
    def size(self) -> int:
        """Number of leaves."""
        return self._size

    def hashes(self) -> list[bytes]:
        """The hashes, largest subtree first: what the constructor takes."""
        return list(self._hashes)

    def copy(self) -> Frontier:
        """An independent copy, to try an append on."""
        return Frontier(self._size, self._hashes)

    def append(self, hash_: bytes, emit: Callable[[int, int, bytes], None] | None = None) -> None:
        """Append one leaf hash.

        Args:
            hash_: From ``leaf_hash``.
            emit: Called with (level, index, hash) of every subtree that this leaf completes, the leaf itself first.
        """
        if len(hash_) != HASH_BYTES:
            raise FormatError("a leaf hash has 32 bytes")
        level, index = 0, self._size
        if emit is not None:
            emit(0, index, hash_)
        while index & 1:
            hash_ = node_hash(self._hashes.pop(), hash_)
            level, index = level + 1, index >> 1
            if emit is not None:
                emit(level, index, hash_)
        self._hashes.append(hash_)
        self._size += 1

    def append_many(self, hashes: Iterable[bytes], emit: Callable[[int, int, bytes], None] | None = None) -> None:
        """Append leaf hashes in order, as ``append``."""
        for hash_ in hashes:
            self.append(hash_, emit)

    def root(self) -> bytes:
        """Root of the whole tree."""
        if not self._hashes:
            return EMPTY_ROOT
        result = self._hashes[-1]
        for hash_ in reversed(self._hashes[:-1]):
            result = node_hash(hash_, result)
        return result


def _range_root(begin: int, end: int, hash_at: HashAt) -> bytes:
    """Root over leaves [begin, end), where ``begin`` is aligned to a power of two not below ``end - begin``."""
    result: bytes | None = None
    # From the right: the smallest full subtree first, each hashed under the next larger to its left.
    remaining = end - begin
    position = end
    while remaining:
        level = (remaining & -remaining).bit_length() - 1
        position -= 1 << level
        remaining -= 1 << level
        part = hash_at(level, position >> level)
        result = part if result is None else node_hash(part, result)
    if result is None:
        return EMPTY_ROOT
    return result


def _split(size: int) -> int:
    """The largest power of two below ``size``, which is at least 2."""
    return 1 << (size - 1).bit_length() - 1


def inclusion_proof(index: int, size: int, hash_at: HashAt) -> list[bytes]:
    """The audit path of leaf ``index`` in the tree of ``size`` leaves, leaf to root (RFC 6962 section 2.1.1).

    Raises:
        FormatError: The tree has no such leaf.
    """
    if not 0 <= index < size:
        raise FormatError(f"a tree of {size} leaves has no leaf {index}")
    begin, end = 0, size
    path: list[bytes] = []
    while end - begin > 1:
        middle = begin + _split(end - begin)
        if index < middle:
            path.append(_range_root(middle, end, hash_at))
            end = middle
        else:
            path.append(_range_root(begin, middle, hash_at))
            begin = middle
    path.reverse()
    return path


def consistency_proof(size1: int, size2: int, hash_at: HashAt) -> list[bytes]:
    """The proof that the tree of ``size2`` extends that of ``size1`` (RFC 6962 section 2.1.2).

    Empty where the sizes are equal or ``size1`` is 0: every tree extends the empty one.

    Raises:
        FormatError: ``size1`` is negative or greater than ``size2``.
    """
    if not 0 <= size1 <= size2:
        raise FormatError(f"a tree of {size2} leaves extends none of {size1}")
    if size1 in (0, size2):
        return []
    begin, end, whole = 0, size2, True
    path: list[bytes] = []
    while size1 != end:
        middle = begin + _split(end - begin)
        if size1 <= middle:
            path.append(_range_root(middle, end, hash_at))
            end = middle
        else:
            path.append(_range_root(begin, middle, hash_at))
            begin, whole = middle, False
    if not whole:  # The old tree's own root needs no naming while the subtree at hand is that tree.
        path.append(_range_root(begin, end, hash_at))
    path.reverse()
    return path


def root_from_inclusion(hash_: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes:
    """The root that ``proof`` leads to from the leaf hash ``hash_`` at ``index``.

    Raises:
        VerificationError: No such leaf, or a proof of another length.

    Source: RFC 9162 section 2.1.3.2.
    """
    if not 0 <= index < size:
        raise VerificationError(f"a tree of {size} leaves has no leaf {index}")
    if len(hash_) != HASH_BYTES or any(len(part) != HASH_BYTES for part in proof):
        raise VerificationError("every hash of an inclusion proof has 32 bytes")
    node, last, result = index, size - 1, hash_
    for part in proof:
        if last == 0:
            raise VerificationError("the inclusion proof is too long")
        if node & 1 or node == last:
            result = node_hash(part, result)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            result = node_hash(result, part)
        node, last = node >> 1, last >> 1
    if last != 0:
        raise VerificationError("the inclusion proof is too short")
    return result


def verify_inclusion(hash_: bytes, index: int, size: int, proof: Sequence[bytes], root_: bytes) -> None:
    """Verify that ``hash_`` is leaf ``index`` of the tree of ``size`` leaves under ``root_``.

    Args:
        hash_: From ``leaf_hash``.
        index: 0-based, below ``size``.
        size: Number of leaves.
        proof: Sibling hashes, leaf to root, 32 bytes each.
        root_: From a checkpoint whose signature is verified already.

    Raises:
        VerificationError: Wrong proof length, or another root.
    """
    if root_from_inclusion(hash_, index, size, proof) != root_:
        raise VerificationError(f"the inclusion proof of entry {index} leads to another root")


# The algorithm stands as the RFC writes it, so that it can be compared.
def verify_consistency(  # noqa: C901, PLR0912
    size1: int, root1: bytes, size2: int, root2: bytes, proof: Sequence[bytes]
) -> None:
    """Verify that the tree of ``size2`` under ``root2`` extends that of ``size1`` under ``root1``.

    An old size of 0 is refused: a proof from nothing proves nothing. A caller for whom the empty tree is a true
    beginning (a log's first checkpoint) uses ``verify_extension``.

    Raises:
        VerificationError: Sizes out of order, wrong proof length, or another root.

    Source: RFC 9162 section 2.1.4.2.
    """
    if not 0 < size1 <= size2:
        raise VerificationError(f"a tree of {size2} leaves proves nothing about one of {size1}")
    if size1 == size2:
        if proof or root1 != root2:
            raise VerificationError("two trees of the same size have different roots, or a proof they do not need")
        return
    if any(len(part) != HASH_BYTES for part in (root1, root2, *proof)):
        raise VerificationError("every hash of a consistency proof has 32 bytes")
    # Where the old tree is one full subtree, its root is the first node and is not repeated in the proof.
    path = [root1, *proof] if size1 & (size1 - 1) == 0 else list(proof)
    if not path:
        raise VerificationError("the consistency proof is too short")
    node, last = size1 - 1, size2 - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old = new = path[0]
    for part in path[1:]:
        if last == 0:
            raise VerificationError("the consistency proof is too long")
        if node & 1 or node == last:
            old, new = node_hash(part, old), node_hash(part, new)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            new = node_hash(new, part)
        node, last = node >> 1, last >> 1
    if last != 0:
        raise VerificationError("the consistency proof is too short")
    if old != root1 or new != root2:
        raise VerificationError(f"the tree of {size2} leaves does not extend the one of {size1}")


def verify_extension(size1: int, root1: bytes, size2: int, root2: bytes, proof: Sequence[bytes]) -> None:
    """As ``verify_consistency``, but every tree extends the empty one (with an empty proof).

    Source: C2SP tlog-witness, which requires an old size of 0 to be accepted.
    """
    if size1 == 0:
        if proof or root1 != EMPTY_ROOT or len(root2) != HASH_BYTES or size2 < 0 or (size2 == 0 and root2 != root1):
            raise VerificationError("a log that begins has an empty proof and the empty tree's root")
        return
    verify_consistency(size1, root1, size2, root2, proof)
