"""Evidence of a million entries: how fast it is exported and verified, in how much memory.

Run with ``python bench/evidence.py [COUNT]``; a million if not given, which takes some minutes and 3 GB of disk. The log is written as the sequencer writes it: decisions as `bench/decide.py` asks them, each hundredth entry an attestation. It
is exported from SQLite, with its reports; then ``python -m licet_attestations`` verifies the archive in a process of its own, on one core.
"""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from decide import NOW_MS, own_policies, questions

from licet_adapters.conformance.world import World
from licet_attestations import canonical, dsse, evidence
from licet_attestations.statement import TEST_RESULT, Statement, Subject
from licet_attestations.window import Window
from licet_engine.decide import CompiledBundle, build_record, decide
from licet_engine.evidence.export import ArchiveContents, StoredLog
from licet_engine.evidence.report import derived
from licet_engine.log import store
from licet_engine.log.notary import Notary
from licet_engine.log.sequencer import Sequencer
from licet_engine.log.submission import Insert, NewEntry, Submission
from licet_engine.store import db, migrations
from licet_engine.store.tables import Attestation, FactBlob, PolicyBundle
from licet_policies.bundle import compose
from licet_policies.packs import PackChoice

COUNT = 1_000_000
TENANT = "northbank"
PACKS = [PackChoice("sr-11-7"), PackChoice("residency", parameters={"regions": ["us"]})]
PER_SUBMISSION = 1000
PER_ATTESTATION = 100
VERIFY_S, VERIFY_MB = 60.0, 300


class Log:
    """A log in SQLite."""

    def __init__(self, folder: Path, count: int) -> None:
        (folder / "world").mkdir(mode=0o700)
        self.world = World(folder / "world")
        self.engine = db.open_engine(folder / "licet.db")
        migrations.upgrade(self.engine)
        data = canonical.dumps(compose(PACKS, own_policies(100)))
        compiled = CompiledBundle.from_bytes(data)
        asked = [(request, facts, decide(compiled, request, facts)) for request, facts in questions(100)]
        known = {fact.digest_hex: fact.data for _, facts, _ in asked for fact in facts}
        bundle = {"digest_hex": compiled.digest_hex, "author": "a", "state": "active", "body": data, "created_at_ms": 1}
        rows = [{"tenant_id": TENANT, "digest_hex": name, "body": body} for name, body in known.items()]
        first = [Insert(FactBlob, rows), Insert(PolicyBundle, [{"tenant_id": TENANT, **bundle}])]
        sequencer = Sequencer(self.engine, clock_ms=self.world.clock)
        for begin in range(0, count, PER_SUBMISSION):
            entries, attested = [], []
            for number in range(begin, min(count, begin + PER_SUBMISSION)):
                if number % PER_ATTESTATION == 0:
                    row = self._attested(number)
                    attested.append(row)
                    record = {"type": "attestation", "digest": row["digest_hex"], "predicate_type": TEST_RESULT}
                    entries.append(NewEntry(TENANT, "attestation", TENANT, TENANT, canonical.dumps(record)))
                    continue
                request, facts, decision = asked[number % len(asked)]
                record_bytes = build_record(
                    decision_id=f"{number:032x}",
                    time_ms=NOW_MS - 10**12 + number,
                    tenant=TENANT,
                    request=request,
                    decision=decision,
                    facts=facts,
                    facts_version=1,
                    bundle_hex=compiled.digest_hex,
                )
                entries.append(NewEntry(TENANT, "decision", TENANT, TENANT, record_bytes))
            places = [number for number, entry in enumerate(entries) if entry.kind == "attestation"]
            inserts = [
                Insert(Attestation, [row], placed={"leaf_index": (at, "index")})
                for at, row in zip(places, attested, strict=True)
            ]
            sequencer.append(Submission(entries, companions=[*first, *inserts]))
            first = []
        sequencer.close()
        self.size, self.note = Notary(self.engine, self.world.signer).checkpoint(TENANT)

    def _attested(self, number: int) -> dict[str, object]:
        claim = Statement((Subject("x", "00" * 32),), TEST_RESULT, {"tenant": TENANT, "number": number})
        envelope = self.world.signer.attest(TENANT, claim.to_bytes()).decode()
        digest_hex = hashlib.sha256(dsse.Envelope.from_json(envelope.encode()).payload).hexdigest()
        return {
            "tenant_id": TENANT,
            "digest_hex": digest_hex,
            "predicate_type": TEST_RESULT,
            "subject": "x",
            "envelope": envelope,
            "at_ms": 1,
        }

    def export(self, path: Path) -> None:
        """Write the archive of all of it."""
        with db.read_transaction(self.engine, TENANT) as connection:
            window = Window(
                tenant=TENANT,
                origin=self.world.keystore.trust_root.origin(TENANT),
                first=0,
                end=self.size,
                size=self.size,
                frontier_end=store.frontier_at(connection, TENANT, self.size),
            )
        evidence.build_archive(
            path,
            window,
            StoredLog(self.engine, TENANT, self.size),
            checkpoint_note=self.note,
            sign_export=lambda claim: self.world.signer.attest(TENANT, claim),
            exported_at_ms=self.world.clock(),
            derive=lambda contents: derived(ArchiveContents(contents, "bench")),
        )


VERIFIER = """
import os, sys
from licet_attestations.__main__ import verify_command

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
try:
    verify_command(sys.argv[1:])
finally:
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(peak.split()[1], file=sys.stderr)
"""


def verify(path: Path, trust_root: Path) -> tuple[float, float]:
    """Verify in another process, on one core; seconds, and MB at its highest."""
    command = [sys.executable, "-c", VERIFIER, str(path), "--trust-root", str(trust_root), "--format", "json"]
    began_s = time.perf_counter()
    ended = subprocess.run(command, check=True, capture_output=True, text=True)
    took_s = time.perf_counter() - began_s
    assert json.loads(ended.stdout)["verified"]
    return took_s, int(ended.stderr.split()[-1]) / 1024


def main() -> None:
    """Measure and print."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else COUNT
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = Log(folder, count)
        path = folder / "archive.zip"
        before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        began_s = time.perf_counter()
        log.export(path)
        export_s = time.perf_counter() - began_s
        more_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before_mb
        trust_root = folder / "trust-root.json"
        trust_root.write_bytes(log.world.keystore.trust_root.to_json())
        verify_s, verify_mb = verify(path, trust_root)
        size_mb = path.stat().st_size / 1e6
    found = {
        "entries": count,
        "archive_mb": round(size_mb),
        "export_s": round(export_s, 1),
        "export_per_s": round(count / export_s),
        "export_more_mb": round(more_mb),
        "verify_s": round(verify_s, 1),
        "verify_per_s": round(count / verify_s),
        "verify_mb": round(verify_mb),
    }
    targets = {
        "of_verify_s": round(verify_s * COUNT / count / VERIFY_S, 2),
        "of_verify_mb": round(verify_mb / VERIFY_MB, 2),
    }
    print(json.dumps(found | targets))


if __name__ == "__main__":
    main()
