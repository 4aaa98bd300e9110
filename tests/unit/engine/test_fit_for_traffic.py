"""What `traffic._is_fit` says of a version in numbers is what the guardrails say of deploying it in words."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from sqlmodel import select

from licet_engine.decide import CompiledBundle, EntityUid, Fact, FactSet, Request
from licet_engine.decide.decision import decide
from licet_engine.lifecycle.deploying import context_of_deployment
from licet_engine.lifecycle.facts import View
from licet_engine.lifecycle.traffic import unfit
from licet_engine.store import db, tables
from licet_policies import compose

if TYPE_CHECKING:
    from databases import Database

T = {"tenant_id": "northbank"}
NOW_MS = 1_800_000_000_000
CI = EntityUid("ServiceAccount", "northbank/ci")
STAGES = ("none", "staging", "prod", "retired")
APPROVALS = ("none", "standing", "of another binding", "expired", "withdrawn", "of who left")
ENDPOINT = tables.Endpoint(
    **T, name="e", model="m", region="us", use="u", state="live", weights={}, created_at_ms=1, updated_at_ms=1
)


BEHIND = (
    tables.Tenant(**T, region="us", created_at_ms=1),
    tables.Principal(**T, name="ci", kind="service", roles=["pipeline"], created_at_ms=1),
    tables.Principal(**T, name="mei", kind="person", created_at_ms=1),
    tables.Dataset(
        **T,
        name="d",
        registered_by="mei",
        registered_by_kind="person",
        classification="internal",
        residency=["us"],
        uses=["u"],
        expires_at_ms=NOW_MS + 1,
        object_id="o",
        digest_hex="00",
        state="ready",
        created_at_ms=1,
    ),
    tables.ModelVersion(
        **T, model="m", version=1, run="r", tier="high", use="u", datasets=["d"], state="ready", created_at_ms=1
    ),
)


def given(binding: str, approval: str) -> list[tables.Approval]:
    """An approval of the version that counts, or for one reason does not; or none."""
    if approval == "none":
        return []
    return [
        tables.Approval(
            **T,
            id=approval,
            model="m",
            version=1,
            track="model-risk",
            binding="other" if approval == "of another binding" else binding,
            verdict="approved",
            approver="mei",
            at_ms=1,
            withdrawn_at_ms=2 if approval == "withdrawn" else None,
            expires_at_ms=NOW_MS if approval == "expired" else NOW_MS + 1,
        )
    ]


def holds(*, held: bool) -> list[tables.Hold]:
    of = {"id": "h", "resource_type": "ModelVersion", "resource_name": "m@1"}
    return [tables.Hold(**T, **of, reason="suit", placed_by="mei", placed_at_ms=1)] if held else []


def may_be_deployed(view: View, compiled: CompiledBundle) -> bool:
    """What policy says of deploying the version as it stands."""
    version, account = view.model_version("m", 1), view.principal("ci")
    assert version is not None
    assert account is not None
    resource = view.endpoint_entity(ENDPOINT, version)
    entities = (view.tenant_entity(), view.principal_entity(account), resource, view.model_version_entity(version))
    context = {**context_of_deployment(version, "us", "direct", alarmed=True), "claimed": [], "now_ms": NOW_MS}
    request = Request(CI, "endpoint.deploy", EntityUid.from_json(resource["uid"]), context)
    decision = decide(compiled, request, FactSet(Fact.from_entity(entity) for entity in entities))
    assert decision.errors == ()
    return decision.allowed


def test_traffic_is_shifted_to_what_could_be_deployed_and_to_nothing_else(prepared: Database) -> None:
    compiled = CompiledBundle.compile(compose(), validate=False)
    engine = prepared.open()
    seen = set()
    with db.tenant_session(engine, "northbank", write=True) as session:
        for row in BEHIND:
            session.add(type(row)(**row.model_dump()))
            session.flush()
        tenant = session.exec(select(tables.Tenant)).one()
        view = View(session, tenant, facts_version=1, policy_digest_hex="22", now_ms=NOW_MS)
        version, reviewer = view.model_version("m", 1), view.principal("mei")
        assert version is not None
        assert reviewer is not None
        for stage, approval, signed, held in product(STAGES, APPROVALS, (True, False), (True, False)):
            version.stage, version.signed, reviewer.active = stage, signed, approval != "of who left"
            passing = [*given(view.binding(version), approval), *holds(held=held)]
            session.add_all([version, reviewer, *passing])
            session.flush()
            is_fit = unfit(view, ENDPOINT, {"1": 100}, "") == 0
            assert is_fit == may_be_deployed(view, compiled), (stage, approval, signed, held)
            seen.add(is_fit)
            for row in passing:
                session.delete(row)
            session.flush()
    engine.dispose()
    assert seen == {True, False}
