"""Logs in memory, and evidence archives made from them."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from licet_attestations import canonical, dsse, evidence, merkle
from licet_attestations.archive import ArchiveWriter
from licet_attestations.checkpoint import Checkpoint, sign_checkpoint
from licet_attestations.isolation_pair import examined_policies
from licet_attestations.keys import ED25519, P256, PrivateKey
from licet_attestations.leaf import Leaf, commit
from licet_attestations.statement import Statement
from licet_attestations.trustroot import Purpose, TrustedKey, TrustRoot
from licet_attestations.window import Window

TENANT = "northbank"
START_MS = 1_700_000_000_000


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class MemoryLog:
    """One instance of Licet: its keys, and the log of one tenant with all that it names."""

    log: PrivateKey = field(default_factory=lambda: PrivateKey.generate(ED25519))
    attestation: PrivateKey = field(default_factory=lambda: PrivateKey.generate(P256))
    warrant: PrivateKey = field(default_factory=lambda: PrivateKey.generate(P256))
    leaves: list[Leaf] = field(default_factory=list)
    records: list[tuple[bytes, bytes]] = field(default_factory=list)
    facts: dict[str, bytes] = field(default_factory=dict)
    bundles: dict[str, bytes] = field(default_factory=dict)
    attestations: dict[str, bytes] = field(default_factory=dict)
    erased: set[int] = field(default_factory=set)
    retired_ms: dict[str, int] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)
    """The first entries of what an archive asked for."""

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
        self, kind: str, record: dict[str, Any] | bytes, *, actor: str = TENANT, owner: str = TENANT, **header: Any
    ) -> int:
        data = record if isinstance(record, bytes) else canonical.dumps(record)
        salt = hashlib.sha256(b"salt%d" % len(self.leaves)).digest()
        time_ms = header.get("time_ms", self.now_ms)
        self.leaves.append(Leaf(kind, time_ms, actor, owner, commit(salt, data)))
        self.records.append((salt, data))
        return len(self.leaves) - 1

    def log_attestation(self, envelope: bytes, predicate_type: str) -> bytes:
        digest_hex = digest_of(dsse.Envelope.from_json(envelope).payload)
        self.attestations[digest_hex] = envelope
        record = {"v": 1, "type": "attestation", "digest": digest_hex, "predicate_type": predicate_type}
        self.append("attestation", record)
        return envelope

    # --- The tree ---------------------------------------------------------------------------------------------------------

    def tree(self, size: int | None = None) -> merkle.HashAt:
        nodes: dict[tuple[int, int], bytes] = {}
        hashes = (leaf.hash() for leaf in self.leaves[:size])
        merkle.Frontier().append_many(hashes, lambda *node: nodes.update({node[:2]: node[2]}))
        return lambda level, at: nodes[level, at]

    def frontier(self, size: int) -> list[bytes]:
        frontier = merkle.Frontier()
        frontier.append_many(leaf.hash() for leaf in self.leaves[:size])
        return frontier.hashes()

    def note(self, size: int | None = None) -> str:
        leaves = self.leaves[:size]
        root = merkle.root(leaf.hash() for leaf in leaves)
        return sign_checkpoint(Checkpoint(self.trust.origin(TENANT), len(leaves), root), self.log)

    def window(self, first: int = 0, end: int | None = None, **changes: Any) -> Window:
        """These entries, as they are asked for by their times."""
        size = len(self.leaves)
        end = size if end is None else end
        fields: dict[str, Any] = {
            "tenant": TENANT,
            "origin": self.trust.origin(TENANT),
            "first": first,
            "end": end,
            "size": size,
            "from_ms": self.leaves[first - 1].time_ms + 1 if first else None,
            "to_ms": self.leaves[end].time_ms if end < size else None,
            "frontier_first": self.frontier(first),
            "frontier_end": self.frontier(end),
            "consistency": () if end in {0, size} else merkle.consistency_proof(end, size, self.tree()),
        }
        return Window(**(fields | changes))

    # --- What an archive is made from -------------------------------------------------------------------------------------

    def entries(self, first: int, end: int) -> Iterator[evidence.Raw]:
        self.asked.append(first)
        for index in range(first, end):
            salt, record = self.records[index]
            is_erased = index in self.erased
            text = self.leaves[index].to_bytes()
            yield evidence.Raw(index, text, None if is_erased else salt, None if is_erased else record)

    def erase(self, *indexes: int, decision: bytes | None = None, **header: Any) -> int:
        """Erase records, and log it; ``decision`` is the record of the one that allowed it, made up if not given."""
        self.erased.update(indexes)
        record = decision or canonical.dumps(self.erasing())
        self.append("decision", record, **header)
        return self.append("erasure", self.erasure(*indexes) | {"decision": json.loads(record)["id"]}, **header)

    def erasing(self) -> dict[str, Any]:
        """The decision that allows an erasure."""
        return {
            "v": 1,
            "type": "decision",
            "id": "d-1",
            "tenant": TENANT,
            "action": "record.erase",
            "decision": "allow",
            "principal": {"type": "Person", "id": f"{TENANT}/cora"},
            "facts": [],
            "bundle": self.bundle_for_erasing(),
        }

    def bundle_for_erasing(self) -> str:
        data = canonical.dumps({"v": 1, "for": "erasing"})
        self.bundles[digest_of(data)] = data
        return digest_of(data)

    def erasure(self, *indexes: int) -> dict[str, Any]:
        entries = [
            {"index": index, "kind": self.leaves[index].kind, "commitment": self.leaves[index].commitment}
            for index in indexes
        ]
        told = {"v": 1, "type": "erasure", "event": "records-erased", "by": f"{TENANT}/cora", "reason": "request 17"}
        return told | {"decision": "d-1", "entries": entries}

    def erasures(self, first: int, end: int) -> Iterator[evidence.Raw]:
        for index in range(first, end):
            if self.leaves[index].kind == "erasure":
                yield from self.entries(index, index + 1)

    def erased_in(self, first: int, end: int) -> set[int]:
        return {index for index in self.erased if first <= index < end}

    def proof(self, index: int) -> list[bytes]:
        return merkle.inclusion_proof(index, len(self.leaves), self.tree())

    def facts_of(self, digests: Sequence[str]) -> list[bytes]:
        return [self.facts[name] for name in digests if name in self.facts]

    def attestations_of(self, digests: Sequence[str]) -> list[bytes]:
        return [self.attestations[name] for name in digests if name in self.attestations]

    def bundle(self, digest_hex: str) -> bytes:
        return self.bundles[digest_hex]

    def examinations(self, bundles: Collection[str]) -> list[int]:
        named = {
            digest_hex
            for digest_hex, envelope in self.attestations.items()
            if set(examined_policies(Statement.from_bytes(dsse.Envelope.from_json(envelope).payload))) & set(bundles)
        }
        logged = {
            n: json.loads(data) for n, (_, data) in enumerate(self.records) if self.leaves[n].kind == "attestation"
        }
        return [index for index, record in logged.items() if record["digest"] in named]

    def sign_export(self, claim: bytes) -> bytes:
        return dsse.sign(claim, dsse.IN_TOTO_PAYLOAD_TYPE, self.attestation).to_json()

    def build(self, out: Path, *, first: int = 0, end: int | None = None, **changes: Any) -> evidence.BuiltArchive:
        """Write an archive of these entries."""
        arguments: dict[str, Any] = {
            "window": self.window(first, end),
            "source": self,
            "checkpoint_note": self.note(),
            "sign_export": self.sign_export,
            "exported_at_ms": self.now_ms,
        }
        return evidence.build_archive(out, **(arguments | changes))


def read_files(path: Path) -> dict[str, bytes]:
    """The files of an archive."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_files(path: Path, files: Mapping[str, bytes]) -> Path:
    """An archive of the right form of these files; nothing in it need fit anything else."""
    with path.open("w+b") as stream:
        writer = ArchiveWriter(stream)
        for name, data in files.items():
            writer.add(name, data)
        writer.finish()
    return path
