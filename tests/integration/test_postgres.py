"""An installation on PostgreSQL as its operator has it: what is refused, what the doctor says, how it is copied and comes back."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from service_world import Installation, free_port, poll, table

from licet_engine.cli import run
from licet_engine.client import Answer, LicetClient
from licet_engine.commands import doctor
from licet_engine.domain.errors import ConfigurationError
from licet_engine.init import initialise, prepare_database, verify_prepared
from licet_engine.serve import Supervisor
from licet_engine.settings import Settings, load_settings
from licet_engine.store.access import Role
from postgres_server import PostgresServer

GUIDE = Path(__file__).parents[2] / "docs" / "operations.md"


@pytest.fixture(scope="module")
def installation(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    urls = postgres.write_urls(postgres.create(), tmp_path_factory.mktemp("database") / "urls")
    made = Installation(database_urls=str(urls), checkpoint_interval_s=0.2)
    try:
        made.start()
        made.people("northbank", "us")
        assert made.register("northbank/ana", "loans", table()).state == "done"
        yield made
    finally:
        made.stop()


# --- what is refused ------------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(postgres: PostgresServer, tmp_path: Path) -> Iterator[Settings]:
    """Of an installation that is yet to be made, on an empty database."""
    name = postgres.create()
    yield load_settings({}, data=tmp_path / "d", database_urls=str(postgres.write_urls(name, tmp_path / "urls")))
    postgres.drop(name)


def put_url(settings: Settings, role: Role, change: tuple[str, str]) -> None:
    path = settings.database_url_file(role.value)
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change))


@pytest.mark.parametrize("role", list(Role), ids=lambda role: role.value)
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("-pass-word", "-s3cret-typo"), "password authentication failed"),
        (("licet_", "nobody_"), "password authentication failed"),
        (("?host=%2F", "?host=%2Fnowhere"), "nowhere"),
        (("@/licet", "@/no_such"), "does not exist"),
        (("postgresql://", "mysql://"), "holds no URL"),
    ],
    ids=["wrong-password", "no-such-role", "nobody-there", "no-such-database", "no-such-kind"],
)
def test_a_database_that_cannot_be_used_is_told_by_file_role_and_reason_and_never_by_password(
    settings: Settings, role: Role, change: tuple[str, str], told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    put_url(settings, role, change)
    with pytest.raises(ConfigurationError, match=told) as refused:
        prepare_database(settings)
    (found,) = [finding for finding in doctor.look_at_database(settings) if finding.state == "broken"]
    for text in (refused.value.message, found.detail, *capfd.readouterr()):
        assert "pass-word" not in text
        assert "s3cret-typo" not in text
    for text in (refused.value.message, found.detail):
        assert str(settings.database_url_file(role.value)) in text


@pytest.mark.parametrize(
    "url",
    [
        *("licet_api:pa@SECRETss@127.0.0.1:1/licet", "licet_api:pa@SECR:ETss@127.0.0.1:1/licet"),
        *("licet_api:pa@SEC?RET@127.0.0.1:1/licet", "licet_api:pa@SEC/RET@127.0.0.1:1/licet"),
        *("licet_api:SECRET@[::1/licet", "licet_api:SECRET@127.0.0.1:notaport/licet", "licet_api:SECRET/licet"),
        *("licet_api:SECRET@127.0.0.1:99999/licet", "licet_api:SECRET@127.0.0.1:1/licet?bad=1"),
        *(
            "licet_api@127.0.0.1:1/licet?password=SECRET",
            "licet_api:SEC%2FRET@127.0.0.1:1/licet?connect_timeout=SEC/RET",
        ),
        *("licet_api:SEC[RET@127.0.0.1:1/licet", "licet_api:x%ZZSECRET@127.0.0.1:1/licet"),
        "licet_api:SECRET@SECRET.invalid:1/licet?options=SECRET",
    ],
)
def test_nothing_of_a_password_is_told_however_the_url_is_written(settings: Settings, url: str) -> None:
    path = settings.database_url_file("api")
    path.write_text(f"postgresql://{url}")
    with pytest.raises(ConfigurationError) as refused:
        prepare_database(settings)
    found = next(iter(doctor.look_at_database(settings)))
    assert found.state == "broken"
    for text in (refused.value.message, found.detail):
        assert str(path) in text
        assert "SEC" not in text
        assert "RET" not in text
    assert refused.value.__cause__ is None


def test_an_unescaped_at_sign_is_told_to_be_escaped_and_works_then(
    settings: Settings, postgres: PostgresServer
) -> None:
    path = settings.database_url_file("worker")
    right = path.read_text()
    with postgres.admin() as admin:
        admin.execute("ALTER ROLE licet_worker PASSWORD 'p@ss'")
    try:
        path.write_text(right.replace("worker-pass-word", "p@ss"))
        with pytest.raises(ConfigurationError, match=rf"{path} has more than one @: write each .* as %40"):
            prepare_database(settings)
        path.write_text(right.replace("worker-pass-word", "p%40ss"))
        prepare_database(settings)
    finally:
        with postgres.admin() as admin:
            admin.execute("ALTER ROLE licet_worker PASSWORD 'worker-pass-word'")


@pytest.mark.parametrize("role", list(Role), ids=lambda role: role.value)
def test_a_superuser_is_refused_in_every_place(settings: Settings, role: Role) -> None:
    put_url(settings, role, (f"licet_{role.value}:{role.value}-", "postgres:postgres-"))
    with pytest.raises(ConfigurationError, match="is a superuser"):
        prepare_database(settings)
    assert "is a superuser" in next(iter(doctor.look_at_database(settings))).detail


def test_two_processes_do_not_share_a_role(settings: Settings) -> None:
    put_url(settings, Role.WORKER, ("licet_worker:worker-", "licet_api:api-"))
    with pytest.raises(ConfigurationError, match="name the same database role"):
        prepare_database(settings)


def test_a_file_that_others_can_read_is_refused_and_one_that_is_not_there_is_named(settings: Settings) -> None:
    path = settings.database_url_file("api")
    path.chmod(0o640)
    with pytest.raises(ConfigurationError, match=f"chmod 0600 {path}"):
        prepare_database(settings)
    path.unlink()
    with pytest.raises(ConfigurationError, match=f"{path} cannot be read"):
        prepare_database(settings)


def test_supervisors_that_start_at_once_prepare_the_database_one_after_the_other(settings: Settings) -> None:
    with ThreadPoolExecutor(4) as pool:
        for started in [pool.submit(prepare_database, settings) for _ in range(4)]:
            started.result(60)


def test_without_the_owner_only_what_is_at_its_version_is_served(settings: Settings) -> None:
    owner = settings.database_url_file("owner")
    text = owner.read_text()
    owner.unlink()
    with pytest.raises(ConfigurationError, match="holds the owner's URL"):
        prepare_database(settings)
    owner.touch(0o600)
    owner.write_text(text)
    initialise(settings)
    owner.unlink()
    prepare_database(settings)


# --- one database, one installation ------------------------------------------------------------------------------------------


def operators(postgres: PostgresServer, settings: Settings) -> int:
    with postgres.admin(postgres.name_of(settings.database_urls)) as admin:
        (count,) = admin.execute("SELECT count(*) FROM api_token").fetchone() or (0,)
        return int(count)


def test_a_second_installation_is_neither_made_nor_served_on_the_database_of_a_first(
    settings: Settings, postgres: PostgresServer, tmp_path: Path
) -> None:
    initialise(settings)
    other = replace(settings, data=tmp_path / "other")
    for _ in range(2):
        with pytest.raises(
            ConfigurationError, match=r"holds an installation already \('licet', trust root [0-9a-f]{16}\)"
        ):
            initialise(other)
    assert operators(postgres, settings) == 1
    # One that was made elsewhere, and is told of this database afterwards.
    initialise(replace(other, database_urls=str(postgres.write_urls(postgres.create(), tmp_path / "urls-2"))))
    for verify in (prepare_database, verify_prepared):
        with pytest.raises(ConfigurationError, match="the database is of another installation"):
            verify(other)
    (finding,) = doctor.doctor_state.look_at_belonging(other)
    assert finding.state == "broken"
    # The first, and another slot of it, are none the worse.
    prepare_database(settings)
    verify_prepared(replace(settings, slot=2))
    (finding,) = doctor.doctor_state.look_at_belonging(settings)
    assert finding.state == "ok"


def test_of_two_installations_that_are_made_at_once_on_one_database_one_is(settings: Settings, tmp_path: Path) -> None:
    both = [settings, replace(settings, data=tmp_path / "other")]
    with ThreadPoolExecutor(2) as pool:
        ended = [pool.submit(initialise, one) for one in both]
    errors = [future.exception(60) for future in ended]
    (error,) = [error for error in errors if error is not None]
    assert isinstance(error, ConfigurationError)
    assert "holds an installation already" in error.message


def test_an_installation_that_was_broken_off_is_gone_on_with(settings: Settings) -> None:
    initialise(settings)
    for name in ("installed", "operator.token"):
        (settings.data / name).unlink()
    initialise(settings)


def test_a_database_of_a_version_that_did_not_say_whose_it_was_says_it_from_the_next_start_on(
    settings: Settings, postgres: PostgresServer, tmp_path: Path
) -> None:
    initialise(settings)
    with postgres.admin(postgres.name_of(settings.database_urls)) as admin:
        admin.execute("DELETE FROM installation")
    # Nor is such a one anybody's to take.
    with pytest.raises(ConfigurationError, match="holds an installation already"):
        initialise(replace(settings, data=tmp_path / "other"))
    assert [found.state for found in doctor.doctor_state.look_at_belonging(settings)] == ["weak"]
    prepare_database(settings)
    assert [found.state for found in doctor.doctor_state.look_at_belonging(settings)] == ["ok"]


@pytest.mark.parametrize("role", [Role.API, Role.SEQUENCER, Role.WORKER], ids=lambda role: role.value)
def test_no_role_but_the_owner_can_change_whose_the_database_is(
    settings: Settings, postgres: PostgresServer, role: Role
) -> None:
    prepare_database(settings)
    with postgres.admin(postgres.name_of(settings.database_urls)) as admin:
        for right in ("INSERT", "UPDATE"):
            asked = (f"licet_{role.value}", right)
            assert admin.execute("SELECT has_any_column_privilege(%s, 'installation', %s)", asked).fetchone() == (
                False,
            )
        asked = (f"licet_{role.value}", "DELETE")
        assert admin.execute("SELECT has_table_privilege(%s, 'installation', %s)", asked).fetchone() == (False,)


# --- two apis ---------------------------------------------------------------------------------------------------------------


@contextmanager
def another_api(installation: Installation, folder: Path) -> Iterator[Supervisor]:
    """A second slot of the installation, started now."""
    settings = replace(installation.settings, slot=2, port=free_port(), router_port=free_port())
    second = Supervisor(settings, log=folder / "second.log", longest_pause_s=0.5)
    try:
        second.start()
        yield second
    finally:
        second.stop()


def test_a_candidate_is_asked_by_every_api_also_one_that_starts_later_and_what_they_count_adds_up(
    installation: Installation, tmp_path: Path
) -> None:
    closed = '@id("team.closing")\nforbid (principal, action == Action::"catalogue.read", resource);'
    sam, ana = installation.client("northbank/sam"), installation.client("northbank/ana")
    bundle = installation.publish("northbank/sam", {"policies": closed})
    sam.policy.shadow("northbank", bundle.partition("/")[2]).require()
    with another_api(installation, tmp_path) as second:
        with LicetClient(second.url, installation.tokens["northbank/ana"]) as other:
            asked = [client.ask("catalogue.read", "northbank") for _ in range(10) for client in (ana, other)]
        assert all(answer.allowed for answer in asked)
        found = poll(
            "all of them to be compared",
            lambda: (told := sam.policy.flips("northbank"))["counts"]["to_deny"] >= len(asked) and told,
        )
    assert found["by_policy"] == [{"policy": "team.closing", "to_deny": 20, "to_allow": 0}]
    assert {flip["decision"] for flip in found["flips"]} == {answer.decision_id for answer in asked}
    assert found["counts"]["dropped"] == 0
    sam.policy.shadow("northbank", off=True).require()


def test_policies_that_are_activated_or_rolled_back_are_in_force_at_once_in_every_api(
    installation: Installation, tmp_path: Path
) -> None:
    closed = '@id("team.closed")\nforbid (principal, action == Action::"catalogue.read", resource);'
    other = installation.client("northbank/all")
    told: list[tuple[float, bool]] = []
    stop = threading.Event()

    def ask(second: Supervisor) -> None:
        with LicetClient(second.url, installation.tokens["northbank/ana"]) as ana:
            while not stop.is_set():
                began_s = time.monotonic()
                allowed = ana.ask("catalogue.read", "northbank").allowed
                told.append((began_s, allowed))

    def change(act: Callable[[], Answer], *, allows: bool) -> None:
        """Change the policies by the first api, and see what the second answers from then on, until some answers are there."""
        act().require()
        since_s = time.monotonic()
        after = poll("answers", lambda: (found := [a for a in told if a[0] >= since_s])[4:] and found)
        # Whatever is asked once the change is answered is decided by what came into force: not within a second, but at once.
        assert {allowed for _, allowed in after} == {allows}

    with another_api(installation, tmp_path) as second:
        thread = threading.Thread(target=ask, args=(second,))
        thread.start()
        try:
            for _ in range(3):
                # One can roll back once: what came back is published and activated over again.
                bundle = installation.publish("northbank/sam", {"policies": closed})
                change(partial(other.policy.activate, bundle), allows=False)
                change(partial(other.policy.roll_back, "northbank"), allows=True)
        finally:
            stop.set()
            thread.join()


# --- what the doctor says -------------------------------------------------------------------------------------------------


def test_the_doctor_looks_into_the_database_as_it_does_on_sqlite(installation: Installation) -> None:
    found = {finding.check: finding for finding in doctor.examine(installation.settings)}
    for check in ("migrations", "clock", "logs", "retention", "break-glass", "api ready"):
        assert found[check].state == "ok", found[check]
    assert found["tokens"].detail == "end within a week: northbank/admin"
    assert found["logs"].detail.startswith("3 logs")
    # The test's own server does not wait for the disk, and that is told.
    assert (found["database"].state, found["database"].detail.partition(";")[0]) == ("weak", "off: fsync")


# --- back-up and restore ---------------------------------------------------------------------------------------------------


def blocks() -> tuple[str, str]:
    """The two blocks of commands in the operations guide."""
    section = GUIDE.read_text().partition("### Back-up and restore")[2]
    backup, restore = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    return backup, restore


def shell(script: str, environment: dict[str, str]) -> None:
    path = f"{Path(sys.executable).parent}:{environment['PATH']}"
    ended = subprocess.run(
        ["/bin/bash", "-c", script],
        env={**os.environ, **environment, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_a_backup_of_a_service_at_work_comes_back_and_goes_on_with_every_log(
    installation: Installation, postgres: PostgresServer, tmp_path: Path
) -> None:
    source = postgres.name_of(installation.settings.database_urls)
    backup, restore = blocks()
    stop = threading.Event()

    def ask() -> None:
        with LicetClient(installation.url, installation.tokens["northbank/ana"]) as client:
            while not stop.is_set():
                assert client.ask("dataset.read", "northbank/loans").allowed

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    taken = tmp_path / "b"
    try:
        shell(
            backup,
            postgres.environment(source) | {"BACKUP": str(taken), "LICET_DATA": str(installation.data)},
        )
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not [path for path in (taken, *taken.iterdir()) if path.stat().st_mode & 0o077]

    target = postgres.create()
    urls = postgres.write_urls(target, tmp_path / "urls")
    with tempfile.TemporaryDirectory(prefix="lc-") as folder:
        data = Path(folder) / "n"
        places = {"BACKUP": str(taken), "NEW": str(data), "LICET_DATABASE_URLS": str(urls)}
        shell(restore, postgres.environment(target) | places)
        settings = load_settings({}, data=data, port=free_port(), router_port=free_port(), database_urls=str(urls))
        supervisor = Supervisor(settings, log=tmp_path / "restored.log")
        try:
            supervisor.start()
            with LicetClient(supervisor.url, installation.tokens["northbank/ana"]) as ana:
                # The rows can still be decrypted: keys, objects and facts belong together.
                operation = ana.dataset.read("northbank/loans").require().operation
                assert operation is not None
                assert ana.wait(operation, timeout_s=60).state == "done"
            states = {found.state for found in doctor.look_at_database(settings)}
            assert "broken" not in states
            (logs,) = doctor.doctor_state.look_at_logs(settings)
            assert logs.state == "ok", logs
        finally:
            supervisor.stop()
    printed = (tmp_path / "restored.log").read_text()
    assert "no checkpoint could be signed" not in printed


def test_the_commands_for_sqlite_refuse_and_say_what_to_do(
    installation: Installation, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LICET_DATABASE_URLS", installation.settings.database_urls)
    for arguments in (
        ["backup", str(tmp_path / "b"), "--data", str(installation.data)],
        ["restore", str(tmp_path / "b"), "--data", str(tmp_path / "n")],
    ):
        assert run(arguments) == 2
        told = capsys.readouterr().err
        assert "pg_dump" in told
        assert "Copy signer/state, then" in told
    assert not list(tmp_path.iterdir())
