"""The doctor finds what is weak or broken in a real installation, and names the way to mend it."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from licet_engine.cli import run
from licet_engine.commands import doctor
from licet_engine.init import initialise
from licet_engine.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("doctor") / "data"
    initialise(load_settings({}, data=data))
    return data


@pytest.fixture
def examine(made: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, list[doctor.Finding]]]:
    monkeypatch.setattr(doctor, "_SOCKET_TIMEOUT_S", 0.5)

    def look(**settings: Any) -> dict[str, list[doctor.Finding]]:
        found: dict[str, list[doctor.Finding]] = {}
        given = load_settings({}, data=made, port=1, router_port=2, **settings)
        for check in doctor.LOOKS:
            if check is not doctor.look_at_sandbox:  # It runs a job; the sandbox has tests of its own.
                for finding in check(given):
                    found.setdefault(finding.check, []).append(finding)
        return found

    return look


def states(found: list[doctor.Finding]) -> set[str]:
    return {finding.state for finding in found}


def test_a_fresh_installation_is_well_but_for_what_does_not_run(examine: Any) -> None:
    found = examine()
    for check in ("folder", "disk", "keys", "trust root", "migrations", "clock", "configuration", "belonging"):
        assert states(found[check]) == {"ok"}, found[check]
    for check in ("signer", "router", "worker", "api live", "api ready", "router ready"):
        assert states(found[check]) == {"broken"}
        assert found[check][0].mend.startswith("Start the service: licet serve")


def test_a_database_that_is_of_another_installation_is_broken(examine: Any, made: Path, tmp_path: Path) -> None:
    initialise(load_settings({}, data=tmp_path / "other"))
    own = (made / "trust-root.json").read_bytes()
    try:
        for place in (made, made / "signer"):
            (place / "trust-root.json").write_bytes((tmp_path / "other" / "trust-root.json").read_bytes())
        (finding,) = examine()["belonging"]
        assert finding.state == "broken"
        assert finding.detail.startswith("the database is of another installation")
    finally:
        for place in (made, made / "signer"):
            (place / "trust-root.json").write_bytes(own)
    assert states(examine()["belonging"]) == {"ok"}


def test_a_key_that_others_can_read_is_broken(examine: Any, made: Path) -> None:
    key = made / "signer" / "keys" / "log.json"
    key.chmod(0o640)
    try:
        (finding,) = examine()["keys"]
    finally:
        key.chmod(0o600)
    assert finding.state == "broken"
    assert f"chmod 0600 {key}" in finding.mend


def test_a_database_that_the_worker_shares_and_cannot_open_is_broken(examine: Any, made: Path) -> None:
    database = made / "store" / "licet.db"
    database.parent.chmod(0o2770)
    try:
        database.chmod(0o660)
        assert "database" not in examine()
        database.chmod(0o600)
        (finding,) = examine()["database"]
    finally:
        database.parent.chmod(0o700)
    assert finding.state == "broken"
    assert finding.mend.startswith("Start licet serve again")


def test_a_link_among_the_keys_is_broken(examine: Any, made: Path) -> None:
    link = made / "signer" / "keys" / "extra.json"
    link.symlink_to("/etc/passwd")
    try:
        assert "broken" in states(examine()["keys"])
    finally:
        link.unlink()


def test_a_folder_that_others_can_write_to_is_broken(examine: Any, made: Path) -> None:
    made.chmod(0o777)
    try:
        assert states(examine()["folder"]) == {"broken"}
    finally:
        made.chmod(0o700)


def test_a_trust_root_that_is_not_the_signers_is_broken(examine: Any, made: Path) -> None:
    path = made / "trust-root.json"
    own = path.read_bytes()
    path.write_bytes(own.replace(b'"instance":"licet"', b'"instance":"other"'))
    try:
        (finding,) = examine()["trust root"]
    finally:
        path.write_bytes(own)
    assert finding.state == "broken"
    assert "not the signer's own" in finding.detail


def test_a_log_ahead_of_the_clock_is_broken(examine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    yesterday_s = time.time() - 86_400
    monkeypatch.setattr(doctor.time, "time", lambda: yesterday_s)
    (finding,) = examine()["clock"]
    assert finding.state == "broken"
    assert "ahead of the clock" in finding.detail


def test_a_clock_that_was_never_set_is_broken(examine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.time, "time", lambda: 0.0)
    (finding,) = examine()["clock"]
    assert finding.state == "broken"


def test_tables_of_another_version_are_broken(examine: Any, made: Path) -> None:
    database = made / "store" / "licet.db"
    with closing(sqlite3.connect(database)) as connection:
        (now,) = connection.execute("SELECT version_num FROM licet_schema_version").fetchone()
        with connection:
            connection.execute("UPDATE licet_schema_version SET version_num = '0000'")
        try:
            (finding,) = examine()["migrations"]
        finally:
            with connection:
                connection.execute("UPDATE licet_schema_version SET version_num = ?", (now,))
    assert finding.state == "broken"
    assert f"needs {now}" in finding.detail


def test_a_setting_that_means_nothing_is_weak(examine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LICET_PROT", "8001")
    assert any("LICET_PROT" in finding.detail for finding in examine()["configuration"])


def test_listening_to_the_world_is_weak(examine: Any) -> None:
    assert "weak" in states(examine(host="0.0.0.0")["configuration"])  # noqa: S104  # Nothing listens.


def test_a_passphrase_file_that_others_can_read_is_broken(examine: Any, tmp_path: Path) -> None:
    file = tmp_path / "passphrase"
    file.write_text("secret")
    file.chmod(0o644)
    assert states(examine(key_passphrase_file=str(file))["passphrase"]) == {"broken"}
    assert states(examine(key_passphrase_file=str(tmp_path / "none"))["passphrase"]) == {"broken"}


def test_one_look_that_fails_does_not_hide_the_others(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def look_at_nothing(_settings: Any) -> Any:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(doctor, "LOOKS", (look_at_nothing, doctor.look_at_folder))
    found = doctor.examine(load_settings({}, data=made))
    assert [f.state for f in found if f.check == "nothing"] == ["weak"]
    assert any(f.check == "disk" for f in found)


@pytest.mark.parametrize("kind", ["text", "json"])
def test_the_command_ends_with_2_where_something_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    monkeypatch.setattr(doctor, "LOOKS", (doctor.look_at_folder,))
    assert run(["doctor", "--data", str(tmp_path / "none"), "--format", kind]) == 2
    out = capsys.readouterr().out
    if kind == "json":
        assert json.loads(out)["state"] == "broken"
    else:
        assert "licet init" in out


def test_the_command_ends_with_0_where_all_is_well(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "LOOKS", (doctor.look_at_keys,))
    assert run(["doctor", "--data", str(made), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "ok"


def test_ways_out_that_lead_to_this_machine_are_weak_and_others_are_not(examine: Any) -> None:
    assert states(examine()["ways out"]) == {"ok"}
    assert states(examine(outbound_networks="10.1.0.0/16, fd00::/8")["ways out"]) == {"ok"}
    for network in ("127.0.0.0/8", "0.0.0.0/0", "169.254.169.254/32", "::/0"):
        assert states(examine(outbound_networks=network)["ways out"]) == {"weak"}, network


def test_messages_that_were_given_up_are_weak(examine: Any, made: Path) -> None:
    assert states(examine()["messages"]) == {"ok"}
    now_ms = int(time.time() * 1000)
    with closing(sqlite3.connect(made / "store" / "licet.db")) as connection:
        with connection:
            connection.execute(
                "INSERT INTO webhook (tenant_id, id, name, url, events, unsafe_http, created_by, created_at_ms, secret,"
                " secret_before_until_ms, failures, rest_until_ms)"
                " VALUES ('platform', 'wh-1', 'ops', 'https://x', '[]', 0, 'operator', 1, 'wh-1', 0, 8, 0)"
            )
            connection.execute(
                "INSERT INTO webhook_message (tenant_id, id, webhook, event, body, state, tries, tries_before, created_at_ms,"
                " queued_at_ms, next_at_ms, claimed_until_ms, ended_at_ms)"
                " VALUES ('platform', 'msg_1', 'wh-1', 'webhook.test', '{}', 'failed', 8, 0, 1, 1, 1, 0, ?)",
                (now_ms,),
            )
        try:
            (finding,) = examine()["messages"]
        finally:
            with connection:
                connection.execute("DELETE FROM webhook_message")
                connection.execute("DELETE FROM webhook")
    assert finding.state == "weak"
    assert "1 were given up within a week; receivers that fail: platform/ops" in finding.detail


def test_what_is_held_and_lost_its_lock_is_told(examine: Any, made: Path) -> None:
    report = made / "store" / "storage.unlocked"
    faults = {"s3-objects": {"code": "locks.missing", "told": "1 of what is held"}}
    unseen = {"s3-registry": {"code": "locks.unseen", "told": "2 of what is held"}}
    report.write_text(json.dumps({"v": 1, "faults": faults, "unseen": unseen}))
    try:
        broken, weak = examine()["storage"]
    finally:
        report.unlink()
    assert (broken.state, broken.detail) == ("broken", "s3-objects: 1 of what is held")
    assert "place the hold again" in broken.mend
    assert (weak.state, weak.detail) == ("weak", "s3-registry: locks: 2 of what is held")


@pytest.mark.parametrize(
    "told", ["", "[]", '{"v": 1}', '{"v": 1, "faults": {"a": 1}}', '{"v": 1, "faults": {"a": {}}}']
)
def test_a_report_of_the_storage_that_cannot_be_read_is_told(examine: Any, made: Path, told: str) -> None:
    report = made / "store" / "storage.unlocked"
    report.write_text(told)
    try:
        (finding,) = examine()["storage"]
    finally:
        report.unlink()
    assert finding.state == "broken"
    assert "cannot be read" in finding.detail
