"""Started as root, each process is a user of its own: what each may reach, tried by real processes as those users."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from service_world import Installation, table

from databases import KINDS
from licet_engine.demo.stage import free_port
from licet_engine.domain.errors import ConfigurationError
from licet_engine.separation import Separation, find_separation, launch_command
from licet_engine.serve import Supervisor
from licet_engine.settings import load_settings
from licet_engine.users import Process, Users
from postgres_server import PostgresServer

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start processes as other users")

_CALL = """
import sys
from pathlib import Path
from licet_attestations import rpc
try:
    rpc.call(Path(sys.argv[1]), sys.argv[2], {})
except Exception as error:
    print(getattr(error, "code", type(error).__name__))
"""
_READ = "import sys; open(sys.argv[1], 'rb').read(); print('read')"
_WRITE = "import sys; open(sys.argv[1], 'ab'); print('written')"
_BECOME = "import os, sys; os.setresuid(*[int(sys.argv[1])] * 3); print('became')"
_USERS = Users(64_210)


@pytest.fixture(scope="module", params=KINDS)
def apart(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    urls = ""
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        urls = str(server.write_urls(server.create(), tmp_path_factory.mktemp("database") / "urls"))
    made = Installation(users="on", database_urls=urls)
    try:
        made.start()
        made.people("northbank", "us")
        yield made
    finally:
        made.stop()


def as_process(made: Installation, process: Process, code: str, *arguments: object) -> str:
    """What a process of this user, started as the supervisor starts its own, says or fails with."""
    command = [sys.executable, "-P", "-c", code, *map(str, arguments)]
    separation = Separation(_USERS, has_namespace=True, notes=())
    ended = subprocess.run(
        launch_command(made.settings, separation, process, command), capture_output=True, text=True, check=False
    )
    lines = (ended.stdout if ended.returncode == 0 else ended.stderr).strip().splitlines()
    return lines[-1].partition(":")[0] if lines else ""


def uid_of(pid: int) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("Uid:"))
    found = set(line.split()[1:])
    assert len(found) == 1, line
    return int(found.pop())


def test_no_process_is_root_and_no_two_are_one_user(apart: Installation) -> None:
    found = {name: uid_of(apart.supervisor.pid(name)) for name in ("signer", "api", "worker")}
    assert found == {"signer": 64_211, "api": 64_212, "worker": 64_213}


@pytest.mark.parametrize(
    ("path", "readers"),
    [
        ("signer/keys/warrant.json", {"signer"}),
        ("signer/keys/root.json", {"signer"}),
        ("store/worker.alive", {"worker"}),
        ("operator.token", set()),
        ("trust-root.json", {"signer", "api", "worker"}),
    ],
)
def test_each_file_is_read_by_exactly_those_who_need_it(apart: Installation, path: str, readers: set[Process]) -> None:
    found = {name: as_process(apart, name, _READ, apart.data / path) for name in ("signer", "api", "worker")}
    assert found == {name: "read" if name in readers else "PermissionError" for name in found}


@pytest.mark.parametrize("other_port", [False, True], ids=["on its port", "on another port"])
def test_a_second_start_is_refused_and_takes_nothing_from_the_first(apart: Installation, *, other_port: bool) -> None:
    urls = apart.settings.database_urls
    database = apart.settings.database_url_file("worker") if urls else apart.settings.database
    before = database.stat()
    port = free_port() if other_port else apart.settings.port
    command = [str(Path(sys.executable).parent / "licet"), "serve", "--init"]
    ended = subprocess.run(
        [*command, "--data", str(apart.settings.data), "--port", str(port)],
        env={**os.environ, "LICET_DATABASE_URLS": urls},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 2
    assert ("is served already" if other_port else "cannot be used") in ended.stderr
    after = database.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert as_process(apart, "worker", _READ, database) == "read"


def test_the_database_is_for_api_and_worker_and_of_its_passwords_each_reads_its_own(apart: Installation) -> None:
    files: dict[Path, set[Process]] = {apart.settings.database: {"api", "worker"}}
    if apart.settings.database_urls:
        whose: dict[str, set[Process]] = {"owner": set(), "api": {"api"}, "sequencer": {"api"}, "worker": {"worker"}}
        files = {apart.settings.database_url_file(role): readers for role, readers in whose.items()}
    for path, readers in files.items():
        for name in ("signer", "api", "worker"):
            expected = "read" if name in readers else "PermissionError"
            assert as_process(apart, name, _READ, path) == expected, (name, path)


def test_nobody_can_put_a_file_beside_the_keys_or_change_the_trust_root(apart: Installation) -> None:
    for process in ("api", "worker"):
        for path in ("new", "run/new", "run/signer/new", "signer/new", "trust-root.json"):
            assert as_process(apart, process, _WRITE, apart.data / path) == "PermissionError", (process, path)
    assert as_process(apart, "api", _WRITE, apart.data / "spool" / "new") == "written"


# Params are looked at after the caller: who may call is told that there are none.
@pytest.mark.parametrize(
    ("process", "method", "answer"),
    [
        ("api", "sign_checkpoint", "attestation.format"),
        ("api", "last_checkpoint", "attestation.format"),
        ("api", "mint", "forbidden"),
        ("api", "attest", "forbidden"),
        ("api", "unwrap", "forbidden"),
        ("api", "new_data_key", "forbidden"),
        ("api", "sign_model", "forbidden"),
        ("api", "destroy_tenant_key", "forbidden"),
        ("worker", "mint", "attestation.format"),
        ("worker", "attest", "attestation.format"),
        ("worker", "unwrap", "attestation.format"),
        ("worker", "sign_checkpoint", "forbidden"),
        ("worker", "last_checkpoint", "forbidden"),
    ],
)
def test_the_signer_tells_its_callers_apart(apart: Installation, process: Process, method: str, answer: str) -> None:
    assert as_process(apart, process, _CALL, apart.settings.signer_socket, method) == answer


def test_the_internal_door_is_the_workers_alone(apart: Installation) -> None:
    door = apart.settings.api_socket
    found = {name: as_process(apart, name, _CALL, door, "no-such") for name in ("signer", "api", "worker")}
    assert found == {"signer": "rpc.unavailable", "api": "forbidden", "worker": "unknown-method"}


def test_the_worker_can_become_the_user_of_jobs_and_nobody_else(apart: Installation) -> None:
    found = {uid: as_process(apart, "worker", _BECOME, uid) for uid in (64_201, 64_211, 64_212, 1)}
    assert found == {64_201: "became", 64_211: "OSError", 64_212: "OSError", 1: "OSError"}
    # Its own 0 is itself, not the machine's.
    assert as_process(apart, "worker", _READ, "/etc/shadow") == "PermissionError"


def test_work_is_done_by_jobs_that_are_neither_root_nor_the_worker(apart: Installation) -> None:
    assert apart.register("northbank/ana", "loans", table()).state == "done"
    ana = apart.client("northbank/ana")
    launch = {"dataset": "northbank/loans", "environment": "us-east", "use": "credit-risk", "spec": {"epochs": 5}}
    run = apart.done(ana, ana.act("training.launch", "northbank/run-1", launch))
    assert run.state == "done"
    sandbox: dict[str, Any] = run.result["sandbox"]
    assert sandbox["kind"] == "bubblewrap", sandbox
    assert sandbox["checks"]["user"] == "uid 64201 outside"
    model = apart.done(ana, ana.act("model.register", "northbank/risk", {"run": "northbank/run-1", "tier": "high"}))
    assert model.state == "done"


def test_an_installation_changes_between_one_user_and_three_and_keeps_what_it_has() -> None:
    made = Installation(users="off")
    try:
        made.start()
        made.people("northbank", "us")
        assert made.register("northbank/ana", "loans", table()).state == "done"
        assert {uid_of(made.supervisor.pid(name)) for name in ("signer", "api", "worker")} == {0}
        before = made.size("northbank")
        for users, uids in (("on", {64_211, 64_212, 64_213}), ("off", {0})):
            made.supervisor.stop()
            made.supervisor = Supervisor(replace(made.settings, users=users), log=made.log)
            made.supervisor.start()
            assert {uid_of(made.supervisor.pid(name)) for name in ("signer", "api", "worker")} == uids
            assert made.register("northbank/ana", f"loans-{users}", table(odd=len(users))).state == "done"
        assert made.size("northbank") > before
    finally:
        made.stop()


def test_numbers_that_are_somebodys_are_refused(tmp_path: Path) -> None:
    # `daemon` is 1 wherever there is a Linux.
    with pytest.raises(ConfigurationError, match=r"user 1 is daemon here.*LICET_UID_BASE"):
        find_separation(load_settings({}, data=tmp_path, uid_base=1))


def test_where_three_users_must_be_and_cannot_nothing_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="LICET_USERS is on, and port 80 is open to root alone"):
        find_separation(load_settings({}, data=tmp_path, users="on", port=80))
    assert find_separation(load_settings({}, data=tmp_path, users="auto", port=80)).users is None
