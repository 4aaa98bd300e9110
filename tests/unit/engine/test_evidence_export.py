"""A stored log as the source of archives, on every kind of database."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, delete

from databases import Database
from licet_adapters.conformance import World
from licet_attestations import canonical, dsse, evidence
from licet_attestations.statement import TEST_RESULT, Statement, Subject
from licet_attestations.verify import verify_archive
from licet_attestations.window import Window
from licet_engine.domain.errors import Unavailable
from licet_engine.evidence.export import StoredLog
from licet_engine.log import store
from licet_engine.log.notary import Notary
from licet_engine.log.sequencer import Sequencer
from licet_engine.log.submission import Insert, NewEntry, Submission
from licet_engine.store import db
from licet_engine.store.tables import Attestation, FactBlob, PolicyBundle

TENANT = "northbank"
SIZE = 2100
BUNDLE = b'{"v":1}'


def _hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Place:
    """A log of three chunks, with decisions on facts of their own and an attestation now and then."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine = engine
        self.world = World(folder)
        self.clock_ms = itertools.count(self.world.clock(), 250)
        sequencer = Sequencer(engine, clock_ms=lambda: next(self.clock_ms))
        for number in range(SIZE // 100):
            sequencer.append(self._some(number))
        sequencer.close()
        self.size, self.note = Notary(engine, self.world.signer).checkpoint(TENANT)
        assert self.size == SIZE

    def _some(self, number: int) -> Submission:
        entries, facts = [], []
        for part in range(99):
            fact = canonical.dumps({"uid": {"type": "Dataset", "id": f"{TENANT}/{number}-{part}"}})
            facts.append({"tenant_id": TENANT, "digest_hex": _hex(fact), "body": fact})
            record = {
                "id": f"{number:016x}{part:016x}",
                "tenant": TENANT,
                "principal": {"type": "Person", "id": f"{TENANT}/ana"},
                "decision": "deny",
                "facts": [_hex(fact)],
                "bundle": _hex(BUNDLE),
            }
            entries.append(NewEntry(TENANT, "decision", TENANT, TENANT, canonical.dumps(record)))
        claim = Statement((Subject("x", "00" * 32),), TEST_RESULT, {"tenant": TENANT, "number": number}).to_bytes()
        envelope = self.world.signer.attest(TENANT, claim).decode()
        digest_hex = _hex(dsse.Envelope.from_json(envelope.encode()).payload)
        attested = {"digest": digest_hex, "predicate_type": TEST_RESULT}
        entries.append(NewEntry(TENANT, "attestation", TENANT, TENANT, canonical.dumps(attested)))
        row = {
            "tenant_id": TENANT,
            "digest_hex": digest_hex,
            "predicate_type": TEST_RESULT,
            "subject": "x",
            "envelope": envelope,
            "at_ms": 1,
        }
        companions = [Insert(FactBlob, facts), Insert(Attestation, [row], placed={"leaf_index": (99, "index")})]
        if number == 0:
            bundle = {
                "tenant_id": TENANT,
                "digest_hex": _hex(BUNDLE),
                "author": "a",
                "state": "active",
                "body": BUNDLE,
                "created_at_ms": 1,
            }
            companions.append(Insert(PolicyBundle, [bundle]))
        return Submission(entries, companions=companions)

    def window(self, first: int, end: int) -> Window:
        with db.read_transaction(self.engine, TENANT) as connection:
            times = [entry.leaf.time_ms for entry in store.read_entries(connection, TENANT, 0, SIZE)]
            return Window(
                tenant=TENANT,
                origin=self.world.keystore.trust_root.origin(TENANT),
                first=first,
                end=end,
                size=SIZE,
                from_ms=times[first] if first else None,
                to_ms=times[end] if end < SIZE else None,
                frontier_first=store.frontier_at(connection, TENANT, first),
                frontier_end=store.frontier_at(connection, TENANT, end),
                consistency=store.consistency_proof(connection, TENANT, end, SIZE) if 0 < end < SIZE else (),
            )

    def build(self, path: Path, first: int = 0, end: int = SIZE, **changes: Any) -> evidence.BuiltArchive:
        return evidence.build_archive(
            path,
            self.window(first, end),
            StoredLog(self.engine, TENANT, SIZE),
            checkpoint_note=self.note,
            sign_export=lambda claim: self.world.signer.attest(TENANT, claim),
            exported_at_ms=self.world.clock(),
            **changes,
        )


@pytest.fixture
def place(prepared: Database, tmp_path: Path) -> Iterator[Place]:
    (tmp_path / "world").mkdir(mode=0o700)
    made = Place(prepared.open(), tmp_path / "world")
    yield made
    made.engine.dispose()


def test_what_is_stored_becomes_archives_that_verify(place: Place, tmp_path: Path) -> None:
    for first, end in ((0, SIZE), (100, 1100), (0, 200), (1900, SIZE), (600, 600)):
        place.build(tmp_path / "a.zip", first, end)
        report = verify_archive(tmp_path / "a.zip", place.world.keystore.trust_root)
        assert (report.first, report.end, report.size) == (first, end, SIZE)
        # Each hundred entries are of one time.
        assert report.counts["deny"] == (end - first) // 100 * 99
        assert report.counts["attestations"] == (end - first) // 100


def test_the_first_entry_of_a_time_is_found(place: Place) -> None:
    with db.read_transaction(place.engine, TENANT) as connection:
        times = [entry.leaf.time_ms for entry in store.read_entries(connection, TENANT, 0, SIZE)]
        assert times == sorted(times)
        for time_ms in {0, *times[::97], times[0] + 1, times[-1], times[-1] + 1}:
            for size in (0, 1, 150, SIZE):
                expected = next((n for n, at in enumerate(times[:size]) if at >= time_ms), size)
                assert store.index_at(connection, TENANT, time_ms, size) == expected


def test_what_the_log_names_and_the_store_lacks_ends_an_export(place: Place, tmp_path: Path) -> None:
    table = store.table_of(Attestation)
    with db.write_transaction(place.engine, TENANT) as connection:
        rows = connection.execute(table.select().where(table.c.tenant_id == TENANT, table.c.leaf_index == 199)).all()
        connection.execute(delete(table).where(table.c.tenant_id == TENANT, table.c.leaf_index == 199))
    try:
        with pytest.raises(Unavailable, match="licet log fsck"):
            place.build(tmp_path / "a.zip")
    finally:
        with db.write_transaction(place.engine, TENANT) as connection:
            connection.execute(table.insert(), [row._asdict() for row in rows])
    # The store was mended: what was begun is gone on with.
    place.build(tmp_path / "a.zip")
    assert verify_archive(tmp_path / "a.zip", place.world.keystore.trust_root).size == SIZE
