"""The sparse map against a naive reference that follows its definition word by word."""

import hashlib
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from licet_attestations.errors import FormatError, VerificationError
from licet_attestations.sparsemap import EMPTY_ROOT, MapProof, SparseMap, verify_absent, verify_present

Items = dict[bytes, bytes]

# Keys that share long beginnings, too, down to the very last bit.
KEYS = st.one_of(
    st.binary(min_size=32, max_size=32),
    st.integers(0, 15).map(lambda low: bytes(31) + bytes([low])),
    st.integers(0, 15).map(lambda high: bytes([high << 4]) + bytes(31)),
)
MAPS = st.dictionaries(KEYS, st.binary(max_size=4), max_size=24)


def bits(key: bytes) -> str:
    return f"{int.from_bytes(key):0256b}"


def naive_root(items: dict[str, bytes], depth: int = 0) -> bytes:
    """The definition: nothing, the one leaf, or a node over the halves by the next bit."""
    if not items:
        return hashlib.sha256(b"licet:sparse-map:empty:v1\x00").digest()
    if len(items) == 1:
        ((key, value),) = items.items()
        leaf = int(key, 2).to_bytes(32) + hashlib.sha256(value).digest()
        return hashlib.sha256(b"licet:sparse-map:leaf:v1\x00" + leaf).digest()
    halves = [{key: value for key, value in items.items() if key[depth] == bit} for bit in "01"]
    joined = naive_root(halves[0], depth + 1) + naive_root(halves[1], depth + 1)
    return hashlib.sha256(b"licet:sparse-map:node:v1\x00" + joined).digest()


@given(MAPS, st.randoms())
def test_the_root_is_that_of_the_definition_in_whatever_order_keys_come(items: Items, random: Random) -> None:
    expected = naive_root({bits(key): value for key, value in items.items()})
    assert SparseMap(items).root() == expected
    shuffled = list(items.items())
    random.shuffle(shuffled)
    first = SparseMap(dict.fromkeys(items, b"another value"))
    root, grown = first.root(), first.copy()
    for key, value in shuffled:
        grown.put(key, value)
    assert grown.root() == expected
    assert len(grown) == len(items)
    assert first.root() == root


@given(MAPS, KEYS)
def test_every_key_is_proved_to_be_there_or_not_and_never_both(items: Items, asked: bytes) -> None:
    map_ = SparseMap(items)
    for key in {*items, asked}:
        proof = MapProof.from_dict(map_.prove(key).to_dict())
        assert proof == map_.prove(key)
        value = items.get(key)
        if value is None:
            verify_absent(map_.root(), key, proof)
            with pytest.raises(VerificationError):
                verify_present(map_.root(), key, b"", proof)
        else:
            verify_present(map_.root(), key, value, proof)
            with pytest.raises(VerificationError):
                verify_present(map_.root(), key, value + b"!", proof)
            with pytest.raises(VerificationError):
                verify_absent(map_.root(), key, proof)


@given(MAPS.filter(bool), KEYS, st.data())
def test_a_proof_that_was_changed_proves_nothing(items: Items, asked: bytes, data: st.DataObject) -> None:
    map_ = SparseMap(items)
    root, proof = map_.root(), map_.prove(asked)
    changed = []
    if proof.siblings:
        at = data.draw(st.integers(0, len(proof.siblings) - 1))
        other = hashlib.sha256(proof.siblings[at]).digest()
        changed += [
            MapProof((*proof.siblings[:at], other, *proof.siblings[at + 1 :]), proof.other),
            MapProof(proof.siblings[:-1], proof.other),
        ]
    changed += [MapProof((*proof.siblings, EMPTY_ROOT), proof.other), MapProof((*proof.siblings, root), proof.other)]
    if proof.other is not None:
        # The very leaf that is asked for, called another's; and one that stands elsewhere.
        changed += [MapProof(proof.siblings, (asked, proof.other[1])), MapProof(proof.siblings, None)]
    for forged in changed:
        with pytest.raises(VerificationError):
            verify_absent(root, asked, forged)
        with pytest.raises(VerificationError):
            verify_present(root, asked, items.get(asked, b""), forged)


def test_absence_is_not_shown_by_a_leaf_that_stands_on_another_path() -> None:
    # The map of one key has no siblings, and shows the absence of every other; in that of two, each has its place.
    low, high = bytes(32), b"\xff" * 32
    map_ = SparseMap({low: b"a", high: b"b"})
    of_low = map_.prove(low)
    displaced = MapProof(of_low.siblings, (low, hashlib.sha256(b"a").digest()))
    verify_absent(map_.root(), b"\x01" + bytes(31), map_.prove(b"\x01" + bytes(31)))
    with pytest.raises(VerificationError, match="does not stand on the path"):
        verify_absent(map_.root(), high, displaced)


@pytest.mark.parametrize(
    "change",
    [
        {"empty": "2"},
        {"empty": "0" * 257},
        {"empty": ""},
        {"siblings": ["00"]},
        {"siblings": [EMPTY_ROOT.hex()]},
        {"siblings": "x"},
        {"other": {}},
        {"other": {"key": "00", "value": "00"}},
        {"more": 1},
    ],
)
def test_what_is_not_in_the_one_form_is_no_proof(change: dict[str, object]) -> None:
    good = SparseMap({bytes(32): b"a", b"\xff" * 32: b"b"}).prove(bytes(32)).to_dict()
    assert MapProof.from_dict(good).to_dict() == good
    with pytest.raises(FormatError):
        MapProof.from_dict({**good, **change})


def test_a_key_has_32_bytes() -> None:
    map_ = SparseMap()
    with pytest.raises(FormatError):
        map_.put(b"short", b"")
    with pytest.raises(VerificationError):
        verify_absent(map_.root(), b"short", MapProof())


def test_a_map_that_was_not_made_by_the_definition_proves_nothing() -> None:
    # One key, and yet a node above it: another map with the same keys would have another root.
    alone = SparseMap({bytes(32): b"a"})
    root = hashlib.sha256(b"licet:sparse-map:node:v1\x00" + alone.root() + EMPTY_ROOT).digest()
    with pytest.raises(VerificationError, match="only one key is left"):
        verify_present(root, bytes(32), b"a", MapProof((EMPTY_ROOT,)))
    other = (bytes(32), hashlib.sha256(b"a").digest())
    with pytest.raises(VerificationError, match="only one key is left"):
        verify_absent(root, b"\x01" + bytes(31), MapProof((EMPTY_ROOT,), other))
