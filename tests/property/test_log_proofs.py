"""The stored log against a naive tree: whatever the sizes of the groups, every proof and root is the naive one."""

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from databases import KINDS, Database
from licet_attestations.merkle import verify_consistency, verify_inclusion
from licet_engine.log import store
from licet_engine.log.fsck import verify_logs
from licet_engine.log.sequencer import Sequencer
from licet_engine.log.submission import NewEntry, Submission
from licet_engine.store import db

TENANTS = ("northbank", "lakeside")


def naive_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, word by word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    return hashlib.sha256(b"\x01" + naive_root(leaves[:half]) + naive_root(leaves[half:])).digest()


def naive_path(index: int, leaves: list[bytes]) -> list[bytes]:
    """RFC 6962 section 2.1.1, word by word."""
    if len(leaves) <= 1:
        return []
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    if index < half:
        return [*naive_path(index, leaves[:half]), naive_root(leaves[half:])]
    return [*naive_path(index - half, leaves[half:]), naive_root(leaves[:half])]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    groups=st.lists(
        st.lists(st.tuples(st.sampled_from(TENANTS), st.integers(1, 200)), min_size=1, max_size=3), max_size=6
    ),
    data=st.data(),
)
def test_the_stored_log_is_the_naive_tree(
    make_database: Callable[..., AbstractContextManager[Database]],
    kind: str,
    groups: list[list[tuple[str, int]]],
    data: st.DataObject,
) -> None:
    # One for each example; a fixture's would be the same for all.
    with make_database(kind) as database:
        engine = database.open()
        try:
            compare(engine, groups, data)
        finally:
            # Hypothesis ends an example by an exception wherever it draws.
            engine.dispose()


def compare(engine: Engine, groups: list[list[tuple[str, int]]], data: st.DataObject) -> None:
    leaves: dict[str, list[bytes]] = {tenant_id: [] for tenant_id in TENANTS}
    sequencer = Sequencer(engine)
    for group in groups:
        entries = [NewEntry(t, "decision", t, t, b"record") for t, count in group for _ in range(count)]
        for placed in sequencer.append(Submission(entries)).placed:
            assert placed.index == len(leaves[placed.tenant_id])
            leaves[placed.tenant_id].append(placed.header)
    sequencer.close()
    verify_logs(engine)
    with db.read_transaction(engine) as connection:
        for tenant_id, headers in leaves.items():
            head = store.read_head(connection, tenant_id)
            assert (head.size, head.root) == (len(headers), naive_root(headers))
            size = data.draw(st.integers(0, len(headers)))
            root = naive_root(headers[:size])
            assert store.root_at(connection, tenant_id, size) == root
            if size == 0:
                continue
            index = data.draw(st.integers(0, size - 1))
            path = store.inclusion_proof(connection, tenant_id, index, size)
            assert path == naive_path(index, headers[:size])
            entry = store.read_entry(connection, tenant_id, index)
            assert entry.header.encode() == headers[index]
            verify_inclusion(entry.hash, index, size, path, root)
            proof = store.consistency_proof(connection, tenant_id, size, len(headers))
            verify_consistency(size, root, len(headers), head.root, proof)
