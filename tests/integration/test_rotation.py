"""A key of a real installation is rotated between two times of service: what was signed before verifies, and what is signed after as well."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from licet_attestations import dsse, rotation
from licet_attestations.errors import VerificationError
from licet_attestations.trustroot import Purpose, TrustRoot
from licet_attestations.verify import verify_archive
from licet_engine import rotating
from licet_engine.cli import run
from licet_engine.domain.errors import ConfigurationError

sys.path.append(str(Path(__file__).parent))
from service_world import Installation, table  # The line above finds it.

pytestmark = pytest.mark.slow


def exported(world: Installation, target: Path) -> Path:
    uma = world.client("northbank/uma")
    with target.open("wb") as file:
        uma.fetch_artifact(world.done(uma, uma.evidence.export("northbank")), file)
    return target


def test_old_evidence_and_new_verify_under_the_trust_root_that_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = Installation()
    monkeypatch.setenv("LICET_DATABASE_URLS", world.settings.database_urls)
    try:
        world.start()
        world.people("northbank", "us", packs=[])
        assert world.register("northbank/ana", "loans", table()).state == "done"
        old = TrustRoot.from_json(world.settings.trust_root.read_bytes())
        (tmp_path / "old.json").write_bytes(old.to_json())
        before = exported(world, tmp_path / "before.zip")
        data = ["--data", str(world.data)]
        assert run(["keys", "rotate", "log", *data]) == 2
        assert "is being served" in capsys.readouterr().err
        world.halt()
        purposes: tuple[Purpose, ...] = ("log", "attestation", "warrant", "model")
        files = [tmp_path / f"{purpose}.dsse.json" for purpose in purposes]
        for purpose, file in zip(purposes, files, strict=True):
            assert run(["keys", "rotate", purpose, *data, "--out", str(file)]) == 0, capsys.readouterr().err
        world.again()
        # What needs every key: a warrant, a checkpoint, an attestation of it, a signature of a model.
        assert world.register("northbank/ana", "more", table(odd=1)).state == "done"
        after = exported(world, tmp_path / "after.zip")
        # An auditor follows, offline, from the keys that they pinned.
        new_file = tmp_path / "new.json"
        pinned = ["--trust-root", str(tmp_path / "old.json")]
        assert run(["keys", "follow", *map(str, files), *pinned, "--out", str(new_file)]) == 0
        new = TrustRoot.from_json(new_file.read_bytes())
        assert new == TrustRoot.from_json(world.settings.trust_root.read_bytes())
        assert run(["keys", "follow", str(files[1]), *pinned, "--out", str(tmp_path / "x.json")]) == 1
        assert not (tmp_path / "x.json").exists()
        for archive in (before, after):
            assert verify_archive(archive, new, expected_tenant="northbank").tenant == "northbank"
        assert verify_archive(before, old)
        with pytest.raises(VerificationError):
            verify_archive(after, old)
        # The rotations are in the log of the platform, and can be fetched from there.
        logged = [r["digest"] for leaf, r in world.entries("platform") if leaf.kind == "attestation"]
        monkeypatch.setenv("LICET_URL", world.url)
        assert run(["keys", "rotations", "--out", str(tmp_path / "told")]) == 0
        told = sorted((tmp_path / "told").glob("*.dsse.json"))
        assert [file.read_bytes() + b"\n" for file in told] == [file.read_bytes() for file in files]
        payloads = [dsse.Envelope.from_json(file.read_bytes()).payload for file in told]
        assert logged[-4:] == [hashlib.sha256(payload).hexdigest() for payload in payloads]
        led = ["attestation", "verify", str(told[-1]), "--trust-root", str(new_file)]
        assert run([*led, "--logged", str(told[-1]).replace(".dsse.", ".entry."), "--tenant", "platform"]) == 0
        assert "it led to the trust root that is pinned" in capsys.readouterr().out
        fsck = ["log", "fsck", *data, "--tenant", "northbank", "--tenant", "platform"]
        assert run(fsck) == 0, capsys.readouterr()
    finally:
        world.stop()


class Auditor:
    """Has decisions attested, and verifies them offline."""

    def __init__(self, world: Installation, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world, self.folder, self.monkeypatch = world, folder, monkeypatch

    def attested(self, decision: str) -> tuple[Path, Path]:
        """A signed decision, and the entry of the log that names it."""
        self.monkeypatch.setenv("LICET_URL", self.world.url)
        self.monkeypatch.setenv("LICET_TOKEN", self.world.tokens["northbank/uma"])
        out = self.folder / secrets.token_hex(4)
        assert run(["attestation", "decision", f"northbank/{decision}", "--out", str(out)]) == 0
        (signed,) = out.glob("*.dsse.json")
        return signed, signed.with_name(signed.name.replace(".dsse.", ".entry."))

    def verify(self, found: tuple[Path, Path], trust: Path, *, logged: bool = True) -> int:
        given = ["--logged", str(found[1])] if logged else []
        return run(["attestation", "verify", str(found[0]), "--trust-root", str(trust), *given])

    def follow(self, statements: Path, trust: Path) -> Path:
        new = statements.with_suffix(".json")
        assert run(["keys", "follow", str(statements), "--trust-root", str(trust), "--out", str(new)]) == 0
        return new


def asked(world: Installation) -> str:
    return str(world.client("northbank/ana").act("dataset.read", "northbank/loans", {}).decision_id)


@pytest.fixture
def lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Installation, Path]]:
    """An installation in service, and the trust root that an auditor pinned."""
    world = Installation()
    monkeypatch.setenv("LICET_DATABASE_URLS", world.settings.database_urls)
    try:
        world.start()
        world.people("northbank", "us", packs=[])
        assert world.register("northbank/ana", "loans", table()).state == "done"
        (tmp_path / "old.json").write_bytes(world.settings.trust_root.read_bytes())
        yield world, tmp_path / "old.json"
    finally:
        world.stop()


def test_what_a_compromised_key_signed_before_verifies_by_the_log_and_what_came_later_does_not(
    lost: tuple[Installation, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    world, pinned = lost
    auditor = Auditor(world, tmp_path, monkeypatch)
    early = auditor.attested(asked(world))
    between = dt.datetime.now(dt.UTC).isoformat()
    late = auditor.attested(asked(world))
    world.halt()
    keyid = rotation.current(TrustRoot.from_json(pinned.read_bytes()), "attestation").key.keyid
    declare = ["keys", "compromised", keyid, "--from", between, "--data", str(world.data)]
    assert run([*declare, "--out", str(tmp_path / "declared")]) == 0, capsys.readouterr().err
    new = auditor.follow(tmp_path / "declared", pinned)
    assert new.read_bytes() == world.settings.trust_root.read_bytes()
    capsys.readouterr()
    assert auditor.verify(early, new) == 0
    assert auditor.verify(early, new, logged=False) == 1
    assert "is compromised" in capsys.readouterr().err
    assert auditor.verify(late, new) == 1
    assert "did not count when this was logged" in capsys.readouterr().err
    # By whom nobody told of it, it is trusted still: that is what the trust root is followed for.
    assert auditor.verify(late, pinned) == 0
    world.again()
    assert world.register("northbank/ana", "more", table(odd=1)).state == "done"
    assert auditor.verify(auditor.attested(asked(world)), new) == 0
    fsck = ["log", "fsck", "--data", str(world.data), "--tenant", "northbank", "--tenant", "platform"]
    assert run(fsck) == 0, capsys.readouterr()
    monkeypatch.delenv("LICET_TOKEN")
    assert run(["keys", "show"]) == 0
    assert capsys.readouterr().out.count("compromised from") == 1
    # Without a server as well.
    monkeypatch.setenv("LICET_URL", "http://127.0.0.1:1")
    assert run(["keys", "show", "--trust-root", str(new)]) == 0
    assert capsys.readouterr().out.count("compromised from") == 1


def test_a_log_whose_key_is_compromised_goes_on_and_is_proved_anew_by_another(
    lost: tuple[Installation, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    world, pinned = lost
    auditor = Auditor(world, tmp_path, monkeypatch)
    decision = asked(world)
    early = auditor.attested(decision)
    world.halt()
    key = rotation.current(TrustRoot.from_json(pinned.read_bytes()), "log")
    begun = dt.datetime.fromtimestamp(key.valid_from_ms / 1000, dt.UTC).isoformat()
    declare = ["keys", "compromised", key.key.keyid[:12], "--from", begun, "--data", str(world.data)]
    assert run([*declare, "--out", str(tmp_path / "declared")]) == 0, capsys.readouterr().err
    new = auditor.follow(tmp_path / "declared", pinned)
    capsys.readouterr()
    # A proof of then is worth nothing: who has the key can make one of any log.
    assert auditor.verify(early, new) == 1
    assert "no pinned log key" in capsys.readouterr().err
    world.again()
    # The signer remembers the log's head, and signs it, and what follows, with the new key.
    assert world.register("northbank/ana", "more", table(odd=1)).state == "done"
    # An archive has the whole log under it: also the warrants whose own proofs are of the key that counts no more.
    trust = TrustRoot.from_json(new.read_bytes())
    report = verify_archive(exported(world, tmp_path / "after.zip"), trust, expected_tenant="northbank")
    assert report.counts["warrants"] >= 2
    assert auditor.verify(auditor.attested(asked(world)), new) == 0
    monkeypatch.setenv("LICET_TOKEN", world.tokens["northbank/uma"])
    fresh = tmp_path / "fresh"
    digest = json.loads(early[0].read_bytes())["payload"]
    digest = hashlib.sha256(base64.b64decode(digest)).hexdigest()
    assert run(["attestation", "export", "northbank", digest, "--out", str(fresh)]) == 2
    assert "no pinned log key" in capsys.readouterr().err
    fsck = ["log", "fsck", "--data", str(world.data), "--tenant", "northbank", "--tenant", "platform"]
    assert run(fsck) == 0, capsys.readouterr()


def test_what_makes_no_sense_is_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = Installation()
    monkeypatch.setenv("LICET_DATABASE_URLS", world.settings.database_urls)
    try:
        before = TrustRoot.from_json(world.settings.trust_root.read_bytes())
        keyid, data = before.trusted[0].key.keyid, ["--data", str(world.data)]
        for arguments, why in (
            (["compromised", keyid, "--from", "2999-01-01"], "still to come"),
            (["compromised", "0" * 64, "--from", "2026-01-01"], "no key's identifier begins with"),
            (["compromised", keyid[:4], "--from", "2026-01-01"], "too short"),
            (["compromised", keyid, "--from", "yesterday"], "is not a date"),
            (["rotate", "everything"], "is not one of"),
        ):
            assert run(["keys", *arguments, *data]) == 2
            assert why in capsys.readouterr().err
        nothing = ["keys", "rotate", "log", "--data", str(tmp_path / "nothing")]
        assert run(nothing) == 2
        told = capsys.readouterr().err
        assert "Traceback" not in told, told
        assert TrustRoot.from_json(world.settings.trust_root.read_bytes()) == before
    finally:
        world.stop()


def test_a_rotation_that_was_broken_off_is_finished_before_another_is_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = Installation()
    try:
        old = TrustRoot.from_json(world.settings.trust_root.read_bytes())

        def crash(*_: Any) -> None:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(rotating, "replace_durably", crash)
            with pytest.raises(OSError, match="Input/output"):
                rotating.rotate(world.settings, "model")
        assert TrustRoot.from_json(world.settings.trust_root.read_bytes()) == old
        done = rotating.rotate(world.settings, "log")
        assert done.before == old
        for purpose in ("log", "model"):
            assert rotation.current(done.after, purpose) != rotation.current(old, purpose)
        # Whoever pins the old trust root gets both statements.
        assert rotation.follow(done.statements, old) == done.after
        assert len(done.digests_hex) == 2
    finally:
        world.stop()


def test_a_rotation_that_was_broken_off_is_finished_by_the_same_once_and_told_before_a_compromise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = Installation()

    def crash(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    def broken_off(purpose: Purpose) -> TrustRoot:
        stood = TrustRoot.from_json(world.settings.trust_root.read_bytes())
        with monkeypatch.context() as patch:
            patch.setattr(rotating, "replace_durably", crash)
            with pytest.raises(OSError, match="Input/output"):
                rotating.rotate(world.settings, purpose)
        return stood

    try:
        old = broken_off("model")
        done = rotating.rotate(world.settings, "model")
        assert len(done.statements) == 1
        again = broken_off("model")
        assert again == done.after
        from_ms = rotation.current(old, "model").valid_from_ms
        declared = rotating.declare_compromised(world.settings, rotation.current(old, "model").key.keyid, from_ms)
        assert rotation.follow(declared.statements, again) == declared.after
        assert len(declared.statements) == 2
        # One of which nothing but the new trust root was missing is finished by being said again.
        again = TrustRoot.from_json(world.settings.trust_root.read_bytes())
        key = rotation.current(again, "model")
        keyid, begun_ms = key.key.keyid, key.valid_from_ms
        with monkeypatch.context() as patch:
            patch.setattr(rotating, "replace_durably", crash)
            with pytest.raises(OSError, match="Input/output"):
                rotating.declare_compromised(world.settings, keyid, begun_ms)
        finished = rotating.declare_compromised(world.settings, keyid, begun_ms)
        assert rotation.named(finished.after, keyid).compromised_from_ms == begun_ms
        assert rotation.follow(finished.statements, again) == finished.after
    finally:
        world.stop()


def test_another_installations_database_is_not_given_these_keys() -> None:
    one, other = Installation(), Installation()
    try:
        trust = one.settings.trust_root.read_bytes()
        one.settings.trust_root.write_bytes(other.settings.trust_root.read_bytes())
        with pytest.raises(ConfigurationError, match="of another installation"):
            rotating.rotate(one.settings, "model")
        # Told before the signer did anything.
        assert (one.settings.signer_data / "trust-root.json").read_bytes() == trust
    finally:
        for world in (one, other):
            world.stop()


def test_who_does_not_say_where_the_database_is_is_told_so_before_the_signer_does_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = Installation()
    try:
        trust = world.settings.trust_root.read_bytes()
        monkeypatch.setenv("LICET_DATABASE_URLS", "")
        away = tmp_path / "away.db"
        if world.settings.database.exists():
            world.engine.dispose()
            world.settings.database.replace(away)
        assert run(["keys", "rotate", "model", "--data", str(world.data)]) == 2
        assert "LICET_DATABASE_URLS" in capsys.readouterr().err
        assert (world.settings.signer_data / "trust-root.json").read_bytes() == trust
        assert not world.settings.database.exists()
    finally:
        world.stop()
