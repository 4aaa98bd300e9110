"""Recorded decisions under other policies: how many a second, from an evidence archive on the disk.

Run with ``python bench/replay.py [COUNT]``; 100,000 if not given. The archive holds what `bench/decide.py` asks, over and over, as
records with their facts; the policies replayed are those it was decided under with one more that forbids.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from decide import NOW_MS, own_policies, questions

from licet_attestations import canonical, dsse, evidence, merkle
from licet_attestations.checkpoint import Checkpoint, sign_checkpoint
from licet_attestations.keys import PrivateKey
from licet_attestations.leaf import Leaf, commit
from licet_attestations.trustroot import TrustedKey, TrustRoot
from licet_attestations.window import Window
from licet_engine.decide import CompiledBundle, build_record, decide
from licet_engine.workbench.replay import replay_archive
from licet_policies.bundle import compose
from licet_policies.packs import PackChoice

COUNT = 100_000
TENANT = "northbank"
OWN = 100
TARGET_S = 10.0
PACKS = [PackChoice("sr-11-7"), PackChoice("residency", parameters={"regions": ["us"]})]
ONE_MORE = (
    '@id("own.candidate") @title("Frozen") @advice("Wait.") forbid (principal, action == Action::"model.promote", resource)'
    ' when { context.stage == "prod" };'
)


class Log:
    """A log of decisions: what `bench/decide.py` asks, over and over."""

    def __init__(self, count: int, data: bytes) -> None:
        compiled = CompiledBundle.from_bytes(data)
        self._asked = [(request, facts, decide(compiled, request, facts)) for request, facts in questions(OWN)]
        self._facts = {fact.digest_hex: fact.data for _, facts, _ in self._asked for fact in facts}
        self._compiled, self._data = compiled, data
        self.count = count

    def entries(self, first: int, end: int) -> Iterator[evidence.Raw]:
        """The entries, made anew each time."""
        for number in range(first, end):
            request, facts, decision = self._asked[number % len(self._asked)]
            record = build_record(
                decision_id=f"{number:032x}",
                time_ms=NOW_MS + number,
                tenant=TENANT,
                request=request,
                decision=decision,
                facts=facts,
                facts_version=1,
                bundle_hex=self._compiled.digest_hex,
            )
            salt = number.to_bytes(32)
            leaf = Leaf("decision", NOW_MS + number, TENANT, TENANT, commit(salt, record))
            yield evidence.Raw(number, leaf.to_bytes(), salt, record)

    def proof(self, index: int) -> Sequence[bytes]:
        """Of a whole log nothing is outside."""
        raise LookupError(index)

    def facts_of(self, digests: Sequence[str]) -> Iterator[bytes]:
        """Facts by digest."""
        return (self._facts[name] for name in digests)

    def attestations_of(self, digests: Sequence[str]) -> Iterator[bytes]:
        """There are none."""
        raise LookupError(digests)

    def examinations(self, _bundles: Collection[str]) -> tuple[int, ...]:
        """There are none."""
        return ()

    def bundle(self, digest_hex: str) -> bytes:
        """The one bundle."""
        assert digest_hex == self._compiled.digest_hex
        return self._data


def write(path: Path, log: Log) -> TrustRoot:
    """Write an archive of a log; return the keys that it is signed with."""
    signs, attests = PrivateKey.generate("ed25519"), PrivateKey.generate("ecdsa-p256-sha256")
    trust = TrustRoot(
        "bench",
        (TrustedKey(signs.public, "log", 0, None), TrustedKey(attests.public, "attestation", 0, None)),
        "bench.example/log",
    )
    tree = merkle.Frontier()
    tree.append_many(merkle.leaf_hash(raw.text) for raw in log.entries(0, log.count))
    origin = trust.origin(TENANT)
    evidence.build_archive(
        path,
        Window(tenant=TENANT, origin=origin, first=0, end=log.count, size=log.count, frontier_end=tree.hashes()),
        log,
        checkpoint_note=sign_checkpoint(Checkpoint(origin, log.count, tree.root()), signs),
        sign_export=lambda claim: dsse.sign(claim, dsse.IN_TOTO_PAYLOAD_TYPE, attests).to_json(),
        exported_at_ms=NOW_MS + log.count,
    )
    return trust


def main() -> None:
    """Measure and print."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else COUNT
    before = canonical.dumps(compose(PACKS, own_policies(OWN)))
    after = canonical.dumps(compose(PACKS, own_policies(OWN) + ONE_MORE))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "archive.zip"
        write(path, Log(count, before))
        began_s = time.perf_counter()
        report = replay_archive(path, after)
        took_s = time.perf_counter() - began_s
    assert report.decided == count
    found = {"decisions": count, "seconds": round(took_s, 2), "per_s": round(count / took_s), "flipped": report.flipped}
    print(json.dumps(found | {"of_target": round(took_s / (TARGET_S * count / COUNT), 2)}))


if __name__ == "__main__":
    main()
