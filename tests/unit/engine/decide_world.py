"""A small world for the tests of decide: our own schema, one tenant, one model that could be promoted."""

from __future__ import annotations

from typing import Any

from licet_engine.decide import CompiledBundle, EntityUid, Fact, FactSet, Request
from licet_policies.schema import load_schema

NOW_MS = 1_800_000_000_000
TENANT = {"type": "Tenant", "id": "northbank"}
ANA = EntityUid("Person", "northbank/ana")
MODEL = EntityUid("ModelVersion", "northbank/credit-risk@1")
RUN = EntityUid("Run", "northbank/run-1")
RESTRICTIONS = {
    "classification": "confidential",
    "protected": True,
    "residency": ["us"],
    "uses": ["credit-risk"],
    "expires_at_ms": NOW_MS + 1_000,
    "held": False,
}
MODEL_ATTRS: dict[str, Any] = {
    "tenant": TENANT,
    "model": {"type": "Model", "id": "northbank/credit-risk"},
    "tier": "high",
    "restrictions": RESTRICTIONS,
    "use": "credit-risk",
    "stage": "none",
    "held": False,
    "authors": [],
    "pipelines": [],
    "binding": "b1",
    "approvals": {},
    "signed": True,
    "checks": {},
}
RUN_ATTRS: dict[str, Any] = {
    "tenant": TENANT,
    "restrictions": RESTRICTIONS,
    "use": "credit-risk",
    "environment": "sandbox",
    "region": "eu",
    "runtime_approved": True,
    "code_approved": True,
    "cost": 1,
    "budget_remaining": 10,
    "authors": [],
    "pipelines": [],
    "state": "proposed",
}


def fact(uid: EntityUid, attrs: dict[str, Any], *roles: str) -> Fact:
    parents = [{"type": "Role", "id": role} for role in roles]
    return Fact.from_entity({"uid": uid.to_json(), "attrs": attrs, "parents": parents})


def facts(
    *,
    roles: tuple[str, ...] = ("data-scientist",),
    model: dict[str, Any] | None = None,
    run: dict[str, Any] | None = None,
) -> FactSet:
    return FactSet(
        [
            fact(EntityUid("Tenant", "northbank"), {"region": "us", "suspended": False}),
            fact(ANA, {"tenant": TENANT, "active": True}, *roles),
            fact(MODEL, {**MODEL_ATTRS, **(model or {})}),
            fact(RUN, {**RUN_ATTRS, **(run or {})}),
        ]
    )


def promote(**context: Any) -> Request:
    return Request(
        ANA, "model.promote", MODEL, {"now_ms": NOW_MS, "claimed": [], "stage": "prod", "region": "us", **context}
    )


def policy(
    policy_id: str, rule: str, *, source: str = "tenant", mode: str = "enforce", notes: str = ""
) -> dict[str, str]:
    return {"id": policy_id, "source": source, "mode": mode, "text": f'@id("{policy_id}") {notes} {rule}'}


def bundle(*policies: dict[str, str], **more: Any) -> dict[str, Any]:
    return {"v": 1, "schema": load_schema(), "policies": list(policies), "packs": [], **more}


def compiled(*policies: dict[str, str], validate: bool = True, **more: Any) -> CompiledBundle:
    return CompiledBundle.compile(bundle(*policies, **more), validate=validate)


PERMIT = policy("p.all", 'permit (principal, action == Action::"model.promote", resource is ModelVersion);')
