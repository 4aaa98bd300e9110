"""What a log names and who signed it: each way to tamper with it is found, and told."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from databases import Database
from licet_adapters.conformance import World
from licet_attestations import canonical, dsse
from licet_attestations.cosignature import cosign
from licet_attestations.keys import ED25519, PrivateKey
from licet_attestations.statement import ISOLATION, Statement, Subject
from licet_attestations.tlogpolicy import Policy
from licet_attestations.vkey import COSIGNER_KIND, VerifierKey
from licet_engine.log import store
from licet_engine.log.fsck import fsck
from licet_engine.log.fsck_named import Against
from licet_engine.log.notary import Notary
from licet_engine.log.sequencer import Sequencer
from licet_engine.log.submission import Insert, NewEntry, Submission
from licet_engine.store import db
from licet_engine.store.postgres import is_postgres
from licet_engine.store.tables import Attestation, Decision, FactBlob, PolicyBundle

TENANT = "northbank"
_FACT, _BUNDLE = b'{"a":1}', b'{"b":2}'


def _hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Place:
    """A log with a decision, its fact and bundle, an attestation, a checkpoint and a cosignature."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine = engine
        self.world = World(folder)
        self.key = PrivateKey.generate(ED25519)
        vkey = VerifierKey("w.example", COSIGNER_KIND, self.key.public)
        self.policy = Policy.from_bytes(f"witness W {vkey.to_text()}\nquorum W\n".encode())
        sequencer = Sequencer(engine)
        decided = {"id": "d1", "facts": [_hex(_FACT)], "bundle": _hex(_BUNDLE)}
        T = {"tenant_id": TENANT}  # noqa: N806  # Each row's.
        row = {**T, "id": "d1", "action": "a", "principal": "p", "resource": "r", "allowed": True, "at_ms": 1}
        bundle = {
            **T,
            "digest_hex": _hex(_BUNDLE),
            "author": "a",
            "state": "active",
            "body": _BUNDLE,
            "created_at_ms": 1,
        }
        sequencer.append(
            Submission(
                [NewEntry(TENANT, "decision", TENANT, TENANT, canonical.dumps(decided))],
                companions=[
                    Insert(FactBlob, [{**T, "digest_hex": _hex(_FACT), "body": _FACT}]),
                    Insert(PolicyBundle, [bundle]),
                    Insert(Decision, [row], placed={"leaf_index": (0, "index")}),
                ],
            )
        )
        statement = Statement((Subject("x", "00" * 32),), ISOLATION, {"tenant": TENANT}).to_bytes()
        envelope = self.world.signer.attest(TENANT, statement).decode()
        digest_hex = _hex(dsse.Envelope.from_json(envelope.encode()).payload)
        attested = {**T, "digest_hex": digest_hex, "predicate_type": ISOLATION, "subject": "x", "envelope": envelope}
        sequencer.append(
            Submission(
                [NewEntry(TENANT, "attestation", TENANT, TENANT, canonical.dumps({"digest": digest_hex}))],
                companions=[Insert(Attestation, [{**attested, "at_ms": 1}], placed={"leaf_index": (0, "index")})],
            )
        )
        sequencer.close()
        self.size, self.note = Notary(engine, self.world.signer).checkpoint(TENANT)
        line = cosign(self.note, "w.example", self.key, int(time.time()))
        with db.write_transaction(engine, TENANT) as connection:
            store.save_cosignature(
                connection, TENANT, self.size, keyid=self.key.public.keyid, time_s=int(time.time()), line=line
            )

    def problems(self) -> list[str]:
        against = Against(
            trust_root=self.world.keystore.trust_root,
            policy=self.policy,
            last_signed=self.world.signer.last_checkpoint,
        )
        (report,) = fsck(self.engine, [TENANT], against=against)
        return report.problems

    def change(self, statement: str, **values: object) -> None:
        with db.write_transaction(self.engine, TENANT) as connection:
            if is_postgres(self.engine):
                # Who owns the database can take away what holds everybody else.
                connection.execute(text("DROP POLICY IF EXISTS licet_emptied ON decision"))
            assert connection.execute(text(statement), values).rowcount > 0

    def erasure(self, index: int, commitment: str = "") -> dict[str, Any]:
        with db.read_transaction(self.engine, TENANT) as connection:
            leaf = store.read_entry(connection, TENANT, index).leaf
        entry = {"index": index, "kind": leaf.kind, "commitment": commitment or leaf.commitment}
        return {"type": "erasure", "entries": [entry]}

    def append(self, kind: str, record: dict[str, Any]) -> None:
        sequencer = Sequencer(self.engine)
        sequencer.append(Submission([NewEntry(TENANT, kind, TENANT, TENANT, canonical.dumps(record))]))
        sequencer.close()


@pytest.fixture
def place(prepared: Database, tmp_path: Path) -> Iterator[Place]:
    (tmp_path / "world").mkdir(mode=0o700)
    made = Place(prepared.open(), tmp_path / "world")
    assert made.problems() == []
    yield made
    made.engine.dispose()


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("DELETE FROM fact_blob", "fact .* is named in the log, and is not there"),
        ("UPDATE fact_blob SET body = :data", "fact .* is not what its digest says"),
        ("DELETE FROM policy_bundle", "bundle .* is named in the log, and is not there"),
        ("UPDATE policy_bundle SET body = :data", "bundle .* is not what its digest says"),
        ("DELETE FROM attestation", "attestation .* is named in the log, and is not there"),
        ("UPDATE attestation SET envelope = '{}'", "attestation .* is not signed by this installation"),
        ("UPDATE attestation SET leaf_index = 0", "is said to be entry 0, and the log names it in 1"),
        ("UPDATE attestation SET digest_hex = 'ab'", "attestation ab is not what its digest says"),
        ("DELETE FROM decision", "the decision of entry 0 is not listed"),
        ("UPDATE decision SET id = 'd2'", "entry 0 is listed as decision d2, and is d1"),
        ("UPDATE decision SET leaf_index = 1", "decision d1 is listed as entry 1, which is none"),
        ("UPDATE decision SET leaf_index = 9", "decisions are listed beyond the end"),
        (
            "UPDATE log_checkpoint SET note = replace(note, '/northbank', '/southbank')",
            "checkpoint of size 2 is not signed",
        ),
        ("DELETE FROM log_checkpoint", "the cosignature of size 2 by .* is of a checkpoint that is not there"),
        ("UPDATE log_cosignature SET line = 'x'", "the cosignature of size 2 by .* is none"),
        ("UPDATE log_cosignature SET keyid = 'other', line = 'x'", "the cosignature of size 2 by other is none"),
    ],
)
def test_what_was_tampered_with_is_found(place: Place, statement: str, told: str) -> None:
    place.change(statement, **({"data": b"{}"} if ":data" in statement else {}))
    found = place.problems()
    assert any(re.search(told, problem) for problem in found), found


def test_a_checkpoint_that_somebody_else_signed_is_found(place: Place) -> None:
    trust = place.world.keystore.trust_root
    forged = cosign(place.note, trust.origin(TENANT), PrivateKey.generate(ED25519), 1)
    note = place.note.split("\n\n", maxsplit=1)[0] + "\n\n" + forged
    place.change("UPDATE log_checkpoint SET note = :note", note=note)
    assert any("is not signed" in problem for problem in place.problems())


def test_a_cosignature_by_another_key_is_found(place: Place) -> None:
    forged = cosign(place.note, "w.example", PrivateKey.generate(ED25519), 1)
    place.change("UPDATE log_cosignature SET line = :line", line=forged)
    assert any("is not that witness's" in problem for problem in place.problems())


def test_a_log_that_was_put_back_behind_the_signer_is_found(place: Place) -> None:
    def word(size: int, root: bytes) -> Callable[[str], tuple[int, bytes]]:
        return lambda _tenant: (size, root)

    def problems(said: Callable[[str], tuple[int, bytes]]) -> list[str]:
        against = Against(trust_root=place.world.keystore.trust_root, policy=place.policy, last_signed=said)
        (report,) = fsck(place.engine, [TENANT], against=against)
        return report.problems

    assert problems(word(9, bytes(32))) == ["the signer signed 9 entries, and the log has 2: it was put back"]
    assert problems(word(1, bytes(32))) == ["the first 1 entries are not those that the signer signed last"]
    assert problems(word(0, b"")) == []


def test_a_log_that_grows_while_it_is_checked_is_whole(place: Place) -> None:
    sequencer = Sequencer(place.engine)

    def word(tenant: str) -> tuple[int, bytes]:
        sequencer.append(Submission([NewEntry(TENANT, "note", TENANT, TENANT, b"{}")]))
        Notary(place.engine, place.world.signer).checkpoint(TENANT)
        return place.world.signer.last_checkpoint(tenant)

    against = Against(trust_root=place.world.keystore.trust_root, policy=None, last_signed=word)
    try:
        (report,) = fsck(place.engine, [TENANT], against=against)
    finally:
        sequencer.close()
    assert (report.size, report.problems) == (place.size + 1, [])


def test_an_erased_record_that_the_log_tells_of_is_no_damage(place: Place) -> None:
    place.change("UPDATE log_record SET salt = NULL, record = NULL WHERE leaf_index = 1")
    assert place.problems() == ["the record of entry 1 is gone, and no erasure in the log names it"]
    place.append("erasure", place.erasure(1, "0" * 64))
    told = "the erasure of the record of entry 1 names another commitment than its leaf has"
    assert place.problems() == [told]
    place.append("erasure", place.erasure(1))
    assert place.problems() == []


def test_a_record_that_the_log_says_was_erased_is_not_there(place: Place) -> None:
    place.append("erasure", place.erasure(0))
    assert place.problems() == ["the record of entry 0 is there, and the log says that it was erased"]
    place.append("erasure", {"type": "erasure", "entries": 3})
    assert "the record of entry 3 is not an erasure's" in place.problems()
