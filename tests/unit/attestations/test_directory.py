"""The directory of all logs, and the pairs of one: what they show, and what they refuse."""

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.attestations.conftest import World

from archives import START_MS, TENANT
from licet_attestations import canonical, directory, merkle, pairs
from licet_attestations.checkpoint import Checkpoint, sign_checkpoint
from licet_attestations.directory import DEPTH, DirectoryMap, LogState
from licet_attestations.errors import FormatError, VerificationError
from licet_attestations.keys import ED25519, PrivateKey
from licet_attestations.leaf import DIRECTORY, Leaf, commit
from licet_attestations.sparsemap import MapProof
from licet_attestations.tlogproof import TlogProof
from licet_attestations.trustroot import TrustedKey, TrustRoot

SEED = hashlib.sha256(b"seed").digest()


def state_of(tenant: str, size: int = 3) -> LogState:
    return LogState(tenant, size, hashlib.sha256(tenant.encode()).digest(), bytes(32))


STATES = [state_of(name) for name in (TENANT, "lakeside", "hillside", "platform", "~void")]


class Directory:
    """A directory log of one entry, over an entry of another before it."""

    def __init__(self, states: list[LogState], *, seed: bytes = SEED, kind: str = directory.KIND) -> None:
        self.key = PrivateKey.generate(ED25519)
        self.map = DirectoryMap(states, seed)
        self.trust = TrustRoot("test", (TrustedKey(self.key.public, "log", 0, None),), "licet.example/log")
        self.record = directory.entry_record(START_MS, self.map.root)
        self.salt = hashlib.sha256(b"record").digest()
        self.leaf = Leaf(kind, START_MS, "platform", DIRECTORY, commit(self.salt, self.record))

    def open(self, tenant: str, origin: str = DIRECTORY) -> dict[str, Any]:
        before = hashlib.sha256(b"before").digest()
        root = merkle.root([before, self.leaf.hash()])
        note = sign_checkpoint(Checkpoint(self.trust.origin(origin), 2, root), self.key)
        return directory.opening_document(
            self.map.opening(tenant),
            leaf=self.leaf.to_bytes().decode(),
            record_salt=self.salt,
            record=self.record,
            proof=TlogProof(1, (before,), note).to_text(),
        )


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.tenant)
def test_every_log_has_an_opening_that_verifies(state: LogState) -> None:
    it = Directory(STATES)
    opened = directory.verify_opening(it.open(state.tenant), it.trust, state.tenant)
    assert (opened.state, opened.index, opened.time_ms, opened.checkpoint.size) == (state, 1, START_MS, 2)


@given(st.sets(st.from_regex(r"[a-z]{3,6}", fullmatch=True), min_size=1, max_size=40))
def test_openings_lead_to_the_one_root(names: set[str]) -> None:
    map_ = DirectoryMap([state_of(name) for name in names], SEED)
    for name in names:
        state, salt, siblings = map_.opening(name)
        assert directory.map_root(state, salt, siblings) == map_.root
        assert directory.map_root(state_of(name, 4), salt, siblings) != map_.root


def test_a_log_that_stands_alone_has_as_many_siblings_as_one_among_many() -> None:
    assert len(DirectoryMap(STATES[:1], SEED).opening(TENANT)[2]) == DEPTH
    assert len(DirectoryMap(STATES, SEED).opening(TENANT)[2]) == DEPTH


def test_nothing_of_an_opening_is_seen_again_in_that_of_the_next_entry() -> None:
    first = DirectoryMap(STATES, SEED).opening(TENANT)
    second = DirectoryMap(STATES, hashlib.sha256(SEED).digest()).opening(TENANT)
    assert not {first[1], *first[2]} & {second[1], *second[2]}
    assert len(set(first[2])) == DEPTH


def test_a_log_that_is_not_there_has_no_opening() -> None:
    with pytest.raises(FormatError, match="not in the directory"):
        DirectoryMap(STATES, SEED).opening("riverside")


def test_one_log_stands_there_once() -> None:
    with pytest.raises(FormatError, match="two logs"):
        DirectoryMap([state_of(TENANT), state_of(TENANT, 4)], SEED)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"size": 4}, "another root"),
        ({"root": "0" * 64}, "another root"),
        ({"pairs_root": "1" * 64}, "another root"),
        ({"salt": "0" * 64}, "another root"),
        ({"tenant": "lakeside"}, "not of"),
        ({"record_salt": "0" * 64}, "commits to"),
        ({"siblings": ["0" * 64] * DEPTH}, "another root"),
        ({"siblings": ["0" * 64] * (DEPTH - 1)}, "siblings"),
        ({"siblings": "x"}, "siblings"),
        ({"size": -1}, "size"),
        ({"size": True}, "size"),
        ({"more": 1}, "exactly"),
        ({"v": 2}, "exactly"),
        ({"leaf": "{}"}, "leaf"),
        ({"proof": "x"}, "proof"),
    ],
)
def test_a_changed_opening_is_refused(change: dict[str, Any], told: str) -> None:
    it = Directory(STATES)
    good = it.open(TENANT)
    directory.verify_opening(good, it.trust, TENANT)
    with pytest.raises(VerificationError, match=told):
        directory.verify_opening({**good, **change}, it.trust, TENANT)


def test_an_entry_of_another_log_or_kind_is_none_of_the_directory() -> None:
    it = Directory(STATES)
    with pytest.raises(VerificationError, match="is of log"):
        directory.verify_opening(it.open(TENANT, origin=TENANT), it.trust, TENANT)
    other = Directory(STATES, kind="note")
    with pytest.raises(VerificationError, match="none of the directory"):
        directory.verify_opening(other.open(TENANT), other.trust, TENANT)
    with pytest.raises(VerificationError, match="no pinned log key"):
        directory.verify_opening(it.open(TENANT), other.trust, TENANT)


# --- in an archive ------------------------------------------------------------------------------------------------------


def whole_world() -> World:
    world = World()
    world.decide("allow", "dataset.read")
    world.attempt()
    world.decide("deny", "dataset.read")
    world.attempt(principal="hillside/hal")
    return world


def directory_of(world: World, size: int, **changes: Any) -> Directory:
    leaves = world.leaves[:size]
    state: dict[str, Any] = {
        "tenant": TENANT,
        "size": size,
        "root": merkle.root(leaf.hash() for leaf in leaves),
        "pairs_root": pairs.PairsMap.of(leaves).root(),
    }
    return Directory([LogState(**(state | changes)), *STATES[1:]])


def verify_in(world: World, it: Directory, *, size: int = 4, first: int = 0, proof: tuple[bytes, ...] = ()) -> bool:
    leaves = world.leaves[:size]
    data = directory.archive_file(it.open(TENANT), proof)
    opened, is_made_again = directory.verify_archive_file(
        data,
        it.trust,
        TENANT,
        first=first,
        end=size,
        size=size,
        root=merkle.root(leaf.hash() for leaf in leaves),
        leaves=leaves[first:],
    )
    assert opened.state.tenant == TENANT
    return is_made_again


def test_an_archive_has_the_log_that_the_directory_has() -> None:
    world = whole_world()
    assert verify_in(world, directory_of(world, 4))
    nodes: dict[tuple[int, int], bytes] = {}
    merkle.Frontier().append_many((leaf.hash() for leaf in world.leaves), lambda *n: nodes.update({n[:2]: n[2]}))

    def proof(shorter: int, longer: int) -> tuple[bytes, ...]:
        return tuple(merkle.consistency_proof(shorter, longer, lambda level, at: nodes[level, at]))

    assert verify_in(world, directory_of(world, 2), proof=proof(2, 4)), "the directory may be behind, with a proof"
    assert not verify_in(world, directory_of(world, 2), first=3, proof=proof(2, 4)), (
        "also behind the archive's first entry"
    )
    assert not verify_in(world, directory_of(world, 4), first=2), "pairs are made from the log's beginning"
    assert not verify_in(world, directory_of(world, 4), size=3, proof=proof(3, 4)), "or ahead, with a proof"


def test_a_forked_log_and_other_pairs_are_found_out() -> None:
    world, fork = whole_world(), whole_world()
    fork.leaves[1] = world.leaves[0]
    for size in (2, 4):
        with pytest.raises(VerificationError):
            verify_in(world, directory_of(fork, size))
    with pytest.raises(VerificationError, match="other pairs"):
        verify_in(world, directory_of(world, 4, pairs_root=pairs.PairsMap.of(world.leaves[:3]).root()))
    with pytest.raises(VerificationError):
        verify_in(world, directory_of(world, 4), size=3)
    with pytest.raises(VerificationError, match="too short"):
        verify_in(world, directory_of(world, 2), first=3)
    with pytest.raises(VerificationError, match="do not need"):
        verify_in(world, directory_of(world, 4), proof=(bytes(32),))


# --- pairs --------------------------------------------------------------------------------------------------------------


def test_pairs_tell_who_acted_on_whose_things() -> None:
    world = whole_world()
    found = pairs.PairsMap.of(world.leaves)
    assert [(pair.actor, pair.owner, pair.count) for pair in found.pairs()] == [
        ("hillside", TENANT, 1),
        ("lakeside", TENANT, 1),
        (TENANT, TENANT, 2),
    ]
    own = found.get(TENANT, TENANT)
    assert own is not None
    assert (own.first, own.last, dict(own.kinds)) == (0, 2, {"decision": 2})
    assert (own.first_ms, own.last_ms) == (world.leaves[0].time_ms, world.leaves[2].time_ms)
    assert pairs.Pair.from_dict(own.to_dict()) == own


def test_a_map_taken_up_where_it_was_left_has_the_same_root() -> None:
    world = whole_world()
    begun = pairs.PairsMap.of(world.leaves[:2])
    going_on = pairs.PairsMap(begun.size, begun.pairs())
    for leaf in world.leaves[2:]:
        going_on.add(leaf)
    assert going_on.root() == pairs.PairsMap.of(world.leaves).root()
    assert going_on.root() != begun.root()


def test_presence_and_absence_of_a_pair_are_proved() -> None:
    found = pairs.PairsMap.of(whole_world().leaves)
    root = found.root()
    for actor in ("lakeside", "riverside", "nobody-home", TENANT):
        pair, proof = found.get(actor, TENANT), found.prove(actor, TENANT)
        pairs.verify_pair(root, actor, TENANT, pair, proof)
        if pair is not None:
            with pytest.raises(VerificationError):
                pairs.verify_pair(root, actor, TENANT, None, proof)
            with pytest.raises(FormatError):
                pairs.verify_pair(root, "riverside", TENANT, pair, proof)
    with pytest.raises(VerificationError):
        pairs.verify_pair(root, "riverside", TENANT, None, MapProof())


@pytest.mark.parametrize(
    "change",
    [{"v": 2}, {"count": 2}, {"kinds": {"attempt": 0}}, {"first": -1}, {"actor": "~"}, {"more": 1}, {"kinds": []}],
)
def test_what_is_not_in_the_one_form_is_no_pair(change: dict[str, Any]) -> None:
    good = pairs.Pair("lakeside", TENANT, 1, 1, 1, 5, 5, {"attempt": 1}).to_dict()
    assert canonical.dumps(pairs.Pair.from_dict(good).to_dict()) == canonical.dumps(good)
    with pytest.raises(FormatError):
        pairs.Pair.from_dict({**good, **change})
