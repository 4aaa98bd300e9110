"""Cosignatures of stored checkpoints: who is asked what, what counts, and what waits while no quorum has seen a log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, delete, select

from databases import Database
from licet_adapters.conformance import World
from licet_attestations import tlogpolicy
from licet_attestations.cosignature import cosign
from licet_attestations.keys import ED25519, PrivateKey
from licet_attestations.tlogpolicy import Policy
from licet_attestations.vkey import LOG_KIND, VerifierKey
from licet_attestations.witness import Request, Witness
from licet_engine.domain.errors import ConfigurationError, InvalidInput, Unavailable
from licet_engine.log import store
from licet_engine.log.notary import Notary
from licet_engine.log.sequencer import Sequencer
from licet_engine.log.submission import NewEntry, Submission
from licet_engine.log.witnesses import Witnesses, load_policy
from licet_engine.store import db

TENANT = "northbank"
_LONG_S = 3600


class Installation:
    """A database with a log, its signer, and real witnesses that are asked in this process."""

    def __init__(self, engine: Engine, folder: Path, count: int) -> None:
        self.engine = engine
        self.world = World(folder / "world")
        self.folder = folder
        self.notary = Notary(engine, self.world.signer)
        self._sequencer = Sequencer(engine)
        trust = self.world.keystore.trust_root
        self.trust_root = trust
        self.logs = [
            VerifierKey(trust.origin(name), LOG_KIND, key) for name in (TENANT, "lakeside") for key in trust.keys("log")
        ]
        self.witnesses: dict[str, Witness] = {}
        self.keys: dict[str, VerifierKey] = {}
        for number in range(count):
            self.keys[f"W{number}"] = Witness.create(folder / f"w{number}", f"w{number}.example")
            self.begin(f"W{number}")
        self.answers: list[tuple[str, str]] = []

    def begin(self, name: str) -> None:
        folder = self.folder / name.lower()
        self.witnesses[name] = Witness(folder, self.logs, lambda: int(time.time()))

    def policy(self, quorum: str) -> Policy:
        lines = [f"witness {name} {key.to_text()} https://{name}.example" for name, key in self.keys.items()]
        return Policy.from_bytes("\n".join([*lines, quorum, ""]).encode())

    def asking(self, quorum: str, *, max_lag_s: int = _LONG_S, round_s: float = 60.0) -> Witnesses:
        def told(witness: str, outcome: str) -> None:
            self.answers.append((witness, outcome))

        return Witnesses(
            self.engine,
            self.notary,
            self.trust_root,
            self.policy(quorum),
            max_lag_s=max_lag_s,
            round_s=round_s,
            told=told,
        )

    def grow(self, tenant: str = TENANT, count: int = 1) -> int:
        self._sequencer.append(Submission([NewEntry(tenant, "decision", tenant, tenant, b'{"v":1}')] * count))
        return self.notary.checkpoint(tenant)[0]

    def carry(self, asking: Witnesses, name: str) -> list[int]:
        """Do what the worker does for one witness; return the statuses."""
        statuses = []
        for item in asking.asks(name, 32):
            proof = tuple(bytes.fromhex(part) for part in item["proof"])
            reply = self.witnesses[name].add_checkpoint(Request(item["old_size"], proof, item["note"]).to_bytes())
            outcome: dict[str, Any] = {"fault": f"status {reply.status}", "fork": reply.status == 422}
            if reply.status == 200:
                outcome = {"lines": reply.body}
            elif reply.status == 409:
                outcome = {"size": int(reply.body)}
            asking.told(name, item["tenant"], item["size"], outcome)
            statuses.append(reply.status)
        return statuses

    def close(self) -> None:
        for witness in self.witnesses.values():
            witness.close()
        self._sequencer.close()
        self.engine.dispose()


@pytest.fixture
def place(prepared: Database, tmp_path: Path) -> Iterator[Installation]:
    (tmp_path / "world").mkdir(mode=0o700)
    made = Installation(prepared.open(), tmp_path, 3)
    yield made
    made.close()


_TWO = "group G 2 W0 W1 W2\nquorum G"


def test_a_checkpoint_that_two_of_three_cosigned_covers_the_log(place: Installation) -> None:
    asking = place.asking(_TWO)
    size = place.grow(count=5)
    assert asking.cosigned(TENANT) is None
    assert place.carry(asking, "W0") == [200]
    assert asking.cosigned(TENANT) is None
    assert place.carry(asking, "W2") == [200]
    found = asking.cosigned(TENANT)
    assert found is not None
    assert found[0] == size
    verified = tlogpolicy.verify(
        found[1], place.policy(_TWO), place.trust_root.origin(TENANT), place.trust_root.keys("log")
    )
    assert set(verified.cosignatures) == {"W0", "W2"}
    assert asking.lag_ms(TENANT) == 0
    assert place.carry(asking, "W0") == []


def test_all_are_asked_about_one_checkpoint_until_it_has_its_quorum(place: Installation) -> None:
    asking = place.asking(_TWO)
    first = place.grow(count=3)
    assert place.carry(asking, "W0") == [200]
    place.grow(count=300)
    # The log went on; the second is still asked about what the first cosigned.
    (item,) = asking.asks("W1", 32)
    assert item["size"] == first
    asking.told("W1", TENANT, first, {"fault": "", "away": True})
    assert place.carry(asking, "W2") == [200]
    found = asking.cosigned(TENANT)
    assert found is not None
    assert found[0] == first
    for name in ("W0", "W2"):
        assert place.carry(asking, name) == [200]
    found = asking.cosigned(TENANT)
    assert found is not None
    assert found[0] == 303


def test_a_round_without_a_quorum_gives_way_to_a_newer_checkpoint(place: Installation) -> None:
    asking = place.asking(_TWO, round_s=0.0)
    place.grow()
    assert place.carry(asking, "W0") == [200]
    place.grow()
    assert [place.carry(asking, name) for name in ("W0", "W1")] == [[200], [200]]
    found = asking.cosigned(TENANT)
    assert found is not None
    assert found[0] == 2


def test_what_needs_a_quorum_waits_while_there_is_none_and_goes_on_when_there_is(place: Installation) -> None:
    asking = place.asking(_TWO, max_lag_s=0)
    place.grow()
    assert place.carry(asking, "W0") == [200]
    time.sleep(0.01)
    with pytest.raises(Unavailable, match=r"a deed waits: .*2 of W0, W1, W2") as refused:
        asking.require(TENANT, "a deed")
    assert (refused.value.status, refused.value.code, asking.is_behind()) == (503, "unavailable", True)
    with pytest.raises(Unavailable, match="an export waits"):
        asking.for_evidence(TENANT, 0.01)
    assert place.carry(asking, "W1") == [200]
    asking.require(TENANT, "a deed")
    assert asking.for_evidence(TENANT, 0.01)[0] == 1
    assert asking.is_behind() is False


def test_within_the_bound_nothing_waits(place: Installation) -> None:
    asking = place.asking(_TWO)
    place.grow()
    asking.require(TENANT, "a deed")
    with pytest.raises(Unavailable, match="no quorum"):  # An archive bears cosignatures, or is not made.
        asking.for_evidence(TENANT, 0.01)


def test_without_a_required_quorum_nothing_waits_and_cosignatures_are_added(place: Installation) -> None:
    asking = place.asking("quorum none", max_lag_s=0)
    place.grow()
    time.sleep(0.01)
    asking.require(TENANT, "a deed")
    assert place.carry(asking, "W0") == [200]
    assert "w0.example" in asking.for_evidence(TENANT, 0.01)[1]


def test_a_restarted_api_knows_from_the_database(place: Installation) -> None:
    asking = place.asking(_TWO)
    place.grow(count=5)
    assert [place.carry(asking, name) for name in ("W0", "W1")] == [[200], [200]]
    again = place.asking(_TWO, max_lag_s=0)
    again.require(TENANT, "a deed")
    assert again.worst_lag_s() == 0
    place.grow(count=5)
    # It asks each witness from where that one stands.
    assert [place.carry(again, name) for name in ("W0", "W1", "W2")] == [[200], [200], [200]]


def test_a_witness_that_stands_elsewhere_tells_where_and_is_asked_again(place: Installation) -> None:
    asking = place.asking(_TWO)
    place.grow(count=5)
    place.carry(asking, "W0")
    with db.write_transaction(place.engine, TENANT) as connection:
        connection.execute(delete(store.COSIGNATURES))
    again = place.asking(_TWO)
    place.grow(count=5)
    assert place.carry(again, "W0") == [409]
    assert place.carry(again, "W0") == [200]


def test_a_lying_witness_does_not_count(place: Installation) -> None:
    asking = place.asking(_TWO)
    size = place.grow(count=5)
    _, note = place.notary.checkpoint(TENANT)
    other = PrivateKey.generate(ED25519)
    assert place.carry(asking, "W0") == [200]
    older = place.notary.checkpoint(TENANT)[1].replace("\n5\n", "\n4\n")
    with db.read_transaction(place.engine) as connection:
        kept = store.read_cosignatures(connection, TENANT, size)
    for lines in (
        cosign(note, "w1.example", other, int(time.time())),
        cosign(note, "w0.example", other, int(time.time())),
        next(iter(kept.values())),  # Another's, as its own.
        cosign(older, "w1.example", other, int(time.time())),
        "nonsense",
        "",
        "— w1.example AAAA\n",
    ):
        asking.told("W1", TENANT, size, {"lines": lines})
        assert asking.cosigned(TENANT) is None
    assert place.answers[1:] == [("W1", "refused")] * 7
    assert "W1" in asking.faults()


def test_a_cosignature_of_another_time_does_not_count(place: Installation) -> None:
    asking = place.asking(_TWO)
    place.grow()
    place.witnesses["W0"].close()
    place.witnesses["W0"] = Witness(place.folder / "w0", place.logs, lambda: int(time.time()) - 3600)
    assert place.carry(asking, "W0") == [200]
    assert place.answers == [("W0", "refused")]
    assert "clock" in asking.faults()["W0"]


def test_what_is_stored_is_verified_before_anything_rests_on_it(place: Installation) -> None:
    asking = place.asking(_TWO)
    size = place.grow(count=5)
    place.carry(asking, "W0")
    forged = cosign(place.notary.checkpoint(TENANT)[1], "w1.example", PrivateKey.generate(ED25519), 1)
    with db.write_transaction(place.engine, TENANT) as connection:
        keyid = place.keys["W1"].key.keyid
        store.save_cosignature(connection, TENANT, size, keyid=keyid, time_s=1, line=forged)
    assert place.asking(_TWO).cosigned(TENANT) is None


def test_a_log_that_was_put_back_is_an_alarm(place: Installation) -> None:
    asking = place.asking(_TWO)
    place.grow(count=2)
    place.carry(asking, "W0")
    # The witness saw more: as after the database was restored from a backup, with a signer that was, too.
    longer = place.asking(_TWO)
    longer.told("W0", TENANT, 2, {"size": 9})
    assert longer.asks("W0", 32) == []
    assert longer.has_alarm()
    assert "put back" in longer.faults()["W0"]


def test_a_witness_that_says_that_a_log_forked_is_an_alarm(place: Installation) -> None:
    asking = place.asking(_TWO)
    place.grow(count=2)
    asking.told("W1", TENANT, 2, {"fault": "status 422", "fork": True})
    assert asking.has_alarm()
    assert asking.faults() == {"W1": "northbank: it says that the log does not extend what it saw"}


def test_a_witness_that_is_away_is_left_alone_for_a_while(place: Installation) -> None:
    asking = place.asking(_TWO)
    place.grow()
    place.grow("lakeside")
    asked = asking.asks("W0", 32)
    assert {item["tenant"] for item in asked} == {TENANT, "lakeside"}
    assert asking.asks("W0", 32) == []  # Claimed.
    asking.told("W0", TENANT, 1, {"fault": "no answer", "away": True})
    assert asking.asks("W0", 32) == []  # Resting.
    assert asking.faults() == {"W0": "no answer"}
    time.sleep(1.1)
    assert {item["tenant"] for item in asking.asks("W0", 32)} == {TENANT, "lakeside"}


def test_a_policy_without_urls_or_a_policy_that_is_none_stops_the_start(place: Installation, tmp_path: Path) -> None:
    path = tmp_path / "policy"
    for text, told in (
        (f"witness W {place.keys['W0'].to_text()}\nquorum W\n", "no URL"),
        ("quorum nobody\n", "line 1"),
        ("", "quorum"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigurationError, match=told):
            load_policy(str(path))
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_policy(str(tmp_path / "none"))
    assert load_policy("") is None
    with pytest.raises(InvalidInput):
        place.asking(_TWO).asks("W9", 1)


def test_a_cosignature_is_kept_once(place: Installation) -> None:
    asking = place.asking(_TWO)
    size = place.grow()
    (item,) = asking.asks("W0", 1)
    reply = place.witnesses["W0"].add_checkpoint(Request(0, (), item["note"]).to_bytes())
    for _ in range(2):
        asking.told("W0", TENANT, size, {"lines": reply.body})
    with db.read_transaction(place.engine) as connection:
        assert len(connection.execute(select(store.COSIGNATURES)).all()) == 1
