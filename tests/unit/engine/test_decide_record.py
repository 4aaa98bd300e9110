"""A decision again, from its record alone, and what a false record cannot hide."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from licet_attestations import canonical
from licet_engine.decide import (
    Decision,
    EntityUid,
    RecordError,
    ReplayMismatch,
    Request,
    build_record,
    decide,
    parse_record,
    recorded_request,
    replay,
)

# Test files are imported each by itself; the world they share stands beside them.
sys.path.append(str(Path(__file__).parent))
from decide_world import ANA, MODEL, PERMIT, bundle, compiled, facts, policy, promote  # The line above finds it.

FORBID = policy(
    "f.region",
    'forbid (principal, action == Action::"model.promote", resource is ModelVersion)'
    " unless { resource.restrictions.residency.contains(context.region) };",
)
POLICIES = [PERMIT, FORBID, policy("f.seen", "forbid (principal, action, resource);", mode="observe")]
BUNDLE = bundle(*POLICIES)


def record_of(request: Request, decision: Decision | None = None) -> bytes:
    ready, world = compiled(*POLICIES), facts()
    return build_record(
        decision_id="01" * 16,
        time_ms=1,
        tenant="northbank",
        request=request,
        decision=decision or decide(ready, request, world),
        facts=world,
        facts_version=1,
        bundle_hex=ready.digest_hex,
    )


def known() -> dict[str, bytes]:
    return {fact.digest_hex: fact.data for fact in facts()}


@pytest.mark.parametrize("region", ["us", "eu"])
def test_a_decision_is_made_again_from_its_record(region: str) -> None:
    data = record_of(promote(region=region))
    for given in (canonical.dumps(BUNDLE), compiled(*POLICIES)):
        decision = replay(data, known(), given)
        assert decision.allowed == (region == "us")
        assert decision.observed == ("f.seen",)
    assert recorded_request(parse_record(data)) == promote(region=region)


@pytest.mark.parametrize(
    ("claimed", "differs"),
    [
        (Decision(allowed=True, reasons=("p.all",), observed=("f.seen",)), ("decision", "reasons")),
        (Decision(allowed=False, reasons=("f.other",), observed=("f.seen",)), ("reasons",)),
        (Decision(allowed=False, reasons=("f.region",), errors=("f.seen",), observed=("f.seen",)), ("errors",)),
        (Decision(allowed=False, reasons=("f.region",)), ("observed",)),
    ],
)
def test_a_forged_record_shows(claimed: Decision, differs: tuple[str, ...]) -> None:
    with pytest.raises(ReplayMismatch) as caught:
        replay(record_of(promote(region="eu"), claimed), known(), canonical.dumps(BUNDLE))
    assert caught.value.differs == differs


def test_replay_trusts_neither_bundle_nor_facts() -> None:
    data, other = record_of(promote()), canonical.dumps(bundle(PERMIT))
    for given in (other, compiled(PERMIT)):
        with pytest.raises(ReplayMismatch, match="names bundle") as caught:
            replay(data, known(), given)
        assert caught.value.differs == ("bundle",)
    some = known()
    name = next(iter(some))
    for wrong in ({}, some | {name: some[name] + b" "}):
        with pytest.raises(ReplayMismatch) as caught:
            replay(data, wrong, canonical.dumps(BUNDLE))
        assert caught.value.differs == ("facts",)


@pytest.mark.parametrize(
    "request_",
    [
        promote(now_ms=0.5),
        promote(stage="\ud800"),
        Request(EntityUid("Person", "\udcff"), "model.\ud800", MODEL, {}),
        Request(ANA, "unheard-of", MODEL, {}),
        Request(EntityUid("Person", 'q"\\\u00e9\x01\x7f'), "model.promote", MODEL, dict(promote().context)),
    ],
)
def test_what_a_caller_got_wrong_is_recorded_and_denied_again(request_: Request) -> None:
    data = record_of(request_)
    assert canonical.loads(data, canonical=True)["decision"] == ("allow" if "q" in request_.principal.id else "deny")
    replay(data, known(), canonical.dumps(BUNDLE))


@pytest.mark.parametrize(
    "change",
    [{"v": 2}, {"decision": "maybe"}, {"facts": [1]}, {"context": 3}, {"action": None}, {"reasons": None}, {"more": 1}],
)
def test_what_is_no_record_is_refused(change: dict[str, Any]) -> None:
    record = canonical.loads(record_of(promote()))
    with pytest.raises(RecordError):
        replay(canonical.dumps(record | change), known(), canonical.dumps(BUNDLE))


def test_a_record_without_entities_or_canonical_form_is_refused() -> None:
    record = canonical.loads(record_of(promote()))
    with pytest.raises(RecordError, match="principal or resource"):
        replay(canonical.dumps(record | {"principal": "ana"}), known(), canonical.dumps(BUNDLE))
    for data in (b"{", record_of(promote()) + b"\n"):
        with pytest.raises(RecordError, match="canonical"):
            replay(data, known(), canonical.dumps(BUNDLE))
