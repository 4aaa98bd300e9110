"""An evidence archive for the tests of what reads one: every case that the policies come with, recorded under shipped packs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from licet_attestations import archive, canonical
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

    def __init__(self, *, with_bundle: bool = False) -> None:
        compiled = CompiledBundle.from_bytes(bundle())
        self.bundle_hex = compiled.digest_hex
        self.bundles = {f"bundles/{self.bundle_hex}.json": bundle()} if with_bundle else {}
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

    def write(self, path: Path, changed: Mapping[str, bytes] | None = None, erased: tuple[int, ...] = ()) -> Path:
        """An archive of them; ``changed`` files are other than they should be."""
        files = {f"records/{n}.json": b'{"record":%b,"salt":"00"}' % record for n, record in enumerate(self.records)}
        note = canonical.dumps({"record": {"v": 1, "type": "attestation", "digest": "0" * 64}, "salt": "00"})
        files[f"records/{len(self.records)}.json"] = note
        files |= {f"facts/{digest}.json": data for digest, data in self.facts.items()}
        files |= self.bundles | dict(changed or {})
        with path.open("wb") as file:
            writer = archive.ArchiveWriter(file)
            for name in sorted(archive.REQUIRED - {archive.RANGE}):
                writer.add(name, b"{}")
            writer.add(archive.RANGE, canonical.dumps({"erased": list(erased)}))
            for name, data in files.items():
                writer.add(name, data)
            writer.finish()
        return path
