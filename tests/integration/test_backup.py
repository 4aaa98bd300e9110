"""A backup of a service at work is of one moment, and a restore never forks a log."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from service_world import Installation, free_port, table

from licet_attestations.checkpoint import verify_checkpoint
from licet_attestations.signer.state import Head
from licet_attestations.trustroot import TrustRoot
from licet_engine.backup import MANIFEST, backup, restore
from licet_engine.cli import run
from licet_engine.client import LicetClient
from licet_engine.domain.errors import ConfigurationError
from licet_engine.log.fsck import verify_logs
from licet_engine.serve import Supervisor
from licet_engine.settings import load_settings
from licet_engine.store.db import open_engine


@pytest.fixture(scope="module")
def served() -> Iterator[Installation]:
    """An installation of its own, on SQLite: what is restored from it must not disturb others."""
    installation = Installation(checkpoint_interval_s=0.2, database_urls="")
    try:
        installation.start()
        installation.people("northbank", "us")
        for name in ("loans", "held"):
            assert installation.register("northbank/ana", name, table()).state == "done"
        cora = installation.client("northbank/cora")
        held = cora.act("dataset.hold", "northbank/held", {"reason": "an inquiry"})
        assert installation.done(cora, held).state == "done"
        yield installation
    finally:
        installation.stop()


@pytest.fixture(scope="module")
def taken(served: Installation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup that was made while decisions were written."""
    stop = threading.Event()

    def ask() -> None:
        with LicetClient(served.url, served.tokens["northbank/ana"]) as client:
            while not stop.is_set():
                client.ask("dataset.read", "northbank/loans")

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    target = tmp_path_factory.mktemp("backup") / "b"
    try:
        time.sleep(0.3)
        backup(served.settings, target)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    return target


def manifest(taken: Path) -> dict[str, Any]:
    return dict(json.loads((taken / MANIFEST).read_text()))


@pytest.fixture
def copy(taken: Path, tmp_path: Path) -> Path:
    target = tmp_path / "copy"
    shutil.copytree(taken, target)
    return target


def test_what_the_signer_last_signed_is_exactly_the_log_that_was_copied(taken: Path, served: Installation) -> None:
    root = TrustRoot.from_json((taken / "trust-root.json").read_bytes())
    logs = manifest(taken)["logs"]
    assert {"platform", "northbank"} <= logs.keys()
    for tenant, stated in logs.items():
        checkpoint = verify_checkpoint(stated["checkpoint"], root.origin(tenant), root.keys("log"))
        head = Head.from_bytes((taken / "signer" / "state" / f"{tenant}.json").read_bytes())
        assert (stated["size"], stated["root_hex"]) == (checkpoint.size, checkpoint.root.hex())
        assert (head.size, head.root) == (checkpoint.size, checkpoint.root)
    # The service went on, and is not disturbed: what it signs next extends what was signed for the backup.
    assert served.client("northbank/uma").log.read("northbank").size > logs["northbank"]["size"]
    assert served.client("northbank/ana").ask("dataset.read", "northbank/loans").allowed
    assert "no checkpoint could be signed" not in served.output()


def test_everything_in_a_backup_is_its_owners_alone(taken: Path) -> None:
    for path in (taken, *taken.rglob("*")):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    assert not list(taken.rglob("operator.token"))


def test_a_restored_installation_serves_and_goes_on_with_every_log(taken: Path, served: Installation) -> None:
    data = served.data.parent / "r"
    report = restore(taken, data)
    assert report.unsigned == []
    settings = load_settings({}, data=data, port=free_port(), router_port=free_port())
    supervisor = Supervisor(settings, log=served.data.parent / "restored.log")
    try:
        supervisor.start()
        with LicetClient(supervisor.url, served.tokens["northbank/ana"]) as ana:
            # The rows can still be decrypted: keys, objects and facts belong together.
            operation = ana.dataset.read("northbank/loans").require().operation
            assert operation is not None
            assert ana.wait(operation, timeout_s=60).state == "done"
        with LicetClient(supervisor.url, served.tokens["northbank/uma"]) as uma:
            assert uma.log.read("northbank").size > report.logs["northbank"]
    finally:
        supervisor.stop()
    engine = open_engine(settings.database)
    try:
        assert {found.tenant_id for found in verify_logs(engine)} >= {"platform", "northbank"}
    finally:
        engine.dispose()


def test_the_marks_of_holds_come_back(taken: Path, served: Installation, tmp_path: Path) -> None:
    restore(taken, tmp_path / "new")
    holds = Path("worker", "adapters", "local-objects", "holds")
    marks = {path.relative_to(served.data) for path in (served.data / holds).rglob("*") if path.is_file()}
    assert marks
    assert {
        path.relative_to(tmp_path / "new") for path in (tmp_path / "new" / holds).rglob("*") if path.is_file()
    } == marks


def test_a_backup_behind_the_surviving_signer_is_refused(copy: Path, served: Installation, tmp_path: Path) -> None:
    served.client("northbank/ana").ask("dataset.read", "northbank/loans")
    served.client("northbank/uma").log.read("northbank")
    with pytest.raises(ConfigurationError, match=r"would fork the log of .*the signer knows"):
        restore(copy, tmp_path / "new", signer_data=served.settings.signer_data)
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / ".new.part").exists()


def test_a_backup_behind_what_an_auditor_kept_is_refused(copy: Path, served: Installation, tmp_path: Path) -> None:
    note = tmp_path / "kept"
    old = tmp_path / "old"
    old.write_text(manifest(copy)["logs"]["northbank"]["checkpoint"])
    restore(copy, tmp_path / "reached", checkpoints=[old])
    served.client("northbank/ana").ask("dataset.read", "northbank/loans")
    note.write_text(served.client("northbank/uma").log.read("northbank").checkpoint)
    with pytest.raises(ConfigurationError, match="would fork the log of northbank"):
        restore(copy, tmp_path / "new", checkpoints=[note])


def _state_ahead(copy: Path) -> None:
    path = copy / "signer" / "state" / "northbank.json"
    head = Head.from_bytes(path.read_bytes())
    path.write_bytes(Head(head.size + 5, b"\x01" * 32, head.signed_at_ms).to_bytes())
    _remeasure(copy, "signer/state/northbank.json")


def _other_root(copy: Path) -> None:
    path = copy / "signer" / "state" / "northbank.json"
    head = Head.from_bytes(path.read_bytes())
    path.write_bytes(Head(head.size, b"\x01" * 32, head.signed_at_ms).to_bytes())
    _remeasure(copy, "signer/state/northbank.json")


def _changed_object(copy: Path) -> None:
    path = next((copy / "worker" / "adapters" / "local-objects" / "objects").rglob("*"))
    while path.is_dir():
        path = next(path.iterdir())
    path.write_bytes(path.read_bytes()[:-1] + b"\x00\x00")


def _changed_log(copy: Path) -> None:
    with sqlite3.connect(copy / "store" / "licet.db") as database:
        database.execute("UPDATE log_leaf SET hash = zeroblob(32) WHERE tenant_id = 'northbank' AND leaf_index = 3")
    database.close()
    _remeasure(copy, "store/licet.db")


def _forged_checkpoint(copy: Path) -> None:
    body = manifest(copy)
    note = body["logs"]["northbank"]["checkpoint"]
    body["logs"]["northbank"]["checkpoint"] = note.replace(note[-20], "A" if note[-20] != "A" else "B")
    (copy / MANIFEST).write_text(json.dumps(body))


def _way_out(copy: Path) -> None:
    body = manifest(copy)
    body["files"]["../evil"] = {"sha256": "0" * 64, "bytes": 0}
    (copy / MANIFEST).write_text(json.dumps(body))


def _link(copy: Path) -> None:
    path = copy / "trust-root.json"
    target = copy / "elsewhere"
    path.rename(target)
    path.symlink_to(target)


def _missing_log(copy: Path) -> None:
    body = manifest(copy)
    body["logs"]["gone"] = {"size": 3, "root_hex": "00" * 32, "checkpoint": ""}
    (copy / MANIFEST).write_text(json.dumps(body))


def _remeasure(copy: Path, name: str) -> None:
    """As somebody would who can write to a backup: the manifest agrees again."""
    body = manifest(copy)
    data = (copy / name).read_bytes()
    body["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (copy / MANIFEST).write_text(json.dumps(body))


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (_state_ahead, "would fork the log of northbank: the signer knows"),
        (_other_root, "would fork the log of northbank: its first"),
        (_changed_object, "is not the file that the manifest names"),
        (_changed_log, "log of northbank in the backup is damaged"),
        (_forged_checkpoint, "checkpoint of northbank in the manifest is not genuine"),
        (_way_out, "no place in an installation"),
        (_link, "cannot be read"),
        (_missing_log, "logs that it does not hold: gone"),
        (lambda copy: (copy / MANIFEST).write_text("[]"), "no manifest of version 1"),
        (lambda copy: (copy / MANIFEST).unlink(), "is no backup"),
    ],
)
def test_a_backup_that_was_changed_is_refused_and_leaves_nothing(
    copy: Path, tmp_path: Path, harm: Callable[[Path], None], told: str
) -> None:
    harm(copy)
    with pytest.raises(ConfigurationError, match=told):
        restore(copy, tmp_path / "new")
    assert not list(tmp_path.glob("*new*"))


def test_nothing_is_written_over(taken: Path, served: Installation, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="exists already"):
        backup(served.settings, taken)
    with pytest.raises(ConfigurationError, match="exists already"):
        restore(taken, tmp_path)


def test_where_there_is_no_installation_nothing_is_backed_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["backup", str(tmp_path / "b"), "--data", str(tmp_path / "none")]) == 2
    assert "holds no installation" in capsys.readouterr().err


def test_keys_come_back_as_they_were_under_the_passphrase_alone(
    served: Installation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("correct horse\n")
    secret.chmod(0o600)
    sealed = tmp_path / "keys.sealed"
    told = ["--passphrase-file", str(secret), "--format", "json"]
    short = tmp_path / "short"
    short.write_text("x\n")
    short.chmod(0o600)
    assert run(["keys", "backup", str(sealed), "--data", str(served.data), "--passphrase-file", str(short)]) == 2
    assert "at least 12" in capsys.readouterr().err
    assert not sealed.exists()
    assert run(["keys", "backup", str(sealed), "--data", str(served.data), *told]) == 0
    before = json.loads(capsys.readouterr().out)["trust_root"]
    assert stat.S_IMODE(sealed.stat().st_mode) == 0o600
    assert run(["keys", "restore", str(sealed), "--data", str(tmp_path / "new"), *told]) == 0
    assert json.loads(capsys.readouterr().out)["trust_root"] == before
    for path in (served.settings.signer_data / "keys").glob("*.json"):
        assert (tmp_path / "new" / "signer" / "keys" / path.name).read_bytes() == path.read_bytes()
    # With the keys comes what they signed last, so that they sign no fork.
    state = Head.from_bytes((tmp_path / "new" / "signer" / "state" / "platform.json").read_bytes())
    assert state.size > 0
    # Neither over keys that are there, nor into a file that is there, nor with another passphrase, nor if it was changed.
    assert run(["keys", "restore", str(sealed), "--data", str(tmp_path / "new"), *told]) == 2
    assert run(["keys", "backup", str(sealed), "--data", str(served.data), *told]) == 2
    secret.write_text("another\n")
    assert run(["keys", "restore", str(sealed), "--data", str(tmp_path / "other"), *told]) == 2
    secret.write_text("correct horse\n")
    data = sealed.read_bytes()
    sealed.write_bytes(data.replace(b'"sealed":"', b'"sealed":"AAAA'))
    assert run(["keys", "restore", str(sealed), "--data", str(tmp_path / "other"), *told]) == 2
    assert not (tmp_path / "other" / "signer" / "trust-root.json").exists()
    assert "correct horse" not in capsys.readouterr().out
