"""A small real log of a tenant with everything in it that an archive can hold, and means to take archives apart."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from archives import TENANT, MemoryLog, digest_of, read_files
from licet_attestations import canonical, dsse, isolation, merkle, statement
from licet_attestations.archive import MANIFEST, UNLISTED, ArchiveWriter
from licet_attestations.entries import record_line
from licet_attestations.isolation_pair import ISOLATION_INVARIANT
from licet_attestations.keys import PrivateKey
from licet_attestations.tlogproof import TlogProof
from licet_attestations.warrant import DecisionRef, Warrant, sign_warrant
from licet_attestations.window import Outside

PARAMETERS = {"epochs": 3}
ENTITY = {"uid": {"type": "Dataset", "id": "northbank/hmda"}, "attrs": {"archived": False}, "parents": []}
FACT = canonical.dumps(ENTITY)
BUNDLE = canonical.dumps({"v": 1, "schema": {}, "policies": [], "packs": []})


@dataclass
class World(MemoryLog):
    """A log with what a tenant's work leaves in it."""

    facts: dict[str, bytes] = field(default_factory=lambda: {digest_of(FACT): FACT})
    bundles: dict[str, bytes] = field(default_factory=lambda: {digest_of(BUNDLE): BUNDLE})

    def decide(self, outcome: str, action: str, principal: str = "northbank/ana", **more: Any) -> int:
        record = {
            "v": 1,
            "id": f"d{len(self.leaves)}",
            "time_ms": self.now_ms,
            "tenant": TENANT,
            "principal": {"type": "Person", "id": principal},
            "action": action,
            "resource": {"type": "Dataset", "id": "northbank/hmda"},
            "context": {"now_ms": self.now_ms, "claimed": []},
            "facts": [digest_of(FACT)],
            "facts_version": 1,
            "bundle": digest_of(BUNDLE),
            "engine": "licet/0.1 cedarpy/4.12.2",
            "decision": outcome,
            "reasons": [],
            "errors": [],
            "observed": [],
            "operation": {
                "id": "op1",
                "step": "train",
                "parameters_digest": canonical.digest_hex(PARAMETERS),
                "resources": [f"{TENANT}/run-1"],
            },
            "asked_by": None,
        } | more
        return self.append("decision", record, actor=principal.partition("/")[0])

    def attempt(self, outcome: str = "deny", principal: str = "lakeside/eve", action: str = "dataset.read") -> int:
        record = {
            "v": 1,
            "type": "attempt",
            "id": f"d{len(self.leaves)}",
            "time_ms": self.now_ms,
            "principal": {"type": "Person", "id": principal},
            "action": action,
            "resource": {"type": "Dataset", "id": "northbank/hmda"},
            "decision": outcome,
        }
        return self.append("attempt", record, actor=principal.partition("/")[0])

    def bundle_for_erasing(self) -> str:
        return digest_of(BUNDLE)

    def tlog_proof(self, index: int, size: int | None = None) -> str:
        path = merkle.inclusion_proof(index, len(self.leaves[:size]), self.tree(size))
        return TlogProof(index, tuple(path), self.note(size)).to_text()

    def attest(self, predicate_type: str, predicate: dict[str, Any], key: PrivateKey | None = None) -> bytes:
        claim = statement.Statement((statement.Subject("it", "1" * 64),), predicate_type, predicate)
        return self.log_attestation(
            dsse.sign(claim.to_bytes(), dsse.IN_TOTO_PAYLOAD_TYPE, key or self.attestation).to_json(), predicate_type
        )

    def examine(self, **predicate: Any) -> bytes:
        """Log what was examined of the policies that decide, before they were published."""
        subject = (statement.Subject("policy-bundle", digest_of(BUNDLE)), statement.Subject("project", "2" * 64))
        proofs = {"proofs": {ISOLATION_INVARIANT: "proved"}, "tenant": TENANT}
        claim = statement.Statement(subject, statement.TEST_RESULT, proofs | predicate)
        return self.log_attestation(self.sign_export(claim.to_bytes()), statement.TEST_RESULT)

    def make_warrant(self, index: int, **changes: Any) -> Warrant:
        record = json.loads(self.records[index][1])
        fields: dict[str, Any] = {
            "id": f"w{len(self.leaves)}",
            "tenant": TENANT,
            "adapter": "local-training",
            "operation": "training.run",
            "step": "train",
            "attempt": 1,
            "operation_id": "op1",
            "resources": {"dataset": "2" * 64},
            "parameters_digest_hex": canonical.digest_hex(PARAMETERS),
            "decision": DecisionRef(record["id"], index, hashlib.sha256(self.records[index][1]).hexdigest()),
            "principal": f"Person::{record['principal']['id']}",
            "action": record["action"],
            "issued_at_ms": self.now_ms,
            "expires_at_ms": self.now_ms + 300_000,
            "log_proof": self.tlog_proof(index),
            "leaf": self.leaves[index].to_bytes().decode(),
        }
        return Warrant(**(fields | changes))

    def log_warrant(self, warrant: Warrant, key: PrivateKey | None = None) -> bytes:
        return self.log_attestation(sign_warrant(warrant, key or self.warrant), statement.WARRANT)

    def sign_isolation(self, answer: isolation.Isolation) -> bytes:
        claim = statement.Statement((statement.Subject("log", "1" * 64),), statement.ISOLATION, answer.to_predicate())
        return self.sign_export(claim.to_bytes())

    def outside(self, index: int) -> bytes:
        return Outside(index=index, leaf=self.leaves[index], proof=self.proof(index)).to_bytes()

    def add_last(self, files: dict[str, bytes]) -> None:
        """Add the newest entry to the files of an archive of all before, as a forger would who holds the log key."""
        leaf, (salt, record) = self.leaves[-1], self.records[-1]
        files["leaves/000000000000.jsonl"] += leaf.to_bytes() + b"\n"
        files["records/000000000000.jsonl"] += record_line(salt, record) + b"\n"
        files["log/range.json"] = self.window().to_bytes()
        files["checkpoint.txt"] = self.note().encode()

    def isolation(self, first: int = 0, end: int | None = None) -> isolation.Isolation:
        count = isolation.IsolationCount(TENANT)
        for index in range(first, len(self.leaves) if end is None else end):
            count.take(self.leaves[index], None if index in self.erased else json.loads(self.records[index][1]))
        return count.answer()

    def files(self, folder: Path, **changes: Any) -> dict[str, bytes]:
        """The files of an archive, made in a folder."""
        self.build(folder / "files.zip", **changes)
        return read_files(folder / "files.zip")


def fill(world: World) -> World:
    """What a short life of a tenant leaves in its log."""
    allowed = world.decide("allow", "training.launch")
    world.log_warrant(world.make_warrant(allowed))
    world.attest(statement.SLSA_PROVENANCE, {"buildDefinition": {"externalParameters": {"tenant": TENANT}}})
    world.decide("deny", "model.promote")
    world.attempt()
    world.append("hold", {"v": 1, "type": "hold", "tenant": TENANT, "time_ms": world.now_ms, "reason": "litigation"})
    world.attempt("allow", "platform/op", "tenant.suspend")
    world.attest(statement.TEST_RESULT, {"tenant": TENANT, "auc_micro": 750_000})
    world.decide("deny", "dataset.delete")
    return world


@pytest.fixture
def world() -> World:
    return fill(World())


@pytest.fixture(scope="session")
def long_world() -> World:
    """A log of 2,500 entries, with warrants and other attestations in each of its chunks."""
    world = World()
    for number in range(2500):
        if number % 400 == 7:
            world.attest(statement.TEST_RESULT, {"tenant": TENANT, "number": number})
        elif number % 100 == 5:
            fact = canonical.dumps({"uid": {"type": "Dataset", "id": f"northbank/{number}"}})
            world.facts[digest_of(fact)] = fact
            world.decide("deny", "dataset.read", facts=[digest_of(fact)])
        else:
            world.append("hold", {"v": 1, "type": "hold", "number": number})
    return world


@pytest.fixture
def empty_world() -> World:
    return World()


@pytest.fixture
def pack(tmp_path: Path) -> Callable[..., Path]:
    """Writes files as an archive of the right form, by default with a manifest that fits them."""

    def write(files: dict[str, bytes], *, remanifest: bool = True) -> Path:
        path = tmp_path / "packed.zip"
        with path.open("w+b") as stream:
            writer = ArchiveWriter(stream)
            for name, data in files.items():
                if name not in UNLISTED or not remanifest:
                    writer.add(name, data)
            if remanifest:
                manifest = {"v": 2, "tenant": TENANT, "files": dict(writer.files)}
                writer.add(MANIFEST, canonical.dumps(manifest))
                writer.add("statement.dsse.json", files["statement.dsse.json"])
            writer.finish()
        return path

    return write
