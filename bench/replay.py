"""Recorded decisions under other policies: how many a second, from an evidence archive on the disk.

Run with ``python bench/replay.py [COUNT]``; 100,000 if not given. The archive holds what `bench/decide.py` asks, over and over, as
records with their facts; the policies replayed are those it was decided under with one more that forbids.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from decide import NOW_MS, own_policies, questions

from licet_attestations import archive, canonical
from licet_engine.decide import CompiledBundle, build_record, decide
from licet_engine.workbench.replay import replay_archive
from licet_policies.bundle import compose
from licet_policies.packs import PackChoice

COUNT = 100_000
OWN = 100
TARGET_S = 10.0
PACKS = [PackChoice("sr-11-7"), PackChoice("residency", parameters={"regions": ["us"]})]
ONE_MORE = (
    '@id("own.candidate") @title("Frozen") @advice("Wait.") forbid (principal, action == Action::"model.promote", resource)'
    ' when { context.stage == "prod" };'
)


def write(path: Path, count: int, compiled: CompiledBundle) -> None:
    """An archive of ``count`` decisions; of its signatures, which a replay does not look at, nothing is in it."""
    asked = questions(OWN)
    with path.open("wb") as file:
        writer = archive.ArchiveWriter(file)
        for name in sorted(archive.REQUIRED - {archive.RANGE}):
            writer.add(name, b"{}")
        writer.add(archive.RANGE, canonical.dumps({"erased": []}))
        for number in range(count):
            request, facts = asked[number % len(asked)]
            record = build_record(
                decision_id=f"{number:032x}",
                time_ms=NOW_MS + number,
                tenant="northbank",
                request=request,
                decision=decide(compiled, request, facts),
                facts=facts,
                facts_version=1,
                bundle_hex=compiled.digest_hex,
            )
            writer.add(f"records/{number}.json", b'{"record":%b,"salt":"00"}' % record)
        for fact in {fact.digest_hex: fact for _, facts in asked for fact in facts}.values():
            writer.add(f"facts/{fact.digest_hex}.json", fact.data)
        writer.finish()


def main() -> None:
    """Measure and print."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else COUNT
    before = CompiledBundle.compile(compose(PACKS, own_policies(OWN)))
    after = canonical.dumps(compose(PACKS, own_policies(OWN) + ONE_MORE))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "archive.zip"
        write(path, count, before)
        began_s = time.perf_counter()
        report = replay_archive(path, after)
        took_s = time.perf_counter() - began_s
    assert report.decided == count
    found = {"decisions": count, "seconds": round(took_s, 2), "per_s": round(count / took_s), "flipped": report.flipped}
    print(json.dumps(found | {"of_target": round(took_s / (TARGET_S * count / COUNT), 2)}))


if __name__ == "__main__":
    main()
