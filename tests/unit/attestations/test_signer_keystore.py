"""Keys at rest: who may read them, what opens them, and what a crash leaves."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from licet_attestations.errors import SignerRefused, SignerUnavailable
from licet_attestations.signer.keystore import Keystore, check_passphrase, read_passphrase
from licet_attestations.trustroot import PURPOSES, TrustRoot

if TYPE_CHECKING:
    from pathlib import Path


def create(directory: Path, passphrase: bytes | None = None) -> Keystore:
    directory.mkdir(mode=0o700, exist_ok=True)
    return Keystore.create(
        directory, instance="test", log_origin_prefix="log.test", now_ms=1_000, passphrase=passphrase
    )


def test_a_keystore_opens_with_the_keys_it_was_made_with(tmp_path: Path) -> None:
    made = create(tmp_path / "k")
    opened = Keystore.open(tmp_path / "k")
    assert (
        opened.trust_root == made.trust_root == TrustRoot.from_json((tmp_path / "k" / "trust-root.json").read_bytes())
    )
    for purpose in PURPOSES:
        assert opened.trust_root.keys(purpose) == (opened.signing_key(purpose).public,)
    assert len({opened.signing_key(purpose).keyid for purpose in PURPOSES}) == len(PURPOSES)


def test_every_file_is_its_users_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        create(tmp_path / "k").new_object_key("northbank", "northbank/hmda")
    finally:
        os.umask(before)
    for path in (tmp_path / "k").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.parametrize("name", ["keys/log.json", "keys/root.json", "keystore.json", "trust-root.json", "keys", "."])
@pytest.mark.parametrize("mode", [0o040, 0o004, 0o020])
def test_a_file_that_others_may_open_refuses_the_start(tmp_path: Path, name: str, mode: int) -> None:
    create(tmp_path / "k")
    path = tmp_path / "k" / name
    path.chmod(path.stat().st_mode | mode)
    with pytest.raises(SignerRefused) as refused:
        Keystore.open(tmp_path / "k")
    assert refused.value.code == "signer.permissions"


def test_a_key_behind_a_link_refuses_the_start(tmp_path: Path) -> None:
    create(tmp_path / "k")
    key = tmp_path / "k" / "keys" / "log.json"
    key.rename(tmp_path / "moved.json")
    key.symlink_to(tmp_path / "moved.json")
    with pytest.raises(SignerUnavailable):
        Keystore.open(tmp_path / "k")


def test_keys_are_never_made_over_others(tmp_path: Path) -> None:
    create(tmp_path / "k")
    before = {path: path.read_bytes() for path in (tmp_path / "k").rglob("*") if path.is_file()}
    with pytest.raises(SignerRefused) as refused:
        create(tmp_path / "k")
    assert refused.value.code == "signer.exists"
    assert {path: path.read_bytes() for path in (tmp_path / "k").rglob("*") if path.is_file()} == before


def test_what_a_crash_left_while_making_keys_is_begun_anew(tmp_path: Path) -> None:
    create(tmp_path / "k")
    (tmp_path / "k" / "trust-root.json").unlink()
    made = create(tmp_path / "k")
    assert Keystore.open(tmp_path / "k").trust_root == made.trust_root


def test_a_passphrase_is_needed_and_must_be_the_one(tmp_path: Path) -> None:
    made = create(tmp_path / "k", b"correct horse")
    assert Keystore.open(tmp_path / "k", passphrase=b"correct horse").trust_root == made.trust_root
    for wrong in (b"another", None):
        with pytest.raises(SignerRefused) as refused:
            Keystore.open(tmp_path / "k", passphrase=wrong)
        assert refused.value.code == "signer.passphrase"
    for path in (tmp_path / "k" / "keys").iterdir():
        assert b"BEGIN" not in path.read_bytes()
    create(tmp_path / "open")
    with pytest.raises(SignerRefused):
        Keystore.open(tmp_path / "open", passphrase=b"any")


def test_sealed_keys_cannot_trade_places(tmp_path: Path) -> None:
    create(tmp_path / "k", b"secret")
    keys = tmp_path / "k" / "keys"
    swapped = (keys / "warrant.json").read_bytes().replace(b'"warrant"', b'"model"')
    (keys / "model.json").write_bytes(swapped)
    with pytest.raises(SignerRefused):
        Keystore.open(tmp_path / "k", passphrase=b"secret")


def test_open_keys_cannot_trade_places_either(tmp_path: Path) -> None:
    create(tmp_path / "k")
    keys = tmp_path / "k" / "keys"
    (keys / "model.json").write_bytes((keys / "warrant.json").read_bytes().replace(b'"warrant"', b'"model"'))
    with pytest.raises(SignerRefused):
        Keystore.open(tmp_path / "k")


def test_a_tenants_key_file_does_not_serve_another(tmp_path: Path) -> None:
    keystore = create(tmp_path / "k")
    made = keystore.new_object_key("northbank", "northbank/hmda")
    tenants = tmp_path / "k" / "tenants"
    (tenants / "lakeside.json").write_bytes((tenants / "northbank.json").read_bytes())
    (tenants / "lakeside.json").chmod(0o600)
    with pytest.raises(SignerRefused):
        Keystore.open(tmp_path / "k").unwrap_object_key("lakeside", "northbank/hmda", made.wrapped)


def test_a_crash_between_tombstone_and_erasure_is_finished_at_the_next_start(tmp_path: Path) -> None:
    keystore = create(tmp_path / "k")
    keystore.new_object_key("northbank", "northbank/hmda")
    tenants = tmp_path / "k" / "tenants"
    (tenants / "northbank.gone").write_bytes(b"{}")
    (tenants / ".tmp-left").write_bytes(b"a wrapped key that a crash left")
    opened = Keystore.open(tmp_path / "k")
    assert sorted(path.name for path in tenants.iterdir()) == ["northbank.gone"]
    with pytest.raises(SignerRefused) as refused:
        opened.new_object_key("northbank", "northbank/hmda")
    assert refused.value.code == "signer.destroyed"


def test_a_passphrase_file_must_be_private_and_hold_one(tmp_path: Path) -> None:
    path = tmp_path / "passphrase"
    path.write_bytes(b"secret\n")
    path.chmod(0o600)
    assert read_passphrase(path) == b"secret"
    path.chmod(0o644)
    with pytest.raises(SignerRefused):
        read_passphrase(path)
    with pytest.raises(SignerRefused):
        check_passphrase(b"\n")
    with pytest.raises(SignerUnavailable):
        read_passphrase(tmp_path / "absent")
