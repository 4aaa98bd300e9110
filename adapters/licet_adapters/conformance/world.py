"""A small world for an adapter to stand in: the real signer's rules and keys, a real log, and a clock that can be set.

Nothing here pretends: a warrant made here went through the rules that the signer keeps, over an entry of a Merkle tree
under a signed checkpoint. Only time is ours, and the keys are thrown away.
"""

from __future__ import annotations

import secrets
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from licet_adapters.ports import AdapterContext
from licet_attestations import canonical, merkle
from licet_attestations.leaf import Leaf, commit
from licet_attestations.signer.files import make_private_directory
from licet_attestations.signer.keystore import Keystore
from licet_attestations.signer.rules import SignerRules
from licet_attestations.signer.state import CheckpointState, FileStorage
from licet_attestations.warrant import Warrant, read_warrant, sign_warrant

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from licet_adapters.ports import CheckJob, DeploymentJob, TrafficChange, TrainingJob

TENANT = "northbank"
FOREIGN_TENANT = "lakeside"
_START_MS = 1_800_000_000_000
_KEYS_AGE_MS = 86_400_000


class World:
    """One instance of Licet, as far as an adapter can see it.

    Args:
        directory: Scratch, 0700.

    Attributes:
        now_ms: The time; a test may set it.
        signer: The real rules; an adapter's ``SignerPort``.
        directory: Scratch.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.now_ms = _START_MS
        self.keystore = _keystore(directory / "signer", self.now_ms - _KEYS_AGE_MS)
        state = CheckpointState(FileStorage(directory / "signer" / "state"))
        self.signer = SignerRules(self.keystore, state, self.clock)
        self._leaves: dict[str, list[bytes]] = {}
        self._appending = threading.Lock()

    def clock(self) -> int:
        """The world's time."""
        return self.now_ms

    def context(self, name: str) -> AdapterContext:
        """Return what the adapter ``name`` is constructed with; the same folder each time."""
        return AdapterContext(
            data_dir=self.directory / "adapters" / name,
            trust_root=self.keystore.trust_root,
            signer=self.signer,
            clock=self.clock,
        )

    def warrant(
        self,
        action: str,
        adapter: str,
        operation: str,
        *,
        resources: Mapping[str, str],
        parameters: Mapping[str, Any],
        tenant: str = TENANT,
        operation_id: str | None = None,
        step: str = "only",
        attempt: int = 1,
    ) -> bytes:
        """Decide ``action`` with allow, log it, and have a warrant made."""
        operation_id = operation_id or secrets.token_hex(16)
        return self.mint(
            self.decide(
                action,
                operation_id=operation_id,
                resources=resources,
                parameters=parameters,
                tenant=tenant,
                step=step,
            ),
            tenant=tenant,
            adapter=adapter,
            operation=operation,
            step=step,
            attempt=attempt,
            operation_id=operation_id,
            resources=resources,
            parameters=dict(parameters),
        )

    def decide(
        self,
        action: str,
        *,
        operation_id: str,
        resources: Mapping[str, str],
        parameters: Mapping[str, Any],
        tenant: str = TENANT,
        step: str = "only",
    ) -> bytes:
        """The record of a decision about ``action``, fresh, not logged yet."""
        return canonical.dumps(
            {
                "v": 1,
                "id": secrets.token_hex(16),
                "time_ms": self.now_ms,
                "tenant": tenant,
                "principal": {"type": "Person", "id": f"{tenant}/ana"},
                "action": action,
                "resource": {"type": "Dataset", "id": f"{tenant}/any"},
                "context": {},
                "facts": [],
                "facts_version": 1,
                "bundle": "0" * 64,
                "engine": "conformance",
                "decision": "allow",
                "reasons": [],
                "errors": [],
                "observed": [],
                "operation": {
                    "id": operation_id,
                    "step": step,
                    "parameters_digest": canonical.digest_hex(dict(parameters)),
                    "resources": sorted(resources.values()),
                },
                "asked_by": None,
            }
        )

    def warrant_for(
        self,
        action: str,
        adapter: str,
        operation: str,
        job: TrainingJob | CheckJob | DeploymentJob | TrafficChange,
    ) -> bytes:
        """Decide ``action`` with allow and have the very warrant made that a job asks for."""
        return self.warrant(
            action,
            adapter,
            operation,
            resources=job.resources(),
            parameters=job.parameters,
            operation_id=job.operation_id,
            step=job.step,
            attempt=job.attempt,
        )

    def mint(self, record: bytes, *, tenant: str = TENANT, kind: str = "decision", **asked: Any) -> bytes:
        """Log ``record`` as it is and ask for a warrant on it."""
        return self.signer.mint(tenant=tenant, **self.log(record, tenant=tenant, kind=kind), **asked)

    def log(self, record: bytes, *, tenant: str = TENANT, kind: str = "decision") -> dict[str, Any]:
        """Log ``record`` as it is; return what the signer must be shown of it."""
        salt = secrets.token_bytes(32)
        leaf = Leaf(kind, self.now_ms, tenant, tenant, commit(salt, record)).to_bytes()
        index, proof, checkpoint = self.append(tenant, leaf)
        return {
            "leaf": leaf.decode(),
            "leaf_index": index,
            "salt": salt,
            "record": record.decode(),
            "proof": proof,
            "checkpoint": checkpoint,
        }

    def append(self, tenant: str, leaf: bytes) -> tuple[int, list[bytes], str]:
        """Append to the tenant's log; return the index, the proof of inclusion and the signed checkpoint."""
        with self._appending:
            leaves = self._leaves.setdefault(tenant, [])
            leaves.append(merkle.leaf_hash(leaf))

            def hash_at(level: int, index: int) -> bytes:
                return merkle.root(leaves[index << level : (index + 1) << level])

            size = len(leaves)
            consistency = merkle.consistency_proof(size - 1, size, hash_at) if size > 1 else []
            note = self.signer.sign_checkpoint(tenant, size, merkle.root(leaves), consistency)
            return size - 1, merkle.inclusion_proof(size - 1, size, hash_at), note

    def tampered(self, envelope: bytes, **changes: Any) -> bytes:
        """Return the warrant with other fields, signed with the true key: what only a broken signer would make."""
        changed: Warrant = replace(read_warrant(envelope), **changes)
        return sign_warrant(changed, self.keystore.signing_key("warrant"))


def _keystore(directory: Path, now_ms: int) -> Keystore:
    make_private_directory(directory)
    return Keystore.create(directory, instance="conformance", log_origin_prefix="conformance.test", now_ms=now_ms)
