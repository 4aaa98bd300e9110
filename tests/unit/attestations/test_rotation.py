"""Rotation of keys: what leads on from a pinned trust root, what does not, and what a crash leaves of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from licet_adapters.conformance.world import World
from licet_attestations import attested, rotation
from licet_attestations.errors import FormatError, SignerRefused, SignerUnavailable, VerificationError
from licet_attestations.keys import ED25519, P256, PrivateKey
from licet_attestations.signer import keystore as keystores
from licet_attestations.signer.escrow import back_up, bring_back
from licet_attestations.signer.keystore import Keystore
from licet_attestations.statement import Statement
from licet_attestations.trustroot import PURPOSES, Purpose, TrustedKey, TrustRoot

if TYPE_CHECKING:
    from pathlib import Path

AT_MS = 2_000


def create(directory: Path, passphrase: bytes | None = None) -> Keystore:
    directory.mkdir(mode=0o700)
    return Keystore.create(
        directory, instance="test", log_origin_prefix="log.test", now_ms=1_000, passphrase=passphrase
    )


@pytest.mark.parametrize("purpose", PURPOSES)
@pytest.mark.parametrize("passphrase", [None, b"correct horse"])
def test_a_rotated_key_ends_where_the_new_one_begins_and_both_stay_in_the_trust_root(
    tmp_path: Path, purpose: Purpose, passphrase: bytes | None
) -> None:
    before = create(tmp_path / "k", passphrase)
    statement = Keystore.rotate(tmp_path / "k", purpose, now_ms=AT_MS, passphrase=passphrase)
    opened = Keystore.open(tmp_path / "k", passphrase=passphrase)
    after = opened.trust_root
    assert rotation.verify_rotation(statement, before.trust_root) == after
    assert after.keys(purpose, AT_MS - 1) == (before.signing_key(purpose).public,)
    assert after.keys(purpose, AT_MS) == (opened.signing_key(purpose).public,)
    assert opened.signing_key(purpose).keyid != before.signing_key(purpose).keyid
    assert Keystore.rotations(tmp_path / "k") == [statement]
    # Of the other keys, none is another.
    for other in set(PURPOSES) - {purpose}:
        assert after.keys(other) == before.trust_root.keys(other)
    # The old private key is nowhere any more.
    old = before.signing_key(purpose).to_pkcs8()
    assert all(old not in path.read_bytes() for path in (tmp_path / "k").rglob("*.json"))


def test_rotations_are_followed_one_after_the_other_and_in_no_other_order(tmp_path: Path) -> None:
    first = create(tmp_path / "k").trust_root
    statements = [
        Keystore.rotate(tmp_path / "k", purpose, now_ms=AT_MS + number)
        for number, purpose in enumerate(("attestation", "log", "attestation"))
    ]
    last = Keystore.open(tmp_path / "k").trust_root
    assert rotation.follow(statements, first) == last
    assert len(last.trusted) == len(PURPOSES) + 3
    for wrong in (statements[1:], statements[::-1], [statements[0], statements[2]], [statements[0], statements[0]]):
        with pytest.raises(VerificationError, match="another trust root"):
            rotation.follow(wrong, first)
    assert Keystore.rotations(tmp_path / "k") == statements


def forged(store: Keystore, purpose: Purpose, **others: PrivateKey | None) -> bytes:
    """A rotation of one purpose, signed by all keys but the given ones, which another signs for or nobody."""
    new = PrivateKey.generate(ED25519 if purpose == "log" else P256)
    after = rotation.rotated(store.trust_root, purpose, new.public, AT_MS)
    usual = {other: store.signing_key(other) for other in PURPOSES} | {"new": new}
    signers = [key for key in (usual | others).values() if key is not None]
    return rotation.sign(rotation.rotation_statement(store.trust_root, after, purpose), signers)


@pytest.mark.parametrize("purpose", PURPOSES)
@pytest.mark.parametrize("role", [*PURPOSES, "new"])
def test_a_rotation_that_one_key_did_not_sign_leads_nowhere(tmp_path: Path, purpose: Purpose, role: str) -> None:
    store = create(tmp_path / "k")
    assert rotation.verify_rotation(forged(store, purpose), store.trust_root)
    stranger = PrivateKey.generate(P256 if role != "log" else ED25519)
    for instead in (None, stranger):
        with pytest.raises(VerificationError, match="no pinned key signed"):
            rotation.verify_rotation(forged(store, purpose, **{role: instead}), store.trust_root)


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p | {"at_ms": 1_000},
        lambda p: p | {"at_ms": 999},
        lambda p: p | {"at_ms": "2000"},
        lambda p: p | {"purpose": "everything"},
        lambda p: p | {"purpose": "log"},
        lambda p: p | {"tenant": "northbank"},
        lambda p: p | {"more": 1},
        lambda p: p | {"before": {"sha256": "0" * 64}},
        lambda p: p | {"new": p["old"]},
        lambda p: p | {"trust_root": p["trust_root"] | {"log_origin_prefix": "other.test"}},
        lambda p: p | {"trust_root": p["trust_root"] | {"keys": p["trust_root"]["keys"][1:]}},
    ],
)
def test_a_rotation_that_says_anything_else_leads_nowhere_though_all_keys_signed(tmp_path: Path, change: Any) -> None:
    store, new = create(tmp_path / "k"), PrivateKey.generate(P256)
    after = rotation.rotated(store.trust_root, "model", new.public, AT_MS)
    claim = rotation.rotation_statement(store.trust_root, after, "model")
    payload = Statement(claim.subject, claim.predicate_type, change(dict(claim.predicate))).to_bytes()
    with pytest.raises(VerificationError):
        rotation.verify_rotation(
            rotation.sign(Statement.from_bytes(payload), [*store.signing_keys(), new]), store.trust_root
        )


def test_a_single_rotation_is_verified_from_the_trust_root_before_it_and_the_one_behind_it(tmp_path: Path) -> None:
    before = create(tmp_path / "k").trust_root
    statement = Keystore.rotate(tmp_path / "k", "attestation", now_ms=AT_MS)
    after = Keystore.open(tmp_path / "k").trust_root
    assert "leads from the pinned trust root" in attested.verify_attestation(statement, before).shown[0]
    assert "led to the trust root" in attested.verify_attestation(statement, after).shown[0]
    Keystore.rotate(tmp_path / "k", "log", now_ms=AT_MS)
    with pytest.raises(VerificationError, match="neither begins nor ends"):
        attested.verify_attestation(statement, Keystore.open(tmp_path / "k").trust_root)


def test_nobody_has_a_rotation_signed_by_asking(tmp_path: Path) -> None:
    world = World(tmp_path / "w")
    trust = world.keystore.trust_root
    after = rotation.rotated(trust, "model", PrivateKey.generate(P256).public, trust.trusted[0].valid_from_ms + 1)
    with pytest.raises(SignerRefused) as refused:
        world.signer.attest("platform", rotation.rotation_statement(trust, after, "model").to_bytes())
    assert refused.value.code == "signer.predicate"


def test_a_key_that_began_only_now_is_not_rotated(tmp_path: Path) -> None:
    create(tmp_path / "k")
    with pytest.raises(SignerRefused, match="cannot end"):
        Keystore.rotate(tmp_path / "k", "log", now_ms=1_000)


def lost(directory: Path, purpose: Purpose, from_ms: int) -> tuple[Keystore, str]:
    """A keystore whose first key for a purpose was rotated and is declared compromised; and that key's identifier."""
    keyid = create(directory).signing_key(purpose).keyid
    Keystore.rotate(directory, purpose, now_ms=AT_MS)
    Keystore.declare_compromised(directory, keyid, from_ms=from_ms, now_ms=AT_MS + 10)
    return Keystore.open(directory), keyid


@pytest.mark.parametrize("purpose", PURPOSES)
def test_a_compromised_key_counts_for_what_is_known_to_be_from_before_and_for_nothing_else(
    tmp_path: Path, purpose: Purpose
) -> None:
    store, keyid = lost(tmp_path / "k", purpose, from_ms=1_500)
    trust, new = store.trust_root, store.signing_key(purpose).public
    old = rotation.named(trust, keyid).key
    assert trust.keys(purpose, 1_499) == trust.keys(purpose, 1_000) == (old,)
    assert trust.keys(purpose, 1_500) == trust.keys(purpose, AT_MS - 1) == ()
    assert trust.keys(purpose) == trust.keys_since(purpose, 1_000) == (new,)
    assert trust.keys_seen(purpose, 1_499) == (old, new)
    assert trust.keys_seen(purpose, 1_500) == (new,)
    assert trust.every_key(purpose) == (old, new)
    assert TrustRoot.from_json(trust.to_json()) == trust


def test_rotations_and_compromises_are_followed_together(tmp_path: Path) -> None:
    first = create(tmp_path / "k").trust_root
    keyid = rotation.current(first, "attestation").key.keyid
    Keystore.rotate(tmp_path / "k", "attestation", now_ms=AT_MS)
    Keystore.declare_compromised(tmp_path / "k", keyid[:8], from_ms=AT_MS, now_ms=AT_MS)
    Keystore.rotate(tmp_path / "k", "log", now_ms=AT_MS + 1)
    # It turns out to have been earlier, and it is never taken back.
    Keystore.declare_compromised(tmp_path / "k", keyid, from_ms=1_200, now_ms=AT_MS + 2)
    for from_ms, why in ((1_200, "already"), (1_300, "already"), (999, "was not compromised before")):
        with pytest.raises(SignerRefused, match=why):
            Keystore.declare_compromised(tmp_path / "k", keyid, from_ms=from_ms, now_ms=AT_MS + 3)
    statements = Keystore.rotations(tmp_path / "k")
    last = Keystore.open(tmp_path / "k").trust_root
    assert len(statements) == 4
    assert rotation.follow(statements, first) == last
    assert rotation.named(last, keyid).compromised_from_ms == 1_200
    middle = rotation.follow(statements[:2], first)
    assert rotation.beyond(statements, middle) == statements[2:]
    assert rotation.beyond(statements, last) == []
    assert rotation.beyond(statements, replace(first, instance="other")) == []


@pytest.mark.parametrize(
    ("keyid", "from_ms", "why"),
    [
        ("0" * 64, 1_500, "no key"),
        ("", 1_500, "no key"),
        ("current", 1_500, "rotated first"),
        ("old", 9_999, "to come"),
    ],
)
def test_what_cannot_be_declared_is_refused_and_changes_nothing(
    tmp_path: Path, keyid: str, from_ms: int, why: str
) -> None:
    before = create(tmp_path / "k")
    Keystore.rotate(tmp_path / "k", "log", now_ms=AT_MS)
    opened = Keystore.open(tmp_path / "k")
    told = {"current": opened.signing_key("model").keyid, "old": before.signing_key("log").keyid}.get(keyid, keyid)
    with pytest.raises(SignerRefused, match=why):
        Keystore.declare_compromised(tmp_path / "k", told, from_ms=from_ms, now_ms=AT_MS)
    assert Keystore.open(tmp_path / "k").trust_root == opened.trust_root
    assert len(Keystore.rotations(tmp_path / "k")) == 1


@pytest.mark.parametrize("role", PURPOSES)
def test_a_compromise_that_one_key_did_not_sign_leads_nowhere(tmp_path: Path, role: Purpose) -> None:
    keyid = create(tmp_path / "k").signing_key("model").keyid
    Keystore.rotate(tmp_path / "k", "model", now_ms=AT_MS)
    store = Keystore.open(tmp_path / "k")
    after = rotation.compromised(store.trust_root, keyid, 1_500)
    claim = rotation.compromise_statement(store.trust_root, after, keyid)
    assert rotation.verify_rotation(rotation.sign(claim, store.signing_keys()), store.trust_root) == after
    but_one = [store.signing_key(purpose) for purpose in PURPOSES if purpose != role]
    with pytest.raises(VerificationError, match="no pinned key signed"):
        rotation.verify_rotation(rotation.sign(claim, but_one), store.trust_root)
    shortened = dict(claim.predicate) | {"key": {"keyid": keyid[:16]}}
    other = Statement(claim.subject, claim.predicate_type, shortened)
    with pytest.raises(VerificationError, match="something else"):
        rotation.verify_rotation(rotation.sign(other, store.signing_keys()), store.trust_root)


@pytest.mark.parametrize(
    "change",
    [
        {"compromised_from_ms": 999},
        {"compromised_from_ms": "1500"},
        {"compromised_from_ms": None},
        {"compromised_from_ms": 1_500, "valid_until_ms": None},
        {"compromised_from_ms": 1_500, "more": 1},
    ],
)
def test_a_trust_root_whose_key_is_oddly_compromised_is_none(tmp_path: Path, change: dict[str, Any]) -> None:
    told = lost(tmp_path / "k", "log", from_ms=1_500)[0].trust_root.to_dict()
    (at,) = [i for i, key in enumerate(told["keys"]) if "compromised_from_ms" in key]
    assert TrustRoot.from_dict(told)
    told["keys"][at] |= change
    with pytest.raises(FormatError):
        TrustRoot.from_dict(told)


def test_a_crash_while_a_key_is_declared_compromised_leaves_one_trust_root_or_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyid = create(tmp_path / "k").signing_key("log").keyid
    Keystore.rotate(tmp_path / "k", "log", now_ms=AT_MS)
    before = Keystore.open(tmp_path / "k").trust_root
    real = keystores.replace_durably

    def crash(path: Path, data: bytes) -> None:
        if path.name == "trust-root.json":
            raise OSError(5, "Input/output error")
        real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(keystores, "replace_durably", crash)
        with pytest.raises(SignerUnavailable):
            Keystore.declare_compromised(tmp_path / "k", keyid, from_ms=1_500, now_ms=AT_MS)
    assert Keystore.open(tmp_path / "k").trust_root == before
    assert len(Keystore.rotations(tmp_path / "k")) == 1
    # What it left never counted, and is written over.
    Keystore.rotate(tmp_path / "k", "model", now_ms=AT_MS)
    assert rotation.follow(Keystore.rotations(tmp_path / "k")[1:], before) == Keystore.open(tmp_path / "k").trust_root


@pytest.mark.parametrize("step", ["rotations", "trust-root.json", "finish"])
def test_a_crash_at_any_step_leaves_the_old_key_or_the_new_one_and_never_neither(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = create(tmp_path / "k")
    real_replace, real_finish = keystores.replace_durably, keystores._finish_rotation

    def replace_or_crash(path: Path, data: bytes) -> None:
        if step in str(path):
            raise OSError(5, "Input/output error")
        real_replace(path, data)

    def finish_or_crash(*arguments: Any) -> None:
        if step == "finish" and (tmp_path / "k" / "rotations" / "1.json").exists():
            raise OSError(5, "Input/output error")
        real_finish(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(keystores, "replace_durably", replace_or_crash)
        patch.setattr(keystores, "_finish_rotation", finish_or_crash)
        with pytest.raises(SignerUnavailable):
            Keystore.rotate(tmp_path / "k", "warrant", now_ms=AT_MS)
    opened = Keystore.open(tmp_path / "k")
    is_new = opened.trust_root != before.trust_root
    assert is_new == (step == "finish")
    assert opened.signing_key("warrant").public == rotation.current(opened.trust_root, "warrant").key
    assert not (tmp_path / "k" / "keys" / "warrant-next.json").exists()
    assert len(Keystore.rotations(tmp_path / "k")) == int(is_new)
    # And it goes on from there.
    Keystore.rotate(tmp_path / "k", "warrant", now_ms=AT_MS + 5)
    assert (
        rotation.follow(Keystore.rotations(tmp_path / "k"), before.trust_root)
        == Keystore.open(tmp_path / "k").trust_root
    )


def test_a_backup_of_keys_holds_their_rotations(tmp_path: Path) -> None:
    create(tmp_path / "k")
    statement = Keystore.rotate(tmp_path / "k", "log", now_ms=AT_MS)
    root = back_up(tmp_path / "k", tmp_path / "sealed", b"a long passphrase")
    (tmp_path / "back").mkdir(mode=0o700)
    assert bring_back(tmp_path / "sealed", tmp_path / "back", b"a long passphrase") == root
    assert Keystore.rotations(tmp_path / "back") == [statement]
    assert Keystore.open(tmp_path / "back").trust_root == root


def test_a_trust_root_with_two_keys_without_an_end_is_not_rotated(tmp_path: Path) -> None:
    trust = create(tmp_path / "k").trust_root
    another = TrustedKey(PrivateKey.generate(ED25519).public, "log", 1_000)
    doubled = replace(trust, trusted=(*trust.trusted, another))
    with pytest.raises(FormatError, match="exactly one"):
        rotation.rotated(doubled, "log", PrivateKey.generate(ED25519).public, AT_MS)
