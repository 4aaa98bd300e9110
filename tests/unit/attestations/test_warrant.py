"""A warrant permits exactly one act, now: forged, expired, unlogged, and for another anything, it is refused with the reason."""

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import pytest

from licet_attestations import canonical, statement
from licet_attestations.errors import FormatError, WarrantError
from licet_attestations.keys import P256, PrivateKey
from licet_attestations.warrant import (
    MAX_CLOCK_SKEW_MS,
    MAX_LIFETIME_MS,
    OPERATIONS_OF,
    Warrant,
    read_warrant,
    sign_warrant,
    verify_warrant,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

World = Any
PARAMETERS = {"epochs": 3}
RESOURCES = {"dataset": "2" * 64}


@pytest.fixture
def decided(empty_world: World) -> World:
    empty_world.decide("allow", "training.launch")
    empty_world.decide("deny", "dataset.delete")
    return empty_world


def check(world: World, envelope: bytes, **changes: Any) -> Warrant:
    arguments: dict[str, Any] = {
        "trust": world.trust,
        "adapter": "local-training",
        "operation": "training.run",
        "parameters": PARAMETERS,
        "resources": RESOURCES,
        "now_ms": world.now_ms,
    }
    return verify_warrant(envelope, **(arguments | changes))


def reason(world: World, envelope: bytes, **changes: Any) -> str:
    with pytest.raises(WarrantError) as caught:
        check(world, envelope, **changes)
    assert caught.value.code == f"warrant.{caught.value.reason}"
    return caught.value.reason


def test_a_warrant_permits_what_it_names(decided: World) -> None:
    warrant = decided.make_warrant(0)
    envelope = sign_warrant(warrant, decided.warrant)
    assert check(decided, envelope) == warrant == read_warrant(envelope)
    assert json.loads(warrant.to_statement().to_bytes())["predicateType"] == "urn:licet:warrant:v1"


def test_another_act_is_refused_with_the_reason(decided: World) -> None:
    envelope = sign_warrant(decided.make_warrant(0), decided.warrant)
    assert reason(decided, envelope, adapter="other-training") == "other-adapter"
    assert reason(decided, envelope, operation="objects.get") == "other-operation"
    assert reason(decided, envelope, parameters={"epochs": 4}) == "other-parameter"
    assert reason(decided, envelope, parameters={}) == "other-parameter"
    for resources in ({}, {"dataset": "3" * 64}, {"data": "2" * 64}, RESOURCES | {"more": "2" * 64}):
        assert reason(decided, envelope, resources=resources) == "other-resource"


def test_an_operation_that_the_action_does_not_lead_to_is_refused(decided: World) -> None:
    envelope = sign_warrant(decided.make_warrant(0, operation="registry.delete"), decided.warrant)
    assert reason(decided, envelope, operation="registry.delete") == "other-operation"
    envelope = sign_warrant(decided.make_warrant(0, action="no.such"), decided.warrant)
    assert reason(decided, envelope) == "other-operation"


def test_time(decided: World) -> None:
    warrant = decided.make_warrant(0)
    envelope = sign_warrant(warrant, decided.warrant)
    check(decided, envelope, now_ms=warrant.expires_at_ms - 1)
    check(decided, envelope, now_ms=warrant.issued_at_ms - MAX_CLOCK_SKEW_MS)
    assert reason(decided, envelope, now_ms=warrant.expires_at_ms) == "expired"
    assert reason(decided, envelope, now_ms=warrant.issued_at_ms - MAX_CLOCK_SKEW_MS - 1) == "expired"


def test_forged(decided: World) -> None:
    warrant = decided.make_warrant(0)
    good = sign_warrant(warrant, decided.warrant)
    for envelope in (
        sign_warrant(warrant, PrivateKey.generate(P256)),
        sign_warrant(warrant, decided.attestation),
        b"",
        b"{}",
        b"x" * 300_000,
        good[:-1],
        good + b" ",
        decided.sign_export(decided.make_warrant(0).to_statement().to_bytes()),
    ):
        assert reason(decided, envelope) == "forged"
    decided.retired_ms["warrant"] = decided.now_ms
    assert reason(decided, good) == "forged"


def test_a_statement_of_another_type_by_the_warrant_key_is_no_warrant(decided: World) -> None:
    claim = decided.make_warrant(0).to_statement()
    world = dataclasses.replace(decided, attestation=decided.warrant)
    other = dataclasses.replace(claim, predicate_type=statement.APPROVAL)
    assert reason(decided, world.sign_export(other.to_bytes())) == "forged"


def test_unlogged(decided: World) -> None:
    other_log = dataclasses.replace(decided, log=PrivateKey.generate("ed25519"))
    other_leaf = dataclasses.replace(decided.leaves[0], time_ms=1).to_bytes().decode()
    deny_as_hold = dataclasses.replace(decided.leaves[0], kind="hold").to_bytes().decode()
    index_1 = dataclasses.replace(decided.make_warrant(0).decision, leaf_index=1)
    for changes in (
        {"log_proof": other_log.tlog_proof(0)},
        {"log_proof": decided.tlog_proof(1)},
        {"log_proof": "none"},
        {"leaf": other_leaf},
        {"leaf": deny_as_hold},
        {"leaf": "{}"},
        {"decision": index_1},
        {"tenant": "lakeside"},
    ):
        envelope = sign_warrant(decided.make_warrant(0, **changes), decided.warrant)
        assert reason(decided, envelope) == "unlogged", changes


def test_a_logged_entry_that_is_no_decision_of_the_tenant(decided: World) -> None:
    for kind, owner in (("hold", "northbank"), ("decision", "lakeside")):
        index = decided.append(kind, {"type": kind}, owner=owner)
        decision = dataclasses.replace(decided.make_warrant(0).decision, leaf_index=index)
        fields: Mapping[str, Any] = {
            "decision": decision,
            "leaf": decided.leaves[index].to_bytes().decode(),
            "log_proof": decided.tlog_proof(index),
        }
        assert reason(decided, sign_warrant(decided.make_warrant(0, **fields), decided.warrant)) == "unlogged"


@pytest.mark.parametrize(
    "changes",
    [
        {"id": ""},
        {"id": "a b"},
        {"tenant": "North Bank"},
        {"attempt": 0},
        {"attempt": True},
        {"issued_at_ms": -1},
        {"expires_at_ms": 0},
        {"principal": ""},
        {"resources": {"a": ""}},
        {"resources": {str(i): "x" for i in range(300)}},
        {"parameters_digest_hex": "00"},
    ],
)
def test_what_is_no_warrant_is_not_made(decided: World, changes: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        decided.make_warrant(0, **changes)


def test_a_warrant_lives_five_minutes_at_most(decided: World) -> None:
    now_ms = decided.now_ms
    decided.make_warrant(0, issued_at_ms=now_ms, expires_at_ms=now_ms + MAX_LIFETIME_MS)
    with pytest.raises(FormatError):
        decided.make_warrant(0, issued_at_ms=now_ms, expires_at_ms=now_ms + MAX_LIFETIME_MS + 1)


@pytest.mark.parametrize("change", [{"v": 2}, {"more": 1}, {"decision": {}}, {"resources": []}, {"step": "other"}])
def test_a_statement_that_is_no_warrant_is_refused(decided: World, change: dict[str, Any]) -> None:
    claim = decided.make_warrant(0).to_statement()
    changed = dataclasses.replace(claim, predicate=dict(claim.predicate) | change)
    with pytest.raises(FormatError):
        Warrant.from_statement(statement.Statement.from_bytes(changed.to_bytes()))


def test_every_operation_belongs_to_an_adapter() -> None:
    assert all(OPERATIONS_OF.values())
    for action, operations in OPERATIONS_OF.items():
        assert all("." in name for name in (action, *operations))
    assert canonical.dumps(sorted(OPERATIONS_OF)) != b"[]"
