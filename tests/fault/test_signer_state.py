"""The signer's last checkpoint under failing writes: nothing is ever signed that a later start does not know.

The storage is a real one in memory with a page cache and a disk. A write may fail without a trace, fail after it was
persisted, or fail with the new value only in the cache (which a power cut then loses). After every step the rule is checked
over all that was ever signed, and after power cuts again.
"""

from __future__ import annotations

import importlib
import secrets
from typing import TYPE_CHECKING, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from licet_attestations import merkle
from licet_attestations.errors import SignerRefused, SignerUnavailable
from licet_attestations.signer.state import CheckpointState, FileStorage

if TYPE_CHECKING:
    from pathlib import Path

Fault = Literal["none", "lost", "persisted", "cached"]
FAULTS: list[Fault] = ["none", "lost", "persisted", "cached"]


class FaultyStorage:
    """A disk and its cache; the next write fails as ``fault`` says."""

    def __init__(self) -> None:
        self.disk: dict[str, bytes] = {}
        self.cache: dict[str, bytes] = {}
        self.fault: Fault = "none"

    def names(self) -> list[str]:
        return list(self.cache)

    def read(self, name: str) -> bytes | None:
        return self.cache.get(name)

    def write(self, name: str, data: bytes) -> None:
        fault, self.fault = self.fault, "none"
        if fault in ("none", "persisted", "cached"):
            self.cache[name] = data
        if fault in ("none", "persisted"):
            self.disk[name] = data
        if fault != "none":
            raise OSError(5, "Input/output error")

    def cut_power(self) -> None:
        self.cache = dict(self.disk)


class Tree:
    """A log that can be grown, and forked at any size."""

    def __init__(self, leaves: list[bytes] | None = None) -> None:
        self.leaves = leaves or []

    def grown(self, count: int) -> Tree:
        return Tree(self.leaves + [secrets.token_bytes(32) for _ in range(count)])

    def cut(self, size: int) -> Tree:
        return Tree(self.leaves[:size])

    def root(self) -> bytes:
        return merkle.root(self.leaves)

    def proof_from(self, size: int) -> list[bytes]:
        if size in (0, len(self.leaves)):
            return []
        return merkle.consistency_proof(
            size, len(self.leaves), lambda level, i: merkle.root(self.leaves[i << level : (i + 1) << level])
        )


def advance(state: CheckpointState, tree: Tree) -> None:
    last = state.last("northbank")
    proof = tree.proof_from(min(last.size, len(tree.leaves)) if last else 0)
    state.advance("northbank", len(tree.leaves), tree.root(), proof, 1)


def assert_signed_is_one_log(signed: list[Tree]) -> None:
    longest = max(signed, key=lambda tree: len(tree.leaves))
    for tree in signed:
        assert longest.leaves[: len(tree.leaves)] == tree.leaves, "two signed checkpoints are of different logs"
    sizes = [len(tree.leaves) for tree in signed]
    assert sizes == sorted(sizes), "a smaller log was signed after a larger one"


@pytest.mark.parametrize("fault", FAULTS[1:])
def test_a_failed_write_signs_nothing_and_the_same_head_can_be_asked_for_again(fault: Fault) -> None:
    storage, tree = FaultyStorage(), Tree().grown(3)
    state = CheckpointState(storage)
    advance(state, tree)
    grown = tree.grown(2)
    storage.fault = fault
    with pytest.raises(SignerUnavailable):
        advance(state, grown)
    advance(state, grown)
    storage.cut_power()
    with pytest.raises(SignerRefused, match="had 5 entries"):
        advance(CheckpointState(storage), tree)


def test_a_head_that_only_the_cache_knows_is_written_again_before_it_is_signed() -> None:
    storage, tree = FaultyStorage(), Tree().grown(3)
    storage.fault = "cached"
    with pytest.raises(SignerUnavailable):
        advance(CheckpointState(storage), tree)
    assert not storage.disk
    advance(CheckpointState(storage), tree)  # A new process reads the cache, and cannot know.
    assert storage.disk["northbank"] == storage.cache["northbank"]


def test_after_a_failed_write_the_stored_head_binds_though_it_was_never_signed() -> None:
    storage, tree = FaultyStorage(), Tree().grown(3)
    state = CheckpointState(storage)
    advance(state, tree)
    storage.fault = "persisted"
    with pytest.raises(SignerUnavailable):
        advance(state, tree.grown(2))
    with pytest.raises(SignerRefused) as refused:
        state.advance("northbank", 5, tree.grown(2).root(), tree.grown(2).proof_from(3), 1)
    assert refused.value.code == "signer.fork"


def test_a_damaged_state_stops_its_log_and_is_never_empty() -> None:
    storage = FaultyStorage()
    storage.cache["northbank"] = b'{"v":1,"size":3'
    with pytest.raises(SignerUnavailable) as stopped:
        CheckpointState(storage)
    assert stopped.value.code == "signer.state"


@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["grow", "same", "fork", "shrink"]),
            st.integers(1, 5),
            st.sampled_from(FAULTS),
            st.sampled_from(["go on", "restart", "power cut"]),
        ),
        max_size=20,
    )
)
def test_whatever_fails_all_that_was_ever_signed_is_one_growing_log(
    steps: list[tuple[str, int, Fault, str]],
) -> None:
    storage, tree = FaultyStorage(), Tree().grown(1)
    state = CheckpointState(storage)
    advance(state, tree)
    signed = [tree]
    for kind, count, fault, then in steps:
        size = len(tree.leaves)
        asked = {
            "grow": lambda tree=tree, count=count: tree.grown(count),
            "same": lambda tree=tree: tree,
            "fork": lambda tree=tree, count=count, size=size: tree.cut(size - 1).grown(1 + count),
            "shrink": lambda tree=tree, count=count, size=size: tree.cut(max(0, size - count)),
        }[kind]()
        storage.fault = fault
        try:
            advance(state, asked)
        except (SignerRefused, SignerUnavailable):
            pass
        else:
            assert kind in ("grow", "same") or asked.leaves[: len(signed[-1].leaves)] == signed[-1].leaves
            signed.append(asked)
            tree = asked
        storage.fault = "none"
        if then == "power cut":
            storage.cut_power()
        if then != "go on":
            state = CheckpointState(storage)
        last = state.last("northbank")
        assert last is not None
        assert last.size >= len(signed[-1].leaves), "the state has forgotten what was signed"
        assert_signed_is_one_log(signed)


@pytest.mark.parametrize("call", ["os.fsync", "os.open", "pathlib.Path.replace"])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_file_holds_the_old_or_the_new_head_whichever_system_call_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, nth: int
) -> None:
    storage = FileStorage(tmp_path / "state")
    state, tree = CheckpointState(storage), Tree().grown(3)
    advance(state, tree)
    grown = tree.grown(2)
    where, _, name = call.rpartition(".")
    owner = importlib.import_module(where) if where == "os" else importlib.import_module("pathlib").Path
    real, calls = getattr(owner, name), 0

    def failing(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise OSError(28, "No space left on device")
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing)
        failed = False
        try:
            advance(state, grown)
        except SignerUnavailable:
            failed = True
    assert failed == (calls >= nth)
    fresh = CheckpointState(FileStorage(tmp_path / "state"))
    last = fresh.last("northbank")
    assert last is not None
    assert last.size in (3, 5)
    assert last.size == 5 or failed
    advance(fresh, grown)
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["northbank.json"]
