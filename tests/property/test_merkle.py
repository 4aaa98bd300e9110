"""The tree against a naive reference that follows RFC 6962 word by word."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from licet_attestations import merkle
from licet_attestations.errors import FormatError, VerificationError

LEAVES = st.lists(st.binary(max_size=4), max_size=70)


def naive_root(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962 section 2.1."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = naive_split(len(leaves))
    return hashlib.sha256(b"\x01" + naive_root(leaves[:k]) + naive_root(leaves[k:])).digest()


def naive_split(n: int) -> int:
    k = 1
    while k * 2 < n:
        k *= 2
    return k


def naive_path(m: int, leaves: list[bytes]) -> list[bytes]:
    """PATH of RFC 6962 section 2.1.1."""
    if len(leaves) == 1:
        return []
    k = naive_split(len(leaves))
    if m < k:
        return [*naive_path(m, leaves[:k]), naive_root(leaves[k:])]
    return [*naive_path(m - k, leaves[k:]), naive_root(leaves[:k])]


def naive_subproof(m: int, leaves: list[bytes], *, whole: bool) -> list[bytes]:
    """SUBPROOF of RFC 6962 section 2.1.2."""
    if m == len(leaves):
        return [] if whole else [naive_root(leaves)]
    k = naive_split(len(leaves))
    if m <= k:
        return [*naive_subproof(m, leaves[:k], whole=whole), naive_root(leaves[k:])]
    return [*naive_subproof(m - k, leaves[k:], whole=False), naive_root(leaves[:k])]


def grow(leaves: list[bytes]) -> tuple[merkle.Frontier, dict[tuple[int, int], bytes]]:
    nodes: dict[tuple[int, int], bytes] = {}

    def emit(level: int, index: int, hash_: bytes) -> None:
        assert (level, index) not in nodes
        nodes[level, index] = hash_

    frontier = merkle.Frontier()
    frontier.append_many(map(merkle.leaf_hash, leaves), emit)
    return frontier, nodes


@given(LEAVES)
def test_root_is_the_rfcs(leaves: list[bytes]) -> None:
    frontier, nodes = grow(leaves)
    assert frontier.root() == naive_root(leaves) == merkle.root(map(merkle.leaf_hash, leaves))
    assert frontier.size == len(leaves)
    for (level, index), hash_ in nodes.items():
        assert hash_ == naive_root(leaves[index << level : (index + 1) << level])


@given(LEAVES, st.data())
def test_a_frontier_taken_up_again_goes_on_as_if_never_left(leaves: list[bytes], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(leaves)))
    first, _ = grow(leaves[:cut])
    second = merkle.Frontier(first.size, first.hashes())
    second.append_many(map(merkle.leaf_hash, leaves[cut:]))
    assert second.root() == naive_root(leaves)
    assert first.root() == naive_root(leaves[:cut])


@given(LEAVES.filter(bool), st.data())
def test_inclusion_proofs_are_the_rfcs_and_verify(leaves: list[bytes], data: st.DataObject) -> None:
    _, nodes = grow(leaves)
    index = data.draw(st.integers(0, len(leaves) - 1))
    proof = merkle.inclusion_proof(index, len(leaves), lambda level, at: nodes[level, at])
    assert proof == naive_path(index, leaves)
    merkle.verify_inclusion(merkle.leaf_hash(leaves[index]), index, len(leaves), proof, naive_root(leaves))


@given(LEAVES.filter(bool), st.data())
def test_consistency_proofs_are_the_rfcs_and_verify(leaves: list[bytes], data: st.DataObject) -> None:
    _, nodes = grow(leaves)
    size1 = data.draw(st.integers(1, len(leaves)))
    proof = merkle.consistency_proof(size1, len(leaves), lambda level, at: nodes[level, at])
    assert proof == naive_subproof(size1, leaves, whole=True)
    roots = (naive_root(leaves[:size1]), naive_root(leaves))
    merkle.verify_consistency(size1, roots[0], len(leaves), roots[1], proof)
    merkle.verify_extension(size1, roots[0], len(leaves), roots[1], proof)


@given(st.integers(2, 70), st.data())
def test_a_mutated_proof_is_refused(size: int, data: st.DataObject) -> None:
    leaves = [bytes([i]) for i in range(size)]
    _, nodes = grow(leaves)
    index = data.draw(st.integers(0, size - 1))
    proof = merkle.inclusion_proof(index, size, lambda level, at: nodes[level, at])
    mutation = data.draw(st.sampled_from(["flip", "drop", "add", "index"]))
    other = index
    if mutation == "flip":
        at = data.draw(st.integers(0, len(proof) - 1))
        proof[at] = bytes([proof[at][0] ^ 1]) + proof[at][1:]
    elif mutation == "drop":
        del proof[data.draw(st.integers(0, len(proof) - 1))]
    elif mutation == "add":
        proof.insert(data.draw(st.integers(0, len(proof))), bytes(32))
    else:
        other = data.draw(st.integers(0, size - 1).filter(lambda i: i != index))
    with pytest.raises(VerificationError):
        merkle.verify_inclusion(merkle.leaf_hash(leaves[index]), other, size, proof, naive_root(leaves))


@given(st.integers(2, 70), st.data())
def test_a_forked_log_is_refused(size: int, data: st.DataObject) -> None:
    leaves = [bytes([i]) for i in range(size)]
    size1 = data.draw(st.integers(1, size - 1))
    changed = data.draw(st.integers(0, size1 - 1))
    forked = [b"other" if i == changed else leaf for i, leaf in enumerate(leaves)]
    _, nodes = grow(forked)
    proof = merkle.consistency_proof(size1, size, lambda level, at: nodes[level, at])
    with pytest.raises(VerificationError):
        merkle.verify_consistency(size1, naive_root(leaves[:size1]), size, naive_root(forked), proof)


def test_the_empty_tree() -> None:
    root = naive_root([b"a"])
    merkle.verify_extension(0, merkle.EMPTY_ROOT, 1, root, [])
    merkle.verify_extension(0, merkle.EMPTY_ROOT, 0, merkle.EMPTY_ROOT, [])
    for arguments in (
        (0, root, 1, root, []),
        (0, merkle.EMPTY_ROOT, 1, root, [root]),
        (0, merkle.EMPTY_ROOT, 0, root, []),
    ):
        with pytest.raises(VerificationError):
            merkle.verify_extension(*arguments)
    with pytest.raises(VerificationError):
        merkle.verify_consistency(0, merkle.EMPTY_ROOT, 1, root, [])
    assert merkle.consistency_proof(0, 5, lambda _level, _index: b"") == []


def test_a_frontier_of_the_wrong_length_is_refused() -> None:
    for size, hashes in ((3, [bytes(32)]), (-1, []), (1, [b"short"]), (0, [bytes(32)])):
        with pytest.raises(FormatError):
            merkle.Frontier(size, hashes)
    with pytest.raises(FormatError):
        merkle.inclusion_proof(3, 3, lambda _level, _index: b"")
    with pytest.raises(FormatError):
        merkle.consistency_proof(4, 3, lambda _level, _index: b"")
