"""An evidence archive for the tests of what reads one: every case that the policies come with, recorded under shipped packs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from archives import MemoryLog, read_files, write_files
from licet_attestations import canonical
from licet_engine.decide import CompiledBundle, Fact, FactSet, Request, build_record, decide
from licet_engine.decide.entities import EntityUid
from licet_policies.bundle import compose
from licet_policies.cases import load_cases, request_of
from licet_policies.packs import PackChoice

PACKS = (PackChoice("sr-11-7"), PackChoice("residency", parameters={"regions": ["us"]}))


def bundle(own: str = "") -> bytes:
    return canonical.dumps(compose(PACKS, own))


class Recorded:
    """Every case that the policies come with, asked and recorded under the shipped packs."""

    def __init__(self) -> None:
        compiled = CompiledBundle.from_bytes(bundle())
        self.bundle_hex = compiled.digest_hex
        self.records: list[bytes] = []
        self.facts: dict[str, bytes] = {}
        self.answers: list[tuple[str, str, bool, tuple[str, ...]]] = []
        for number, case in enumerate(load_cases()):
            asked = request_of(case)
            facts = FactSet([Fact.from_entity(entity) for entity in asked.entities])
            principal, resource = (EntityUid.from_json(dict(one)) for one in (asked.principal, asked.resource))
            request = Request(principal, asked.action, resource, asked.context)
            decision = decide(compiled, request, facts)
            self.facts |= {fact.digest_hex: fact.data for fact in facts}
            self.answers.append((str(principal), asked.action, decision.allowed, decision.reasons))
            self.records.append(
                build_record(
                    decision_id=f"{number:032x}",
                    time_ms=1_800_000_000_000 + number,
                    tenant="northbank",
                    request=request,
                    decision=decision,
                    facts=facts,
                    facts_version=1,
                    bundle_hex=compiled.digest_hex,
                )
            )

    def write(
        self,
        path: Path,
        erased: tuple[int, ...] = (),
        changed: Callable[[dict[str, bytes]], object] | None = None,
        times: int = 1,
    ) -> Path:
        """An archive of them, some times over; ``changed`` makes files other than they should be."""
        log = MemoryLog(facts=dict(self.facts), bundles={self.bundle_hex: bundle()})
        for record in self.records * times:
            log.append("decision", record, time_ms=1_900_000_000_000)
        log.append("people", {"v": 1, "type": "people"}, time_ms=1_900_000_000_000)
        if erased:
            allowed = (
                record
                for record, (_, action, is_allowed, _) in zip(self.records, self.answers, strict=True)
                if action == "record.erase" and is_allowed
            )
            log.erase(*erased, decision=next(allowed), time_ms=1_900_000_000_000)
        log.build(path)
        if changed is not None:
            files = read_files(path)
            changed(files)
            write_files(path, files)
        return path
