"""A key of a real installation is rotated between two times of service: what was signed before verifies, and what is signed after as well."""

from __future__ import annotations

import hashlib
import sys
import threading
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
from licet_engine.serve import Supervisor

sys.path.append(str(Path(__file__).parent))
from service_world import Installation, table  # The line above finds it.

pytestmark = pytest.mark.slow


def halt(world: Installation) -> None:
    world.supervisor.ask_to_stop()
    world._thread.join(30)
    world.supervisor.stop()


def again(world: Installation) -> None:
    """Serve it once more, as a new supervisor does."""
    world.supervisor = Supervisor(world.settings, log=world.log, longest_pause_s=0.5)
    world._thread = threading.Thread(target=world.supervisor.run, daemon=True)
    world.start()


def exported(world: Installation, target: Path) -> Path:
    uma = world.client("northbank/uma")
    with target.open("wb") as file:
        uma.fetch_artifact(world.done(uma, uma.evidence.export("northbank")), file)
    return target


def test_old_evidence_and_new_verify_under_the_trust_root_that_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = Installation()
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
        halt(world)
        purposes: tuple[Purpose, ...] = ("log", "attestation", "warrant", "model")
        files = [tmp_path / f"{purpose}.dsse.json" for purpose in purposes]
        for purpose, file in zip(purposes, files, strict=True):
            assert run(["keys", "rotate", purpose, *data, "--out", str(file)]) == 0, capsys.readouterr().err
        again(world)
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
        told = sorted((tmp_path / "told").iterdir())
        assert [file.read_bytes() for file in told] == [file.read_bytes() for file in files]
        payloads = [dsse.Envelope.from_json(file.read_bytes()).payload for file in files]
        assert logged[-4:] == [hashlib.sha256(payload).hexdigest() for payload in payloads]
        fsck = ["log", "fsck", *data, "--tenant", "northbank", "--tenant", "platform"]
        assert run(fsck) == 0, capsys.readouterr()
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
        assert rotation.current(done.after, "log") == rotation.current(old, "log")
        assert rotation.current(done.after, "model") != rotation.current(old, "model")
        assert rotating.rotate(world.settings, "log").before == done.after
        world._thread.join = lambda *_: None  # type: ignore[method-assign]  # As above.
    finally:
        world.stop()


def test_another_installations_database_is_not_given_these_keys(tmp_path: Path) -> None:
    del tmp_path
    one, other = Installation(), Installation()
    try:
        (one.settings.trust_root).write_bytes(other.settings.trust_root.read_bytes())
        with pytest.raises((ConfigurationError, VerificationError)):
            rotating.rotate(one.settings, "model")
    finally:
        for world in (one, other):
            world._thread.join = lambda *_: None  # type: ignore[method-assign]  # They were never served.
            world.stop()
