"""What the signer refuses, rule by rule, over real keys, a real tree and a settable clock."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import pytest

from licet_adapters.conformance.world import FOREIGN_TENANT, TENANT, World
from licet_attestations import canonical, dsse, merkle, oms, statement
from licet_attestations.checkpoint import verify_checkpoint
from licet_attestations.errors import FormatError, SignerRefused, WarrantError
from licet_attestations.leaf import Leaf, commit
from licet_attestations.signer import aead
from licet_attestations.warrant import MAX_LIFETIME_MS, read_warrant, verify_warrant

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OBJECT_ID = f"{TENANT}/hmda"
PARAMETERS = {"rows": 2925}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    return World(tmp_path / "world")


OPERATION = {
    "id": "op-1",
    "step": "put",
    "parameters_digest": canonical.digest_hex(PARAMETERS),
    "resources": ["a" * 64, OBJECT_ID, f"{TENANT}/risk@1"],
}


def record(world: World, **changes: Any) -> bytes:
    made: dict[str, Any] = {
        "v": 1,
        "id": secrets.token_hex(16),
        "time_ms": world.now_ms,
        "tenant": TENANT,
        "principal": {"type": "Person", "id": f"{TENANT}/ana"},
        "action": "dataset.register",
        "decision": "allow",
        "errors": [],
        "operation": OPERATION,
    }
    return canonical.dumps(made | changes)


def asked(**changes: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "adapter": "local-objects",
        "operation": "objects.put",
        "step": "put",
        "attempt": 1,
        "operation_id": "op-1",
        "resources": {"object": OBJECT_ID, "digest": "a" * 64},
        "parameters": PARAMETERS,
    }
    return usual | changes


def warrant(world: World, operation: str = "objects.put", action: str = "dataset.register", **changes: Any) -> bytes:
    usual: dict[str, Any] = {"resources": {"object": OBJECT_ID}, "parameters": PARAMETERS}
    return world.warrant(action, "local-objects", operation, **(usual | changes))


@pytest.mark.parametrize(
    ("operation", "resources", "is_permitted"),
    [
        ("objects.get", {"object": OBJECT_ID, "digest": "a" * 64}, True),
        ("objects.get", {"object": OBJECT_ID, "digest": "b" * 64}, False),
        ("objects.get", {"object": f"{TENANT}/another", "digest": "a" * 64}, False),
        ("objects.get", {"digest": "b" * 64}, False),
        ("objects.delete", {"object": OBJECT_ID, "digest": "b" * 64}, False),
        # What the operation makes itself was not there to be decided on.
        ("objects.put", {"object": f"{TENANT}/run/op-1/weights", "digest": "b" * 64}, True),
        ("objects.get", {"object": f"{TENANT}/run/op-1/weights", "digest": "b" * 64}, True),
        ("objects.put", {"object": f"{TENANT}/run/op-2/weights", "digest": "b" * 64}, False),
        # A file of a version that was decided on; but what lies below any other name is another thing.
        ("objects.put", {"object": f"{TENANT}/risk@1/abc/model.safetensors", "digest": "b" * 64}, True),
        ("objects.put", {"object": f"{TENANT}/risk@2/model.safetensors", "digest": "b" * 64}, False),
        ("objects.put", {"object": f"{OBJECT_ID}/more", "digest": "b" * 64}, False),
    ],
)
def test_a_warrant_touches_only_what_was_decided_on_or_what_its_operation_makes(
    world: World, *, operation: str, resources: dict[str, str], is_permitted: bool
) -> None:
    action = {"objects.get": "dataset.read", "objects.delete": "dataset.delete"}.get(operation, "dataset.register")
    action = "training.launch" if "op-" in resources.get("object", "") else action
    decided = record(world, action=action)
    if is_permitted:
        assert world.mint(decided, **asked(operation=operation, resources=resources))
        return
    with pytest.raises(SignerRefused) as refused:
        world.mint(decided, **asked(operation=operation, resources=resources))
    assert refused.value.code == "signer.resources"


# --- warrants --------------------------------------------------------------------------------------------------------


def test_a_warrant_for_a_logged_allow_verifies_as_asked(world: World) -> None:
    envelope = world.mint(record(world), **asked())
    verified = verify_warrant(
        envelope,
        trust=world.keystore.trust_root,
        adapter="local-objects",
        operation="objects.put",
        parameters=PARAMETERS,
        resources={"object": OBJECT_ID, "digest": "a" * 64},
        now_ms=world.now_ms,
    )
    assert verified.principal == "Person::northbank/ana"
    assert verified.expires_at_ms - verified.issued_at_ms == MAX_LIFETIME_MS


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"decision": "deny"}, "signer.denied"),
        ({"decision": "Allow"}, "signer.denied"),
        ({"errors": ["tenant.broken"]}, "signer.denied"),
        ({"tenant": FOREIGN_TENANT}, "signer.denied"),
        ({"operation": None}, "signer.operation"),
        ({"operation": OPERATION | {"id": "op-2", "parameters_digest": "b" * 64}}, "signer.operation"),
        ({"operation": {name: OPERATION[name] for name in ("id", "parameters_digest")}}, "signer.operation"),
        ({"action": "dataset.read"}, "signer.operation"),
        ({"action": "dataset.hold"}, "signer.operation"),
        ({"action": "unheard-of"}, "signer.operation"),
        ({"v": 2}, "signer.operation"),
    ],
)
def test_a_record_that_does_not_allow_this_operation_gives_no_warrant(
    world: World, changes: dict[str, Any], code: str
) -> None:
    with pytest.raises(SignerRefused) as refused:
        world.mint(record(world, **changes), **asked())
    assert refused.value.code == code


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"operation_id": "op-2"}, "signer.operation"),
        ({"parameters": {"rows": 2926}}, "signer.operation"),
        ({"operation": "objects.get"}, "signer.operation"),
        ({"resources": {"object": f"{FOREIGN_TENANT}/hmda"}}, "signer.resources"),
        ({"resources": {"object": "northbankers/hmda"}}, "signer.resources"),
        ({"resources": {"object": f"{TENANT}/another"}}, "signer.resources"),
        ({"resources": {"object": OBJECT_ID + "/more"}}, "signer.resources"),
        ({"resources": {"object": f"{TENANT}/run/op-12/weights"}}, "signer.resources"),
        ({"resources": {"object": "A" * 64}}, "signer.resources"),
    ],
)
def test_what_was_not_decided_gives_no_warrant(world: World, changes: dict[str, Any], code: str) -> None:
    with pytest.raises(SignerRefused) as refused:
        world.mint(record(world), **asked(**changes))
    assert refused.value.code == code


@pytest.mark.parametrize("changes", [{"attempt": 0}, {"step": ""}, {"adapter": "no spaces"}, {"resources": {"a": ""}}])
def test_a_warrant_that_could_not_be_read_is_not_made(world: World, changes: dict[str, Any]) -> None:
    with pytest.raises((FormatError, SignerRefused)):
        world.mint(record(world), **asked(**changes))


@pytest.mark.parametrize("age_ms", [60_001, -5_001])
def test_a_decision_that_is_old_or_from_the_future_gives_no_warrant(world: World, age_ms: int) -> None:
    with pytest.raises(SignerRefused) as refused:
        world.mint(record(world, time_ms=world.now_ms - age_ms), **asked())
    assert refused.value.code == "signer.stale"


def test_a_clock_that_jumps_back_makes_no_old_decision_fresh(world: World) -> None:
    decided = record(world)
    world.now_ms += 100_000
    world.signer.sign_checkpoint(FOREIGN_TENANT, 0, merkle.EMPTY_ROOT, [])
    world.now_ms -= 100_000
    with pytest.raises(SignerRefused) as refused:
        world.mint(decided, **asked())
    assert refused.value.code == "signer.stale"


def unlogged(world: World) -> dict[str, dict[str, Any]]:
    """Calls of mint whose proof does not hold, by what is wrong."""
    salt, decided = secrets.token_bytes(32), record(world)
    leaf = Leaf("decision", world.now_ms, TENANT, TENANT, commit(salt, decided)).to_bytes()
    index, proof, note = world.append(TENANT, leaf)
    other = Leaf("hold", world.now_ms, TENANT, TENANT, commit(salt, decided)).to_bytes()
    _, other_proof, other_note = world.append(TENANT, other)
    foreign = Leaf("decision", world.now_ms, TENANT, FOREIGN_TENANT, commit(salt, decided)).to_bytes()
    foreign_index, foreign_proof, foreign_note = world.append(TENANT, foreign)
    right = {
        "tenant": TENANT,
        "leaf": leaf.decode(),
        "leaf_index": index,
        "salt": salt,
        "record": decided.decode(),
        "proof": proof,
        "checkpoint": note,
    } | asked()
    return {
        "nothing": right,
        "another index": right | {"leaf_index": 1},
        "another salt": right | {"salt": bytes(32)},
        "another record": right | {"record": record(world).decode()},
        "no checkpoint": right | {"checkpoint": ""},
        "a checkpoint of another root": right | {"checkpoint": other_note},
        "a checkpoint that was altered": right | {"checkpoint": note.replace("\n1\n", "\n2\n", 1)},
        "a checkpoint of another signer": right
        | {"checkpoint": World(world.directory / "third").append(TENANT, leaf)[2]},
        "a log of another tenant": right | {"tenant": FOREIGN_TENANT},
        "an entry that is no decision": right
        | {"leaf": other.decode(), "leaf_index": 1, "proof": other_proof, "checkpoint": other_note},
        "an entry about another's": right
        | {
            "leaf": foreign.decode(),
            "leaf_index": foreign_index,
            "proof": foreign_proof,
            "checkpoint": foreign_note,
        },
    }


def test_a_decision_that_is_not_proved_logged_gives_no_warrant(world: World) -> None:
    calls = unlogged(world)
    assert read_warrant(world.signer.mint(**calls.pop("nothing"))).tenant == TENANT
    for what, call in calls.items():
        with pytest.raises(SignerRefused) as refused:
            world.signer.mint(**call)
        assert refused.value.code == "signer.unlogged", what


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_signed_for_its_own_log_and_never_backwards(world: World) -> None:
    _, _, first = world.append(TENANT, b"a leaf")
    world.append(TENANT, b"another")
    keys = world.keystore.trust_root.keys("log")
    assert verify_checkpoint(first, "conformance.test/northbank", keys).size == 1
    assert world.signer.last_checkpoint(TENANT)[0] == 2
    assert world.signer.last_checkpoint(FOREIGN_TENANT) == (0, merkle.EMPTY_ROOT)
    with pytest.raises(SignerRefused) as refused:
        world.signer.sign_checkpoint(TENANT, 1, merkle.leaf_hash(b"a leaf"), [])
    assert refused.value.code == "signer.fork"
    with pytest.raises(SignerRefused):
        world.signer.sign_checkpoint(TENANT, 2, bytes(32), [])


@pytest.mark.parametrize("tenant", ["", "../northbank", "North", "a" * 41, "north\nbank"])
def test_what_is_no_tenant_has_no_log_and_no_key(world: World, tenant: str) -> None:
    with pytest.raises(SignerRefused):
        world.signer.sign_checkpoint(tenant, 0, merkle.EMPTY_ROOT, [])
    with pytest.raises(SignerRefused):
        world.signer.new_data_key(tenant, OBJECT_ID, warrant(world))


# --- keys ------------------------------------------------------------------------------------------------------------


def test_a_data_key_opens_for_its_object_alone(world: World) -> None:
    resources = {"object": OBJECT_ID, "other": f"{TENANT}/other"}
    put = warrant(world, resources=resources)
    made = world.signer.new_data_key(TENANT, OBJECT_ID, put)
    get = warrant(world, "objects.get", "dataset.read", resources=resources)
    assert world.signer.unwrap(TENANT, OBJECT_ID, made.wrapped, get) == made.key
    assert made.key not in made.wrapped
    with pytest.raises(SignerRefused) as refused:
        world.signer.unwrap(TENANT, f"{TENANT}/other", made.wrapped, get)
    assert refused.value.code == "signer.wrapped"
    altered = made.wrapped[:-1] + bytes([made.wrapped[-1] ^ 1])
    with pytest.raises(SignerRefused):
        world.signer.unwrap(TENANT, OBJECT_ID, altered, get)


def test_a_data_key_does_not_open_under_another_tenants_key(world: World) -> None:
    made = world.signer.new_data_key(TENANT, OBJECT_ID, warrant(world))
    theirs = world.warrant(
        "dataset.register",
        "local-objects",
        "objects.put",
        resources={"object": f"{FOREIGN_TENANT}/x"},
        parameters={},
        tenant=FOREIGN_TENANT,
    )
    world.signer.new_data_key(FOREIGN_TENANT, f"{FOREIGN_TENANT}/x", theirs)
    broken = world.tampered(theirs, resources={"object": OBJECT_ID})
    with pytest.raises(SignerRefused) as refused:
        world.signer.unwrap(FOREIGN_TENANT, OBJECT_ID, made.wrapped, broken)
    assert refused.value.code == "signer.wrapped"


@pytest.mark.parametrize(
    ("action", "operation"), [("dataset.hold", "objects.hold"), ("dataset.lift-hold", "objects.lift")]
)
def test_who_may_hold_an_object_finds_it_and_gets_no_key_of_it(world: World, action: str, operation: str) -> None:
    put = warrant(world)
    made = world.signer.new_data_key(TENANT, OBJECT_ID, put)
    hold = warrant(world, operation, action)
    digest_hex = "a" * 64
    assert world.signer.object_name(TENANT, digest_hex, hold) == world.signer.object_name(TENANT, digest_hex, put)
    # A content can be proved to be the object's; what is told depends on content and object, and is no key.
    tag = world.signer.object_tag(TENANT, OBJECT_ID, made.wrapped, digest_hex, hold)
    assert tag == aead.object_tag_hex(made.key, TENANT, OBJECT_ID, digest_hex)
    assert tag != world.signer.object_tag(TENANT, OBJECT_ID, made.wrapped, "b" * 64, hold)
    with pytest.raises(SignerRefused) as refused:
        world.signer.object_tag(TENANT, f"{TENANT}/another", made.wrapped, digest_hex, hold)
    assert refused.value.code == "warrant.other-resource"
    for act in (
        lambda: world.signer.unwrap(TENANT, OBJECT_ID, made.wrapped, hold),
        lambda: world.signer.new_data_key(TENANT, OBJECT_ID, hold),
    ):
        with pytest.raises(SignerRefused) as refused:
            act()
        assert refused.value.code == "warrant.other-operation"


def test_a_key_needs_a_live_warrant_that_names_the_object(world: World) -> None:
    put = warrant(world)
    made = world.signer.new_data_key(TENANT, OBJECT_ID, put)
    get = warrant(world, "objects.get", "dataset.read")
    with pytest.raises(SignerRefused) as refused:
        world.signer.new_data_key(TENANT, OBJECT_ID, get)
    assert refused.value.code == "warrant.other-operation"
    with pytest.raises(SignerRefused) as refused:
        world.signer.unwrap(TENANT, f"{TENANT}/other", made.wrapped, get)
    assert refused.value.code == "warrant.other-resource"
    with pytest.raises(SignerRefused) as refused:
        world.signer.unwrap(FOREIGN_TENANT, OBJECT_ID, made.wrapped, get)
    assert refused.value.code == "warrant.other-resource"
    training = world.warrant(
        "training.launch", "local-training", "training.run", resources={"run": OBJECT_ID}, parameters={}
    )
    with pytest.raises(SignerRefused):
        world.signer.unwrap(TENANT, OBJECT_ID, made.wrapped, training)
    with pytest.raises(WarrantError):
        world.signer.unwrap(TENANT, OBJECT_ID, made.wrapped, b"{}")
    world.now_ms += MAX_LIFETIME_MS
    with pytest.raises(WarrantError) as late:
        world.signer.unwrap(TENANT, OBJECT_ID, made.wrapped, get)
    assert late.value.reason == "expired"
    world.now_ms -= MAX_LIFETIME_MS
    with pytest.raises(WarrantError):  # Time does not run backwards here.
        world.signer.unwrap(TENANT, OBJECT_ID, made.wrapped, get)


def test_an_object_name_is_the_tenants_own_and_tells_nothing(world: World) -> None:
    digest_hex = "c" * 64
    name = world.signer.object_name(TENANT, digest_hex, warrant(world))
    assert name == world.signer.object_name(TENANT, digest_hex, warrant(world))
    theirs = world.warrant(
        "dataset.read", "local-objects", "objects.get", resources={}, parameters={}, tenant=FOREIGN_TENANT
    )
    assert name != world.signer.object_name(FOREIGN_TENANT, digest_hex, theirs)
    assert name != digest_hex
    with pytest.raises(SignerRefused):
        world.signer.object_name(TENANT, "short", warrant(world))


def test_a_destroyed_tenant_key_never_comes_back(world: World) -> None:
    made = world.signer.new_data_key(TENANT, OBJECT_ID, warrant(world))
    with pytest.raises(SignerRefused):
        world.signer.destroy_tenant_key(TENANT, warrant(world))
    elsewhere = world.warrant("key.destroy", "local-objects", "keys.destroy", resources={}, parameters={})
    with pytest.raises(SignerRefused):
        world.signer.destroy_tenant_key(TENANT, elsewhere)
    destroy = world.warrant("key.destroy", "signer", "keys.destroy", resources={}, parameters={})
    assert world.signer.destroy_tenant_key(TENANT, destroy) is True
    assert world.signer.destroy_tenant_key(TENANT, destroy) is False
    for act in (
        lambda: world.signer.unwrap(TENANT, OBJECT_ID, made.wrapped, warrant(world)),
        lambda: world.signer.new_data_key(TENANT, OBJECT_ID, warrant(world)),
    ):
        with pytest.raises(SignerRefused) as refused:
            act()
        assert refused.value.code == "signer.destroyed"


# --- statements and models -------------------------------------------------------------------------------------------


def claim(predicate_type: str, predicate: dict[str, Any]) -> bytes:
    return statement.Statement((statement.Subject("model", "d" * 64),), predicate_type, predicate).to_bytes()


def test_a_statement_of_a_known_kind_that_says_whose_it_is_is_attested(world: World) -> None:
    keys = world.keystore.trust_root.keys("attestation")
    for predicate_type, predicate in (
        (statement.TEST_RESULT, {"tenant": TENANT, "result": "PASSED"}),
        (statement.SLSA_PROVENANCE, {"buildDefinition": {"externalParameters": {"tenant": TENANT}}}),
    ):
        payload = claim(predicate_type, predicate)
        envelope = dsse.Envelope.from_json(world.signer.attest(TENANT, payload))
        assert dsse.verify_envelope(envelope, keys) == payload


@pytest.mark.parametrize(
    ("predicate_type", "predicate"),
    [
        (statement.WARRANT, {"tenant": TENANT}),
        ("https://example.org/other", {"tenant": TENANT}),
        (statement.DECISION, {}),
        (statement.DECISION, {"tenant": FOREIGN_TENANT}),
        (statement.DECISION, {"tenant": [TENANT]}),
    ],
)
def test_other_statements_are_not_attested(world: World, predicate_type: str, predicate: dict[str, Any]) -> None:
    with pytest.raises(SignerRefused):
        world.signer.attest(TENANT, claim(predicate_type, predicate))


def test_a_model_is_signed_as_its_warrant_names_it(world: World) -> None:
    version, files = f"{TENANT}/credit-risk@1", {"model.safetensors": "1" * 64, "architecture.json": "2" * 64}
    resources = {"version": version} | {f"digest:{name}": value for name, value in files.items()}
    register = world.warrant(
        "model.register", "local-registry", "registry.register", resources=resources, parameters={}
    )
    bundle = world.signer.sign_model(TENANT, version, files, register)
    assert oms.verify_model(bundle, files, world.keystore.trust_root.keys("model")).name == version
    for wrong_version, wrong_files in (
        (f"{TENANT}/credit-risk@2", files),
        (version, files | {"model.safetensors": "3" * 64}),
        (version, {"model.safetensors": "1" * 64}),
        (version, {}),
    ):
        with pytest.raises(SignerRefused):
            world.signer.sign_model(TENANT, wrong_version, wrong_files, register)
    with pytest.raises(SignerRefused):
        world.signer.sign_model(TENANT, version, files, warrant(world))
