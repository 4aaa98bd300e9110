"""What becomes of policies that cannot be proved, signed or logged; through a real door, with real examinations."""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from licet_attestations import canonical
from licet_attestations.errors import SignerUnavailable
from licet_attestations.rpc import RpcServer
from licet_attestations.statement import Statement
from licet_engine.lifecycle.deed import Door
from licet_engine.policy_prover import PolicyProver
from licet_engine.settings import Settings, load_settings
from licet_policies import compose

GOOD = canonical.dumps(compose())


@dataclass
class Api:
    """Hands out what is due, in turn, and keeps what it is told."""

    due: list[tuple[str, bytes]]
    asked: list[list[str]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def next(self, put_off: list[str]) -> dict[str, str]:
        self.asked.append(put_off)
        for tenant, body in self.due:
            digest_hex = hashlib.sha256(body).hexdigest()
            if not {digest_hex, f"{tenant}/{digest_hex}"} & set(put_off):
                return {"tenant": tenant, "bundle": digest_hex, "body": body.decode()}
        return {}

    def end(self, envelope: str) -> dict[str, str]:
        self.told.append(envelope)
        tenant = Statement.from_bytes(envelope.encode()).predicate["tenant"]
        self.due = [each for each in self.due if each[0] != tenant]
        return {"digest": hashlib.sha256(envelope.encode()).hexdigest()}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    found = load_settings({}, data=tmp_path / "d", prove_every_s=1, examination_s=30)
    found.worker_data.mkdir(parents=True)
    return found


@pytest.fixture
def api(tmp_path: Path) -> Iterator[tuple[Api, Door]]:
    kept = Api([])
    methods = {"unproved_next": lambda p: kept.next(p["put_off"]), "unproved_end": lambda p: kept.end(p["envelope"])}
    server = RpcServer(tmp_path / "api.sock", methods, {os.geteuid()})
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield kept, Door(tmp_path / "api.sock")
    server.close()
    thread.join(10)


def unsigned(_tenant: str, statement: bytes) -> bytes:
    return statement


def turns(prover: PolicyProver) -> int:
    """How many turns there are until nothing is due."""
    count = 0
    while prover.turn():
        count += 1
        assert count < 20, "it goes round and round"
    return count


def test_what_is_proved_is_told_of_the_tenant_and_the_bundle(settings: Settings, api: tuple[Api, Door]) -> None:
    kept, door = api
    kept.due = [("aaa", GOOD), ("bbb", GOOD)]
    assert turns(PolicyProver(settings, door, unsigned)) == 2
    claims = [Statement.from_bytes(told.encode()) for told in kept.told]
    assert [claim.predicate["tenant"] for claim in claims] == ["aaa", "bbb"]
    assert {claim.predicate["result"] for claim in claims} == {"PASSED"}
    assert {claim.subject[0].sha256_hex for claim in claims} == {hashlib.sha256(GOOD).hexdigest()}
    assert sorted(path.name for path in settings.worker_data.iterdir()) == ["proving.lock"]


@pytest.mark.parametrize("body", [b"{}", b"no bundle", b'{"policies": []}'])
def test_what_cannot_be_told_is_not_signed_and_keeps_nobody(
    settings: Settings, api: tuple[Api, Door], body: bytes
) -> None:
    kept, door = api
    kept.due = [("aaa", body), ("bbb", GOOD), ("ccc", body)]
    assert turns(PolicyProver(settings, door, unsigned)) == 2
    (told,) = kept.told
    assert Statement.from_bytes(told.encode()).predicate["tenant"] == "bbb"
    # The same bytes are tried for nobody else either, for a while.
    assert kept.asked[-1] == [hashlib.sha256(body).hexdigest()]


def test_one_whose_statement_is_not_signed_keeps_nobody(settings: Settings, api: tuple[Api, Door]) -> None:
    kept, door = api
    kept.due = [("aaa", GOOD), ("bbb", GOOD)]

    def refuses_one(tenant: str, statement: bytes) -> bytes:
        if tenant == "aaa":
            raise SignerUnavailable("it refuses")
        return statement

    assert turns(PolicyProver(settings, door, refuses_one)) == 2
    assert [Statement.from_bytes(told.encode()).predicate["tenant"] for told in kept.told] == ["bbb"]
    assert kept.asked[-1] == [f"aaa/{hashlib.sha256(GOOD).hexdigest()}"]


def test_where_another_slot_is_at_it_nothing_is_asked_for(settings: Settings, api: tuple[Api, Door]) -> None:
    kept, door = api
    kept.due = [("aaa", GOOD)]
    held = os.open(settings.worker_data / "proving.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert not PolicyProver(settings, door, unsigned).turn()
    finally:
        os.close(held)
    assert kept.asked == []


def test_what_a_killed_one_left_is_removed(settings: Settings, api: tuple[Api, Door]) -> None:
    kept, door = api
    kept.due = [("aaa", GOOD)]
    (settings.worker_data / "proving").mkdir()
    (settings.worker_data / "proving" / "bundle.json").write_bytes(b"half")
    assert turns(PolicyProver(settings, door, unsigned)) == 1
    assert len(kept.told) == 1


@pytest.mark.parametrize(("every_s", "asks"), [(0, 0), (1, 1)])
def test_it_looks_by_itself_unless_it_is_never_to(
    tmp_path: Path, api: tuple[Api, Door], every_s: int, asks: int
) -> None:
    kept, door = api
    settings = load_settings({}, data=tmp_path / "d", prove_every_s=every_s)
    settings.worker_data.mkdir(parents=True)
    PolicyProver(settings, door, unsigned).start()
    came = threading.Event()
    came.wait(1.5)
    assert bool(kept.asked) == bool(asks)
