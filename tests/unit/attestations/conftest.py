"""A small real log of a tenant with everything in it that an archive can hold, and means to take archives apart."""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from licet_attestations import canonical, dsse, evidence, isolation, merkle, statement
from licet_attestations.archive import MANIFEST, UNLISTED, ArchiveWriter
from licet_attestations.checkpoint import Checkpoint, sign_checkpoint
from licet_attestations.keys import ED25519, P256, PrivateKey
from licet_attestations.leaf import Leaf, commit
from licet_attestations.tlogproof import TlogProof
from licet_attestations.trustroot import Purpose, TrustedKey, TrustRoot
from licet_attestations.warrant import DecisionRef, Warrant, sign_warrant

TENANT = "northbank"
START_MS = 1_700_000_000_000
PARAMETERS = {"epochs": 3}
ENTITY = {"uid": {"type": "Dataset", "id": "northbank/hmda"}, "attrs": {"archived": False}, "parents": []}
FACT = canonical.dumps(ENTITY)
BUNDLE = canonical.dumps({"v": 1, "schema": {}, "policies": [], "packs": []})


@dataclass
class World:
    """One instance of Licet: its keys, and the log of one tenant."""

    log: PrivateKey = field(default_factory=lambda: PrivateKey.generate(ED25519))
    attestation: PrivateKey = field(default_factory=lambda: PrivateKey.generate(P256))
    warrant: PrivateKey = field(default_factory=lambda: PrivateKey.generate(P256))
    leaves: list[Leaf] = field(default_factory=list)
    records: list[tuple[bytes, bytes]] = field(default_factory=list)
    attestations: list[bytes] = field(default_factory=list)
    erased: set[int] = field(default_factory=set)
    retired_ms: dict[str, int] = field(default_factory=dict)

    @property
    def trust(self) -> TrustRoot:
        keys: tuple[tuple[PrivateKey, Purpose], ...] = (
            (self.log, "log"),
            (self.attestation, "attestation"),
            (self.warrant, "warrant"),
        )
        trusted = tuple(TrustedKey(k.public, purpose, 0, self.retired_ms.get(purpose)) for k, purpose in keys)
        return TrustRoot("test", trusted, "licet.example/log")

    @property
    def now_ms(self) -> int:
        return START_MS + 10 * len(self.leaves)

    def append(
        self, kind: str, record: dict[str, Any], *, actor: str = TENANT, owner: str = TENANT, **header: Any
    ) -> int:
        data = canonical.dumps(record)
        salt = hashlib.sha256(b"salt%d" % len(self.leaves)).digest()
        time_ms = header.get("time_ms", self.now_ms)
        self.leaves.append(Leaf(kind, time_ms, actor, owner, commit(salt, data)))
        self.records.append((salt, data))
        return len(self.leaves) - 1

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
            "facts": [hashlib.sha256(FACT).hexdigest()],
            "facts_version": 1,
            "bundle": hashlib.sha256(BUNDLE).hexdigest(),
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

    def note(self, size: int | None = None) -> str:
        leaves = self.leaves[:size]
        root = merkle.root(leaf.hash() for leaf in leaves)
        return sign_checkpoint(Checkpoint(self.trust.origin(TENANT), len(leaves), root), self.log)

    def proof(self, index: int, size: int | None = None) -> str:
        nodes: dict[tuple[int, int], bytes] = {}
        leaves = self.leaves[:size]
        merkle.Frontier().append_many((leaf.hash() for leaf in leaves), lambda *node: nodes.update({node[:2]: node[2]}))
        path = merkle.inclusion_proof(index, len(leaves), lambda level, at: nodes[level, at])
        return TlogProof(index, tuple(path), self.note(size)).to_text()

    def attest(self, predicate_type: str, predicate: dict[str, Any], key: PrivateKey | None = None) -> bytes:
        claim = statement.Statement((statement.Subject("it", "1" * 64),), predicate_type, predicate)
        return self.log_attestation(
            dsse.sign(claim.to_bytes(), dsse.IN_TOTO_PAYLOAD_TYPE, key or self.attestation).to_json(), predicate_type
        )

    def log_attestation(self, envelope: bytes, predicate_type: str) -> bytes:
        self.attestations.append(envelope)
        digest_hex = hashlib.sha256(dsse.Envelope.from_json(envelope).payload).hexdigest()
        record = {"v": 1, "type": "attestation", "digest": digest_hex, "predicate_type": predicate_type}
        self.append("attestation", record)
        return envelope

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
            "log_proof": self.proof(index),
            "leaf": self.leaves[index].to_bytes().decode(),
        }
        return Warrant(**(fields | changes))

    def log_warrant(self, warrant: Warrant, key: PrivateKey | None = None) -> bytes:
        return self.log_attestation(sign_warrant(warrant, key or self.warrant), statement.WARRANT)

    def sign_export(self, claim: bytes) -> bytes:
        return dsse.sign(claim, dsse.IN_TOTO_PAYLOAD_TYPE, self.attestation).to_json()

    def isolation(self, first: int = 0) -> isolation.Isolation:
        entries = (
            (leaf, None if index in self.erased else json.loads(self.records[index][1]))
            for index, leaf in enumerate(self.leaves)
            if index >= first
        )
        return isolation.isolation(TENANT, entries)

    def build(self, out: Path | io.BytesIO, **changes: Any) -> evidence.BuiltArchive:
        first = changes.get("first", 0)
        frontier = merkle.Frontier()
        frontier.append_many(leaf.hash() for leaf in self.leaves[:first])
        arguments: dict[str, Any] = {
            "tenant": TENANT,
            "origin": self.trust.origin(TENANT),
            "leaves": self.leaves[first:],
            "records": self.record_rows(first),
            "facts": [FACT, FACT],
            "bundles": [BUNDLE],
            "attestations": self.attestations,
            "checkpoint_note": self.note(),
            "sign_export": self.sign_export,
            "first": first,
            "frontier": frontier.hashes(),
        }
        return evidence.build_archive(out, **(arguments | changes))

    def record_rows(self, first: int = 0) -> Iterator[evidence.Record]:
        for index, (salt, record) in enumerate(self.records):
            if index >= first:
                yield (index, None, None) if index in self.erased else (index, salt, record)

    def files(self) -> dict[str, bytes]:
        stream = io.BytesIO()
        self.build(stream)
        with zipfile.ZipFile(stream) as archive:
            return {name: archive.read(name) for name in archive.namelist()}


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
                manifest = {"v": 1, "tenant": TENANT, "files": dict(writer.files)}
                writer.add(MANIFEST, canonical.dumps(manifest))
                writer.add("statement.dsse.json", files["statement.dsse.json"])
            writer.finish()
        return path

    return write
