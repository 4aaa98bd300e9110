"""Single attestations: what the signer makes of log entries, and what the offline verifier accepts of any kind."""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from licet_adapters.conformance.world import FOREIGN_TENANT, TENANT, World
from licet_attestations import attested, canonical, dsse, logged, oms, rotation, statement
from licet_attestations.errors import SignerRefused, VerificationError
from licet_attestations.keys import ED25519, P256, PrivateKey
from licet_attestations.leaf import Leaf, commit
from licet_attestations.statement import DECISION, POLICY, Statement, Subject
from licet_attestations.tlogproof import TlogProof
from licet_attestations.trustroot import Purpose, TrustedKey, TrustRoot

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DECIDED = {"v": 1, "id": "d1", "time_ms": 7, "tenant": TENANT, "action": "model.promote", "decision": "deny"}
ACTIVATED = {
    "v": 1,
    "type": "policy",
    "event": "policy-activated",
    "bundle": "b" * 64,
    "before": None,
    "by": f"{TENANT}/sam",
    "decision": "d1",
    "time_ms": 7,
}


MOVED = {
    "v": 1,
    "type": "traffic",
    "endpoint": f"{TENANT}/scoring",
    "kind": "rolled-back",
    "operation_id": "o1",
    "weights": {"1": 100},
    "shadow": "",
    "cause": {"alarm": "drift"},
    "at_ms": 6,
    "serial": 1,
    "time_ms": 7,
}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    return World(tmp_path / "world")


def entry(world: World, kind: str, record: dict[str, Any], tenant: str = TENANT) -> dict[str, Any]:
    """An entry that is logged, as the signer is told of it."""
    salt, text = secrets.token_bytes(32), canonical.dumps(record)
    leaf = Leaf(kind, world.now_ms, tenant, tenant, commit(salt, text)).to_bytes()
    index, proof, note = world.append(tenant, leaf)
    return {
        "tenant": tenant,
        "leaf": leaf.decode(),
        "leaf_index": index,
        "salt": salt,
        "record": text.decode(),
        "proof": proof,
        "checkpoint": note,
    }


def claim_of(envelope: bytes) -> Statement:
    return Statement.from_bytes(dsse.Envelope.from_json(envelope).payload)


def signed(world: World, claim: Statement, purpose: Any = "attestation") -> bytes:
    """Signed without being looked at, as the signer never would."""
    return dsse.sign(claim.to_bytes(), dsse.IN_TOTO_PAYLOAD_TYPE, world.keystore.signing_key(purpose)).to_json()


def test_a_logged_decision_is_attested_with_its_proof_and_a_deny_as_well(world: World) -> None:
    envelope = world.signer.attest_entry(**entry(world, "decision", DECIDED))
    found = attested.verify_attestation(envelope, world.keystore.trust_root)
    assert found.claim.predicate_type == DECISION
    assert found.claim.subject[0].name == "decision/d1"
    assert found.claim.predicate["record"] == DECIDED
    assert "its entry is in the log" in found.shown[0]


def test_policies_that_came_into_force_are_attested_by_the_bundles_digest(world: World) -> None:
    for event, told in (("policy-activated", "activated"), ("policy-rolled-back", "rolled-back")):
        envelope = world.signer.attest_entry(**entry(world, "policy", ACTIVATED | {"event": event}))
        claim = attested.verify_attestation(envelope, world.keystore.trust_root).claim
        assert (claim.predicate_type, claim.subject) == (POLICY, (Subject("policy-bundle", "b" * 64),))
        assert (claim.predicate["event"], claim.predicate["by"]) == (told, f"{TENANT}/sam")


def test_traffic_that_an_alarm_returned_is_attested_with_its_cause(world: World) -> None:
    envelope = world.signer.attest_entry(**entry(world, "traffic", MOVED))
    claim = attested.verify_attestation(envelope, world.keystore.trust_root).claim
    assert (claim.predicate_type, claim.subject[0].name) == (statement.TRAFFIC, f"{TENANT}/scoring")
    assert (claim.predicate["event"], claim.predicate["cause"]) == ("rolled-back", {"alarm": "drift"})


@pytest.mark.parametrize(
    ("kind", "record"),
    [
        ("traffic", MOVED | {"kind": "other"}),
        ("hold", DECIDED),
        ("attempt", DECIDED),
        ("attestation", DECIDED),
        ("decision", {"v": 1}),
        ("policy", ACTIVATED | {"event": "policy-published"}),
        ("policy", ACTIVATED | {"bundle": "b"}),
    ],
)
def test_other_entries_are_not_attested_by_themselves(world: World, kind: str, record: dict[str, Any]) -> None:
    with pytest.raises(SignerRefused) as refused:
        world.signer.attest_entry(**entry(world, kind, record))
    assert refused.value.code == "signer.predicate"


def test_what_is_not_proved_to_be_logged_is_not_attested(world: World) -> None:
    right = entry(world, "decision", DECIDED)
    later = entry(world, "decision", DECIDED)
    third = World(world.directory / "third")
    wrong: dict[str, dict[str, Any]] = {
        "another record": {"record": canonical.dumps(DECIDED | {"decision": "allow"}).decode()},
        "another salt": {"salt": bytes(32)},
        "another index": {"leaf_index": 1},
        "another's log": {"tenant": FOREIGN_TENANT},
        "a later checkpoint with an older proof": {"checkpoint": later["checkpoint"]},
        "another signer's checkpoint": {"checkpoint": third.append(TENANT, right["leaf"].encode())[2]},
        "no checkpoint": {"checkpoint": ""},
    }
    assert world.signer.attest_entry(**right)
    for what, change in wrong.items():
        with pytest.raises(SignerRefused) as refused:
            world.signer.attest_entry(**(right | change))
        assert refused.value.code == "signer.unlogged", what


@pytest.mark.parametrize("predicate_type", sorted(logged.KINDS))
def test_nobody_has_a_statement_of_an_entry_signed_as_it_comes(world: World, predicate_type: str) -> None:
    claim = Statement((Subject("decision/d1", "1" * 64),), predicate_type, {"tenant": TENANT})
    with pytest.raises(SignerRefused) as refused:
        world.signer.attest(TENANT, claim.to_bytes())
    assert refused.value.code == "signer.predicate"


def test_a_statement_that_says_something_else_than_its_entry_is_refused_though_it_is_signed(world: World) -> None:
    trust = world.keystore.trust_root
    for kind, record, changes in (
        ("decision", DECIDED, {"record": DECIDED | {"decision": "allow"}}),
        ("decision", DECIDED, {"tenant": FOREIGN_TENANT}),
        ("decision", DECIDED, {"salt": "00"}),
        ("decision", DECIDED, {"more": 1}),
        ("traffic", MOVED, {"cause": {}}),
        ("policy", ACTIVATED, {"by": f"{TENANT}/eve"}),
        ("policy", ACTIVATED, {"bundle": "c" * 64}),
        ("policy", ACTIVATED, {"event": "rolled-back"}),
    ):
        claim = claim_of(world.signer.attest_entry(**entry(world, kind, record)))
        attested.verify_attestation(signed(world, claim), trust)
        with pytest.raises(VerificationError):
            attested.verify_attestation(signed(world, replace(claim, predicate=dict(claim.predicate) | changes)), trust)
    other = replace(claim, subject=(Subject("policy-bundle", "d" * 64),))
    with pytest.raises(VerificationError, match="something else"):
        attested.verify_attestation(signed(world, other), trust)


def test_a_key_of_another_purpose_or_of_nobody_signs_nothing(world: World) -> None:
    trust = world.keystore.trust_root
    claim = Statement((Subject("model", "1" * 64),), statement.APPROVAL, {"tenant": TENANT})
    assert attested.verify_attestation(signed(world, claim), trust).keyid == trust.keys("attestation")[0].keyid
    for purpose in ("warrant", "model"):
        with pytest.raises(VerificationError, match="no pinned attestation key"):
            attested.verify_attestation(signed(world, claim, purpose), trust)
    stranger = dsse.sign(claim.to_bytes(), dsse.IN_TOTO_PAYLOAD_TYPE, PrivateKey.generate(P256)).to_json()
    with pytest.raises(VerificationError):
        attested.verify_attestation(stranger, trust)


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b'{"dsseEnvelope":{}}', b'{"payload":"","payloadType":"x"}', b"{" * 99]
)
def test_what_is_no_attestation_is_refused(world: World, data: bytes) -> None:
    with pytest.raises(VerificationError):
        attested.verify_attestation(data, world.keystore.trust_root)


def test_a_sigstore_bundle_of_it_is_verified_alike_whatever_its_hint(world: World) -> None:
    trust = world.keystore.trust_root
    claim = Statement((Subject("model", "1" * 64),), statement.APPROVAL, {"tenant": TENANT})
    bundle = oms.bundle_of(dsse.Envelope.from_json(signed(world, claim)), PrivateKey.generate(P256).public)
    assert attested.verify_attestation(bundle, trust).claim == claim


def _entry_that_names(world: World, digest_hex: str, **changes: Any) -> logged.LoggedEntry:
    tenant = changes.pop("tenant", TENANT)
    kind = changes.pop("kind", "attestation")
    told = entry(world, kind, {"v": 1, "type": "attestation", "digest": digest_hex}, tenant)
    proof = TlogProof(told["leaf_index"], tuple(told["proof"]), told["checkpoint"]).to_text()
    return logged.LoggedEntry(tenant, told["leaf"], told["salt"], told["record"].encode(), proof)


def test_an_attestation_is_shown_to_be_logged_by_the_entry_that_names_it_and_no_other(world: World) -> None:
    trust = world.keystore.trust_root
    claim = Statement((Subject("model", "1" * 64),), statement.APPROVAL, {"tenant": TENANT})
    found = attested.verify_attestation(signed(world, claim), trust)
    right = _entry_that_names(world, found.digest_hex)
    told = attested.verify_attestation(signed(world, claim), trust, right)
    assert told.leaf is not None
    assert told.leaf.kind == "attestation"
    wrong = (
        _entry_that_names(world, "0" * 64),
        _entry_that_names(world, found.digest_hex, kind="decision"),
        _entry_that_names(world, found.digest_hex, tenant=FOREIGN_TENANT),
        replace(right, salt=bytes(32)),
        replace(right, log_proof=_entry_that_names(world, found.digest_hex).log_proof),
    )
    for one in wrong:
        with pytest.raises(VerificationError) as refused:
            attested.verify_attestation(signed(world, claim), trust, one)
        assert refused.value.step == "log entry"


def test_a_key_that_did_not_count_when_it_was_logged_is_refused(world: World) -> None:
    trust = world.keystore.trust_root
    claim = Statement((Subject("model", "1" * 64),), statement.APPROVAL, {"tenant": TENANT})
    envelope = signed(world, claim)
    right = _entry_that_names(world, attested.verify_attestation(envelope, trust).digest_hex)
    time_ms = json.loads(right.leaf)["time_ms"]
    for window, is_fine in (((0, time_ms + 1), True), ((0, time_ms), False), ((time_ms + 1, None), False)):
        keys = tuple(
            replace(k, valid_from_ms=window[0], valid_until_ms=window[1]) if k.purpose == "attestation" else k
            for k in trust.trusted
        )
        if is_fine:
            assert attested.verify_attestation(envelope, replace(trust, trusted=keys), right)
            continue
        with pytest.raises(VerificationError, match="did not count"):
            attested.verify_attestation(envelope, replace(trust, trusted=keys), right)


def _lost(trust: TrustRoot, purpose: Purpose, from_ms: int) -> TrustRoot:
    """The trust root in which the only key for a purpose ended and is compromised, and another signs since."""
    made = PrivateKey.generate(ED25519 if purpose == "log" else P256).public
    keys = [
        replace(k, valid_until_ms=2**52, compromised_from_ms=from_ms) if k.purpose == purpose else k
        for k in trust.trusted
    ]
    return replace(trust, trusted=(*keys, TrustedKey(made, purpose, 0)))


def test_what_a_compromised_key_signed_counts_only_with_an_entry_from_before(world: World) -> None:
    trust = world.keystore.trust_root
    envelope = signed(world, Statement((Subject("model", "1" * 64),), statement.APPROVAL, {"tenant": TENANT}))
    right = _entry_that_names(world, attested.verify_attestation(envelope, trust).digest_hex)
    time_ms = json.loads(right.leaf)["time_ms"]
    before, after = (_lost(trust, "attestation", at_ms) for at_ms in (time_ms, time_ms + 1))
    for lost in (before, after):
        with pytest.raises(VerificationError, match="is compromised"):
            attested.verify_attestation(envelope, lost)
    assert attested.verify_attestation(envelope, after, right).leaf is not None
    with pytest.raises(VerificationError, match="did not count"):
        attested.verify_attestation(envelope, before, right)
    # The proof of the entry itself must come from a key that is none.
    with pytest.raises(VerificationError, match="no pinned log key"):
        attested.verify_attestation(envelope, _lost(trust, "log", time_ms + 1), right)


def test_a_rotation_of_the_key_for_attestations_is_logged_when_the_new_key_counts(world: World) -> None:
    before, new = world.keystore.trust_root, PrivateKey.generate(P256)
    after = rotation.rotated(before, "attestation", new.public, world.now_ms - 1)
    claim = rotation.rotation_statement(before, after, "attestation")
    envelope = rotation.sign(claim, [*world.keystore.signing_keys(), new])
    named = _entry_that_names(world, hashlib.sha256(claim.to_bytes()).hexdigest(), tenant="platform")
    found = attested.verify_attestation(envelope, after, named)
    assert found.keyid == new.keyid
    with pytest.raises(VerificationError, match="did not count"):
        attested.verify_attestation(rotation.sign(claim, world.keystore.signing_keys()), after, named)


@pytest.mark.parametrize(
    "predicate",
    [
        {"bomFormat": "CycloneDX", "metadata": {"properties": []}},
        {"bomFormat": "CycloneDX", "metadata": {"properties": [{"name": "licet:tenant", "value": FOREIGN_TENANT}]}},
        {
            "bomFormat": "CycloneDX",
            "metadata": {
                "properties": [
                    {"name": "licet:tenant", "value": TENANT},
                    {"name": "licet:tenant", "value": FOREIGN_TENANT},
                ]
            },
        },
    ],
)
def test_a_bill_of_materials_says_whose_it_is_once(world: World, predicate: dict[str, Any]) -> None:
    claim = Statement((Subject("model", "1" * 64),), statement.CYCLONEDX, predicate)
    with pytest.raises(SignerRefused) as refused:
        world.signer.attest(TENANT, claim.to_bytes())
    assert refused.value.code == "signer.tenant"
