"""Contents of evidence archives for the tests of what is made of them: a small made-up log in which every name can be chosen, and
the real log of a database."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, Literal

from sqlalchemy import Engine
from sqlmodel import select

from licet_attestations import canonical, dsse
from licet_attestations.isolation import IsolationCount
from licet_attestations.leaf import Leaf, commit
from licet_attestations.statement import (
    APPROVAL,
    DEPLOYMENT,
    SLSA_PROVENANCE,
    SLSA_VSA,
    TEST_RESULT,
    Statement,
    Subject,
)
from licet_engine.evidence.contents import Scope, Seen
from licet_engine.log import store
from licet_engine.store.db import read_transaction, tenant_session
from licet_engine.store.tables import Attestation, PolicyBundle
from licet_policies.bundle import compose
from licet_policies.packs import PackChoice

BEGAN_MS = 1_795_000_000_000
TENANT = "northbank"


def hexed(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@cache
def composed(mode: Literal["enforce", "observe"], own: str) -> Mapping[str, Any]:
    packs = (PackChoice("sr-11-7", mode=mode), PackChoice("residency", mode=mode, parameters={"regions": ["us"]}))
    return compose(packs, own)


def isolation_of(tenant: str, entries: Iterable[Seen]) -> Mapping[str, Any]:
    count = IsolationCount(tenant)
    for each in entries:
        count.take(each.leaf, each.record)
    return count.answer().to_predicate()


class MadeUp:
    """A log that holds one of everything, with names of one's choice."""

    def __init__(self, name: str = "credit", *, own: str = "", rounds: int = 1, step_ms: int = 60_000) -> None:
        self.name = name
        self.tenant = TENANT
        self.step_ms = step_ms
        self.seen: list[Seen] = []
        self.statements: list[tuple[str, int, Statement]] = []
        self.bundles = {hexed(mode): composed(mode, own) for mode in ("observe", "enforce")}
        self.observing, self.enforcing = self.bundles
        for round_ in range(rounds):
            self._live(round_)

    @property
    def scope(self) -> Scope:
        return Scope(
            instance=self.name,
            tenant=self.tenant,
            origin=f"example/log/{TENANT}",
            first=0,
            end=len(self.seen),
            size=len(self.seen) + 7,
            root_hex=hexed("root"),
            from_ms=BEGAN_MS,
            to_ms=None,
            exported_at_ms=BEGAN_MS + 10**9,
        )

    @property
    def isolation(self) -> Mapping[str, Any]:
        return isolation_of(TENANT, self.seen)

    def entries(self) -> Iterator[Seen]:
        return iter(self.seen)

    def attestations(self) -> Iterator[tuple[str, int, Statement]]:
        return iter(self.statements)

    def bundle(self, digest_hex: str) -> Mapping[str, Any]:
        return self.bundles[digest_hex]

    def add(self, kind: str, record: Mapping[str, Any] | None, actor: str = TENANT) -> int:
        index = len(self.seen)
        leaf = Leaf(kind, BEGAN_MS + index * self.step_ms, actor, TENANT, commit(bytes(32), b""))
        self.seen.append(Seen(index, leaf, record))
        return index

    def decide(
        self,
        action: str,
        word: str,
        *reasons: str,
        bundle: str = "",
        operation: str = "",
        observed: tuple[str, ...] = (),
    ) -> None:
        self.add(
            "decision",
            {
                "v": 1,
                "id": hexed(f"decision {len(self.seen)}")[:32],
                "principal": {"type": "Person", "id": f"{TENANT}/{self.name}"},
                "action": action,
                "resource": {"type": "Model", "id": f"{TENANT}/{self.name}"},
                "bundle": bundle or self.enforcing,
                "decision": word,
                "reasons": list(reasons),
                "observed": list(observed),
                "operation": {"id": operation} if operation else None,
            },
        )

    def attest(self, predicate_type: str, predicate: Mapping[str, Any], *subjects: Subject) -> str:
        claim = Statement(subjects, predicate_type, {"tenant": TENANT, **predicate})
        digest_hex = hexed(f"{predicate_type} {len(self.seen)}")
        told = {
            "v": 1,
            "type": "attestation",
            "digest": digest_hex,
            "predicate_type": predicate_type,
            "operation": self.name,
        }
        self.statements.append((digest_hex, self.add("attestation", told), claim))
        return digest_hex

    def _live(self, round_: int) -> None:
        name = self.name
        version = f"{TENANT}/{name}@{round_ + 1}"
        files = (Subject("model.safetensors", hexed(f"weights {round_}")),)
        model = Subject("model", hexed(f"model {round_}"))
        self.decide(
            "training.launch",
            "allow",
            "role.pipeline.models",
            bundle=self.observing,
            operation=name,
            observed=("sr-11-7.check.bias",),
        )
        self.add(
            "operation",
            {"action": "training.launch", "operation": name, "resource": name, "state": "done", "error": None},
        )
        self.attest(
            SLSA_PROVENANCE,
            {
                "buildDefinition": {
                    "externalParameters": {"run": f"{TENANT}/{name}"},
                    "resolvedDependencies": [
                        {"name": "dataset", "uri": f"licet:{TENANT}/{name}", "digest": {"sha256": hexed("rows")}}
                    ],
                },
                "runDetails": {"metadata": {"finishedOn": "2026-11-27T03:00:00.000Z"}},
            },
            *files,
        )
        self.attest(
            TEST_RESULT,
            {"version": version, "result": "PASSED", "passedTests": [name], "failedTests": []},
            *files,
            model,
        )
        self.decide("model.promote", "deny", "guardrail.approvals.bound", "sr-11-7.check.bias", name)
        verdict = {
            "event": "approval",
            "version": version,
            "track": name,
            "verdict": "approved",
            "approver": f"{TENANT}/{name}",
            "reason": name,
        }
        self.add("approval", verdict | {"binding": hexed("binding")})
        self.attest(APPROVAL, {**verdict, "at": name}, model)
        self.add(
            "approval",
            {"event": "approval-voided", "version": version, "track": name, "changed": [name], "approval": name},
        )
        self.decide("model.promote", "allow", "role.pipeline.models", operation=name)
        self.attest(
            SLSA_VSA,
            {
                "resourceUri": f"licet:{version}",
                "verifiedLevels": ["LICET_STAGE_PROD"],
                "verificationResult": "PASSED",
                "region": name,
            },
            *files,
            model,
        )
        self.attest(
            DEPLOYMENT,
            {"version": version, "event": "deployed", "endpoint": f"{TENANT}/{name}", "strategy": name},
            *files,
            model,
        )
        self.add(
            "traffic",
            {"kind": "rolled-back", "endpoint": name, "operation_id": name, "cause": {"kind": "drift", "detail": name}},
        )
        self.attest(
            DEPLOYMENT,
            {"event": "rolled-back", "endpoint": name, "cause": {"kind": "drift"}, "version": version},
            Subject(version, model.sha256_hex),
        )
        tried = {
            "principal": {"type": "Person", "id": f"lakeside/{name}"},
            "resource": name,
            "decision": "deny",
            "action": "dataset.read",
        }
        self.add("attempt", tried, actor="lakeside")
        self.add(
            "attempt",
            {"action": "tenant.break-glass", "decision": "allow", "resource": name, "principal": name},
            actor="platform",
        )
        self.add(
            "break-glass", {"event": "looked", "by": "platform/otto", "what": name, "reason": name}, actor="platform"
        )
        self.add("hold", {"event": "hold-placed", "kind": "Dataset", "name": name, "reason": name})
        self.add(
            "policy", {"event": "policy-activated", "bundle": self.enforcing, "before": self.observing, "by": name}
        )
        self.add(
            "operation",
            {
                "action": "model.register",
                "operation": name,
                "resource": name,
                "state": "failed",
                "error": {"code": name, "message": name},
            },
        )
        self.add("people", {"event": name, "subject": name})
        self.add("decision", None)
        self.add("facts", None)


class Stored:
    """What a log holds that stands in a database, all of it."""

    def __init__(self, engine: Engine, tenant: str, origin: str) -> None:
        self._engine = engine
        with read_transaction(engine, tenant) as connection:
            head = store.read_head(connection, tenant)
        self.scope = Scope(
            instance=origin.partition("/")[0],
            tenant=tenant,
            origin=origin,
            first=0,
            end=head.size,
            size=head.size,
            root_hex=head.root.hex(),
            from_ms=None,
            to_ms=None,
            exported_at_ms=head.last_time_ms,
        )
        self.isolation = isolation_of(tenant, self.entries())

    def entries(self) -> Iterator[Seen]:
        for first in range(0, self.scope.size, 500):
            with read_transaction(self._engine, self.scope.tenant) as connection:
                found = store.read_entries(connection, self.scope.tenant, first, min(500, self.scope.size - first))
            for each in found:
                yield Seen(each.index, each.leaf, None if each.record is None else canonical.loads(each.record))

    def attestations(self) -> Iterator[tuple[str, int, Statement]]:
        for seen in self.entries():
            if seen.leaf.kind == "attestation" and seen.record is not None:
                digest_hex = seen.record["digest"]
                with tenant_session(self._engine, self.scope.tenant) as session:
                    row = session.exec(select(Attestation).where(Attestation.digest_hex == digest_hex)).one()
                payload = dsse.Envelope.from_json(row.envelope.encode()).payload
                yield digest_hex, seen.index, Statement.from_bytes(payload)

    def bundle(self, digest_hex: str) -> Mapping[str, Any]:
        with tenant_session(self._engine, self.scope.tenant) as session:
            row = session.exec(select(PolicyBundle).where(PolicyBundle.digest_hex == digest_hex)).one()
        document: Mapping[str, Any] = canonical.loads(row.body, max_bytes=len(row.body))
        return document
