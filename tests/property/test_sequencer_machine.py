"""The sequencer beside a naive reference: lists of records, dictionaries of versions and budgets, and RFC 6962 as it is written down.

Whatever is done in whatever order (groups, stale facts, budgets, clocks that jump, two sequencers that take turns, one that is started
again, records that are erased), both say the same: what is refused and why, where what is logged stands, at what time, and which root
and proofs the logs have, at every size that they ever had.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from databases import writers_held
from licet_attestations import merkle
from licet_engine.log import store
from licet_engine.log.errors import LogError, SpendRefused, StaleFacts, SubmissionConflict
from licet_engine.log.fsck import verify_logs
from licet_engine.log.sequencer import Sequencer
from licet_engine.log.submission import Insert, NewEntry, Receipt, Spend, Submission
from licet_engine.store import db
from licet_engine.store.tables import Budget, FactBlob, Tenant
from rounds import rounds

TENANTS = ("lakeside", "northbank")
BUDGET = 5
tenants = st.sampled_from(TENANTS)
asked = st.fixed_dictionaries(
    {
        "tenants": st.lists(tenants, min_size=1, max_size=3),
        "stale": st.sampled_from([None, None, 0, -1, 1]),
        "bump": st.booleans(),
        "spend": st.sampled_from([0, 0, 1, 2, 4]),
        "fact": st.integers(0, 30),
        "if_absent": st.booleans(),
    }
)


def naive_root(hashes: list[bytes]) -> bytes:
    """RFC 6962, section 2.1."""
    if not hashes:
        return hashlib.sha256().digest()
    if len(hashes) == 1:
        return hashes[0]
    split = 1
    while split * 2 < len(hashes):
        split *= 2
    return hashlib.sha256(b"\x01" + naive_root(hashes[:split]) + naive_root(hashes[split:])).digest()


class Reference:
    """What a log is, without regard to what it costs."""

    def __init__(self) -> None:
        self.records: dict[str, list[bytes]] = {tenant: [] for tenant in TENANTS}
        self.times: dict[str, list[int]] = {tenant: [] for tenant in TENANTS}
        self.versions = dict.fromkeys(TENANTS, 0)
        self.budget = dict.fromkeys(TENANTS, BUDGET)
        self.facts: set[str] = set()

    def take(self, one: dict[str, Any], word: bytes, expect: int | None, now_ms: int) -> type[LogError] | list[int]:
        """Why it is refused, or at which indices its entries stand."""
        tenant = one["tenants"][0]
        if expect is not None and expect != self.versions[tenant]:
            return StaleFacts
        if one["spend"] > self.budget[tenant]:
            return SpendRefused
        if one["fact"] in self.facts and not one["if_absent"]:
            return SubmissionConflict
        self.facts.add(one["fact"])
        self.budget[tenant] -= one["spend"]
        self.versions[tenant] += one["bump"]
        time_ms = max(now_ms, *(max(self.times[t], default=0) for t in one["tenants"]))
        indices = []
        for name in one["tenants"]:
            indices.append(len(self.records[name]))
            self.records[name].append(word)
            self.times[name].append(time_ms)
        return indices


class Machine(RuleBasedStateMachine):
    """Does the same to both."""

    database: Path
    folder: Path
    made = 0

    @initialize()
    def begin(self) -> None:
        Machine.made += 1
        self.path = self.folder / f"{Machine.made}.db"
        shutil.copyfile(self.database, self.path)
        self.now_ms = 1_000_000
        self.reference = Reference()
        self.words = 0
        self.engine = db.open_engine(self.path, every_tenant=True)
        self.sequencers = [Sequencer(self.engine, clock_ms=lambda: self.now_ms) for _ in range(2)]
        rows = [{"tenant_id": tenant, "region": "us", "created_at_ms": 1} for tenant in TENANTS]
        budgets = [{"tenant_id": t, "name": "gpu", "limit": BUDGET, "remaining": BUDGET} for t in TENANTS]
        entries = [NewEntry(tenant, "begin", tenant, tenant, b"begin") for tenant in TENANTS]
        self.sequencers[0].append(Submission(entries, companions=[Insert(Tenant, rows), Insert(Budget, budgets)]))
        for tenant in TENANTS:
            self.reference.records[tenant].append(b"begin")
            self.reference.times[tenant].append(self.now_ms)

    def submission(self, one: dict[str, Any], word: bytes, expect: int | None) -> Submission:
        tenant = one["tenants"][0]
        row = {"tenant_id": tenant, "digest_hex": one["fact"], "body": word}
        return Submission(
            [NewEntry(name, "decision", tenant, name, word) for name in one["tenants"]],
            expect={} if expect is None else {tenant: expect},
            companions=[Insert(FactBlob, [row], if_absent=one["if_absent"])],
            bump=[tenant] if one["bump"] else [],
            spend=[Spend(tenant, "gpu", one["spend"])] if one["spend"] else [],
        )

    @rule(group=st.lists(asked, min_size=1, max_size=5), which=st.integers(0, 1))
    def append(self, group: list[dict[str, Any]], which: int) -> None:
        handed_in = []
        versions = dict(self.reference.versions)
        for one in group:
            # A fact is one tenant's.
            one["fact"] = f"{one['tenants'][0]}-{one['fact']}"
            self.words += 1
            word = b"w%d" % self.words
            expect = None if one["stale"] is None else versions[one["tenants"][0]] + one["stale"]
            handed_in.append((one, word, expect))
        with writers_held(self.engine, *TENANTS):
            futures = [self.sequencers[which].submit(self.submission(*each)) for each in handed_in]
        for (one, word, expect), future in zip(handed_in, futures, strict=True):
            outcome = future.exception(30) or future.result()
            expected = self.reference.take(one, word, expect, self.now_ms)
            if isinstance(expected, list):
                assert isinstance(outcome, Receipt), outcome
                assert [placed.index for placed in outcome.placed] == expected
                assert {placed.time_ms for placed in outcome.placed} == {self.reference.times[one["tenants"][0]][-1]}
                assert outcome.facts_versions[one["tenants"][0]] == self.reference.versions[one["tenants"][0]]
            else:
                assert type(outcome) is expected, outcome

    @rule(step_ms=st.sampled_from([-100_000, -1, 0, 1, 5_000, 10**9]))
    def clock_jumps(self, step_ms: int) -> None:
        self.now_ms = max(1, self.now_ms + step_ms)

    @rule(which=st.integers(0, 1))
    def start_again(self, which: int) -> None:
        self.sequencers[which].close()
        self.sequencers[which] = Sequencer(self.engine, clock_ms=lambda: self.now_ms)

    @rule(tenant=tenants, at=st.integers(0, 10**6))
    def erase(self, tenant: str, at: int) -> None:
        index = at % len(self.reference.records[tenant])
        with db.write_transaction(self.engine) as connection:
            wanted = (store.RECORDS.c.tenant_id == tenant) & (store.RECORDS.c.leaf_index == index)
            connection.execute(store.RECORDS.update().where(wanted).values(salt=None, record=None))
        self.reference.records[tenant][index] = b""

    @rule(tenant=tenants, first=st.integers(0, 10**6), second=st.integers(0, 10**6), at=st.integers(0, 10**6))
    def prove(self, tenant: str, first: int, second: int, at: int) -> None:
        with db.read_transaction(self.engine) as connection:
            size = store.read_head(connection, tenant).size
            hashes = [entry.hash for entry in store.read_entries(connection, tenant, 0, size)]
            larger, smaller = sorted((first % (size + 1), second % (size + 1)), reverse=True)
            roots = naive_root(hashes[:smaller]), naive_root(hashes[:larger])
            assert (store.root_at(connection, tenant, smaller), store.root_at(connection, tenant, larger)) == roots
            if smaller:
                proof = store.consistency_proof(connection, tenant, smaller, larger)
                merkle.verify_consistency(smaller, roots[0], larger, roots[1], proof)
            if larger:
                index = at % larger
                proof = store.inclusion_proof(connection, tenant, index, larger)
                merkle.verify_inclusion(hashes[index], index, larger, proof, roots[1])

    @invariant()
    def both_say_the_same(self) -> None:
        if not hasattr(self, "engine"):
            return
        with db.read_transaction(self.engine) as connection:
            for tenant in TENANTS:
                head = store.read_head(connection, tenant)
                entries = store.read_entries(connection, tenant, 0, head.size)
                assert [entry.record or b"" for entry in entries] == self.reference.records[tenant]
                assert [entry.leaf.time_ms for entry in entries] == self.reference.times[tenant]
                assert head.root == naive_root([entry.hash for entry in entries])
                assert head.facts_version == self.reference.versions[tenant]
            left = connection.execute(Budget.__table__.select().order_by("tenant_id")).all()
            assert [row.remaining for row in left] == [self.reference.budget[tenant] for tenant in TENANTS]

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        for sequencer in self.sequencers:
            sequencer.close()
        verify_logs(self.engine)
        self.engine.dispose()
        self.path.unlink()


def test_the_sequencer_does_what_the_reference_does(migrated_file: Path, tmp_path: Path) -> None:
    Machine.database, Machine.folder = migrated_file, tmp_path
    run_state_machine_as_test(
        Machine, settings=settings(max_examples=rounds(60), stateful_step_count=25, deadline=None)
    )
