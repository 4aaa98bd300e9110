"""Whose policies are proved next, where some cannot be."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine
from sqlmodel import SQLModel

from licet_attestations.trustroot import TrustRoot
from licet_engine.domain.errors import InvalidInput
from licet_engine.log.sequencer import Sequencer
from licet_engine.store import tables
from licet_engine.store.db import open_engine, tenant_session
from licet_engine.unproved import MAX_PUT_OFF, Unproved

TENANTS = ("aaa", "bbb", "ccc")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = open_engine(tmp_path / "store.db")
    SQLModel.metadata.create_all(made)
    for tenant in TENANTS:
        for number in range(2):
            add(made, tenant, f"{tenant}-{number}".encode())
    yield made
    made.dispose()


@pytest.fixture
def unproved(engine: Engine) -> Iterator[Unproved]:
    sequencer = Sequencer(engine)
    yield Unproved(engine, sequencer, TrustRoot("test", (), "licet/log"))
    sequencer.close()


def add(engine: Engine, tenant: str, body: bytes, **changes: object) -> str:
    digest_hex = hashlib.sha256(body).hexdigest()
    row = {"digest_hex": digest_hex, "author": "sam", "state": "active", "body": body, "activated_at_ms": 2}
    with tenant_session(engine, tenant, write=True) as session:
        session.add(tables.PolicyBundle(tenant_id=tenant, created_at_ms=1, **(row | changes)))
        there = session.get(tables.Tenant, tenant)
        if there is None:
            there = tables.Tenant(tenant_id=tenant, region="us", suspended=False, created_at_ms=1)
        there.bundle_digest_hex = digest_hex
        session.add(there)
    return digest_hex


def test_tenants_take_turns_and_all_come(unproved: Unproved) -> None:
    put_off: list[str] = []
    turns = []
    while due := unproved.next(put_off):
        assert hashlib.sha256(due["body"].encode()).hexdigest() == due["bundle"]
        turns.append(due["tenant"])
        put_off.append(f"{due['tenant']}/{due['bundle']}")
    assert turns == ["aaa", "bbb", "ccc", "aaa", "bbb", "ccc"]


def test_what_is_tried_again_and_again_keeps_nobody(unproved: Unproved) -> None:
    assert [unproved.next([])["tenant"] for _ in range(5)] == ["aaa", "bbb", "ccc", "aaa", "bbb"]


def test_a_digest_is_passed_over_in_every_tenant_and_a_tenants_in_it_alone(engine: Engine, unproved: Unproved) -> None:
    same = {tenant: add(engine, tenant, b"same") for tenant in TENANTS}["aaa"]
    others = [hashlib.sha256(f"{tenant}-{n}".encode()).hexdigest() for tenant in TENANTS for n in range(2)]
    assert {unproved.next(others)["tenant"] for _ in range(3)} == set(TENANTS)
    assert {unproved.next([*others, f"bbb/{same}"])["tenant"] for _ in range(3)} == {"aaa", "ccc"}
    assert unproved.next([*others, same]) == {}


def test_one_that_comes_into_force_later_is_found_and_one_that_never_was_is_not(
    engine: Engine, unproved: Unproved
) -> None:
    with tenant_session(engine, "aaa", write=True) as session:
        for number in range(2):
            digest_hex = hashlib.sha256(f"aaa-{number}".encode()).hexdigest()
            row = session.get(tables.PolicyBundle, ("aaa", digest_hex))
            assert row is not None
            row.attestation_hex = "ab" * 32
            session.add(row)
    seen = {unproved.next([])["tenant"] for _ in range(6)}
    assert seen == {"bbb", "ccc"}
    add(engine, "aaa", b"published", activated_at_ms=None, state="published")
    assert {unproved.next([])["tenant"] for _ in range(6)} == seen
    later = add(engine, "aaa", b"later")
    assert later in {unproved.next([])["bundle"] for _ in range(6)}


@pytest.mark.parametrize("put_off", [["ab" * 32] * (MAX_PUT_OFF + 1), [1], [None]])
def test_what_is_passed_over_is_bounded_and_named(unproved: Unproved, put_off: list[str]) -> None:
    with pytest.raises(InvalidInput, match=f"at most {MAX_PUT_OFF} bundles"):
        unproved.next(put_off)
