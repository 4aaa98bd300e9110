"""``licet doctor``: what is weak or broken in an installation, and how to mend it.

Rules kept here:

- It changes nothing: the database is opened for reading alone, keys are looked at from outside and never opened.
- What could not be looked at is said to be so; it never counts as well.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import stat
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import closing
from dataclasses import fields
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from licet_engine.commands import doctor_state, doctor_witnesses
from licet_engine.commands.desk import local
from licet_engine.commands.doctor_state import Finding
from licet_engine.commands.failures import EXIT_DENIED, EXIT_DONE, EXIT_ERROR
from licet_engine.commands.text import clean, labelled, time_text
from licet_engine.processes import is_alive
from licet_engine.storage import Report, read_report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from licet_engine.commands.doctor_state import State
    from licet_engine.settings import Settings

_GOOD_FREE_BYTES = 2 << 30
_EARLIEST_MS = 1_735_689_600_000  # 2025-01-01: a clock before this was never set.
_SHARED = 0o660
"""Of a file that api and worker, users of their own, both write."""
_MOST_AHEAD_MS = 1_000
_SOCKET_TIMEOUT_S = 3.0
_MIB = 1 << 20
_MEND_POSTGRES = "See PostgreSQL in docs/operations.md."
_CLIENT_VARIABLES = frozenset(
    {"LICET_URL", "LICET_SERVING_URL", "LICET_TOKEN", "LICET_TOKEN_FILE", "LICET_UNSAFE_PLAIN_HTTP", "LICET_DEBUG"}
)
_COLOURS = {"ok": "green", "weak": "yellow", "broken": "red"}


def look_at_configuration(settings: Settings) -> Iterator[Finding]:
    """Settings that mean nothing, or weaken the installation."""
    known = set(settings.to_environment()) | _CLIENT_VARIABLES
    unknown = sorted(name for name in os.environ if name.startswith("LICET_") and name not in known)
    if unknown:
        yield Finding("configuration", "weak", f"no setting is called {', '.join(unknown)}", "Correct or unset it.")
    for part, host in (("API", settings.host), ("router", settings.router_host)):
        if host not in {"127.0.0.1", "::1", "localhost"}:
            yield Finding(
                "configuration",
                "weak",
                f"the {part} listens on {host} without encryption of its own",
                "Listen on 127.0.0.1 behind a proxy that ends TLS.",
            )
    if settings.key_passphrase_file:
        yield from _private_file("passphrase", Path(settings.key_passphrase_file))
    else:
        yield Finding(
            "passphrase",
            "weak",
            "the signer's keys are stored without a passphrase: who copies the files has the keys",
            "Set LICET_KEY_PASSPHRASE_FILE before licet init, or encrypt the disk.",
        )
    yield Finding(
        "configuration", "ok", f"{len(fields(settings))} settings are valid; data in {settings.data.absolute()}"
    )


def _private_file(check: str, path: Path) -> Iterator[Finding]:
    try:
        status = path.stat()
    except OSError as error:
        yield Finding(check, "broken", f"{path}: {error.strerror}", "Put the file there, or correct the setting.")
        return
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        yield Finding(
            check,
            "broken",
            f"{path} has mode {mode:04o}: others can reach it",
            f"chmod 0600 {path}; if others may have read it, replace it.",
        )
    else:
        yield Finding(check, "ok", f"{path} is its owner's alone")


def look_at_folder(settings: Settings) -> Iterator[Finding]:
    """The data folder and the space it has."""
    data = settings.data
    if not data.is_dir():
        yield Finding(
            "folder", "broken", f"there is no folder {data}", f"Make the installation: licet init --data {data}"
        )
        return
    mode = stat.S_IMODE(data.stat().st_mode)
    if mode & 0o022:
        yield Finding("folder", "broken", f"{data} has mode {mode:04o}: others can write to it", f"chmod 0750 {data}")
    else:
        yield Finding("folder", "ok", f"{data} can be written by its owner alone")
    free = shutil.disk_usage(data).free
    state: State = "ok" if free >= _GOOD_FREE_BYTES else "weak" if free >= settings.min_free_bytes else "broken"
    mend = "" if state == "ok" else "Make room: when the disk is full nothing is decided, since nothing can be logged."
    yield Finding("disk", state, f"{free // _MIB} MiB are free", mend)


def look_at_keys(settings: Settings) -> Iterator[Finding]:
    """Modes of the signer's files, and the trust root beside them."""
    folder = settings.signer_data
    if not folder.exists():
        yield Finding(
            "keys",
            "broken",
            f"there are no keys in {folder}",
            f"Make the installation: licet init --data {settings.data}",
        )
        return
    try:
        wrong = [path for path in (folder, *sorted(folder.rglob("*"))) if _is_open(path)]
        count = sum(1 for _ in (folder / "keys").glob("*.json"))
    except PermissionError:
        yield Finding(
            "keys", "ok", f"{folder} is closed to this user, as it should be; run as its owner to look inside"
        )
        wrong, count = [], -1
    for path in wrong:
        mode = stat.S_IMODE(path.lstat().st_mode)
        wanted = "0700" if path.is_dir() else "0600"
        yield Finding(
            "keys",
            "broken",
            f"{path} has mode {mode:04o}: others can reach it",
            f"chmod {wanted} {path}; if others may have read a key, make a new installation and move to it.",
        )
    if count == 0:
        yield Finding(
            "keys", "broken", f"there are no keys in {folder / 'keys'}", "Restore the folder from its backup."
        )
    elif count > 0 and not wrong:
        yield Finding("keys", "ok", f"{count} key files, each its owner's alone")
    yield from _look_at_trust_root(settings)


def _is_open(path: Path) -> bool:
    status = path.lstat()
    return bool(stat.S_IMODE(status.st_mode) & 0o077) or stat.S_ISLNK(status.st_mode)


def _look_at_trust_root(settings: Settings) -> Iterator[Finding]:
    from licet_attestations.errors import LicetAttestationError  # noqa: PLC0415  # Only doctor needs it.
    from licet_attestations.trustroot import PURPOSES, TrustRoot  # noqa: PLC0415  # As above.

    path = settings.trust_root
    try:
        published = TrustRoot.from_json(path.read_bytes())
    except (OSError, LicetAttestationError) as error:
        yield Finding(
            "trust root", "broken", f"{path}: {error}", f"Copy {settings.signer_data / 'trust-root.json'} there."
        )
        return
    try:
        own = TrustRoot.from_json((settings.signer_data / "trust-root.json").read_bytes())
    except (OSError, LicetAttestationError):
        own = published
    if own.to_dict() != published.to_dict():
        yield Finding(
            "trust root",
            "broken",
            f"{path} is not the signer's own",
            "Find out who changed it; then copy the signer's there.",
        )
        return
    now_ms = int(time.time() * 1000)
    missing = [purpose for purpose in PURPOSES if not published.keys(purpose, now_ms)]
    if missing:
        yield Finding(
            "trust root", "broken", f"no key counts now for: {', '.join(missing)}", "Rotate the keys, or set the clock."
        )
    else:
        yield Finding("trust root", "ok", f"instance {published.instance}, a key for each purpose")


def look_at_database(settings: Settings) -> Iterator[Finding]:
    """The state of the migrations, and the clock against the newest entry of any log."""
    if settings.database_urls:
        yield from _look_at_postgres(settings)
        return
    path = settings.database
    if not path.is_file():
        yield Finding(
            "database",
            "broken",
            f"there is no database {path}",
            f"Make the installation: licet init --data {settings.data}",
        )
        return
    if stat.S_IMODE(path.stat().st_mode) & 0o007:
        yield Finding("database", "weak", f"{path} can be read by every user of this machine", f"chmod o= {path}")
    shared = path.parent.stat().st_mode & stat.S_ISGID and not path.is_symlink()
    if shared and path.stat().st_mode & _SHARED != _SHARED:
        yield Finding(
            "database",
            "broken",
            f"{path} is closed to the worker, which is a user of its own here",
            "Start licet serve again: it gives each process what is its own.",
        )
    try:
        with closing(sqlite3.connect(f"file:{path.absolute()}?mode=ro", uri=True, timeout=5)) as database:
            versions = database.execute("SELECT version_num FROM licet_schema_version").fetchall()
            newest_ms = database.execute("SELECT max(last_time_ms) FROM log_head").fetchone()[0]
            yield from _judge_tables([row[0] for row in versions], newest_ms or 0)
    except sqlite3.Error as error:
        yield Finding(
            "database", "broken", f"{path}: {error}", "Stop the service and restore the database from its backup."
        )


def _look_at_postgres(settings: Settings) -> Iterator[Finding]:
    from licet_engine.domain.errors import ConfigurationError  # noqa: PLC0415  # Servers only.
    from licet_engine.store.access import Role, verify_access  # noqa: PLC0415  # As above.

    refused = False
    for role in Role:
        # The owner's may be taken away once the tables are made.
        if role is not Role.OWNER or settings.database_url_file(role.value).exists():
            try:
                verify_access(settings, role)
            except ConfigurationError as error:
                refused = True
                yield Finding("database", "broken", error.message, _MEND_POSTGRES)
    if not refused:
        yield from _look_into_postgres(settings)


def _look_into_postgres(settings: Settings) -> Iterator[Finding]:
    from sqlalchemy import text  # noqa: PLC0415  # Servers only.
    from sqlalchemy.exc import DBAPIError  # noqa: PLC0415  # As above.

    from licet_engine.store import breaches  # noqa: PLC0415  # As above.
    from licet_engine.store.access import Role, open_database, role_names  # noqa: PLC0415  # As above.
    from licet_engine.store.db import read_transaction  # noqa: PLC0415  # As above.
    from licet_engine.store.migrations import VERSION_TABLE  # noqa: PLC0415  # As above.
    from licet_engine.store.postgres import EVERY_TENANT  # noqa: PLC0415  # As above.

    engine = open_database(settings, Role.API)
    try:
        with read_transaction(engine, EVERY_TENANT) as connection:
            versions = list(connection.execute(text("SELECT version_num FROM licet_schema_version")).scalars())
            newest_ms = connection.execute(text("SELECT max(last_time_ms) FROM log_head")).scalar()
            breach = breaches.first(connection, role_names(settings), version_table=VERSION_TABLE)
            told = breaches.connection_limits(connection, role_names(settings))
            lax = [
                name
                for name in ("fsync", "full_page_writes")
                if connection.execute(text(f"SHOW {name}")).scalar() != "on"
            ]
    except DBAPIError as error:
        # The class tells enough; the statement and the server's own words may name what is not for every eye.
        detail = f"the api's role cannot read its tables ({type(error.orig).__name__})"
        yield Finding(
            "database", "broken", detail, "Start licet serve with owner.url there: it makes tables and rights."
        )
        return
    finally:
        engine.dispose()
    if breach is not None:
        yield Finding("database", "broken", breach.what, breach.mend)
    yield from (Finding("connections", "weak", limit.what, limit.mend) for limit in told)
    if lax:
        named = " and ".join(lax)
        yield Finding(
            "database", "weak", f"off: {named}; a power cut loses decisions", f"Set {named} on in PostgreSQL."
        )
    elif breach is None:
        yield Finding("database", "ok", "PostgreSQL answers each role; every wall between tenants stands")
    yield from _judge_tables(versions, newest_ms or 0)


def _judge_tables(versions: list[str], head_ms: int) -> Iterator[Finding]:
    present = ", ".join(versions) or "none"
    newest = _newest_migration()
    if newest is None:
        yield Finding(
            "migrations",
            "weak",
            f"the database is at {present}; alembic is not installed to compare",
            "pip install 'licet[server]'",
        )
    elif present == newest:
        yield Finding("migrations", "ok", f"the database is at {present}, the newest")
    else:
        yield Finding(
            "migrations",
            "broken",
            f"the database is at {present}, this version of licet needs {newest}",
            "Back the database up, then start licet serve, which migrates it.",
        )
    now_ms = int(time.time() * 1000)
    if now_ms < _EARLIEST_MS:
        yield Finding("clock", "broken", f"the clock says {time_text(now_ms)}", "Set the clock, and keep it by NTP.")
    elif head_ms > now_ms + _MOST_AHEAD_MS:
        yield Finding(
            "clock",
            "broken",
            f"the newest log entry is of {time_text(head_ms)}, {(head_ms - now_ms) // 1000} s ahead of the clock",
            "Set the clock, and keep it by NTP: time never runs backwards in a log.",
        )
    else:
        yield Finding("clock", "ok", f"ahead of the newest log entry ({time_text(head_ms) if head_ms else 'none yet'})")


def _newest_migration() -> str | None:
    if find_spec("alembic") is None:
        return None
    from alembic.script import ScriptDirectory  # noqa: PLC0415  # Servers only.

    import licet_engine.store.migrations  # noqa: PLC0415  # As above.

    return ScriptDirectory(str(Path(str(licet_engine.store.migrations.__file__)).parent)).get_current_head()


def look_at_processes(settings: Settings) -> Iterator[Finding]:
    """Whether signer, api, router and worker answer."""
    from licet_attestations import rpc  # noqa: PLC0415  # Only doctor needs it.

    start = f"Start the service: licet serve --data {settings.data}"
    try:
        rpc.call(settings.signer_socket, "public", {}, _SOCKET_TIMEOUT_S)
        yield Finding("signer", "ok", f"answers at {settings.signer_socket}")
    except rpc.RpcFault as error:
        # It refuses this user, as it must refuse whoever is not the service: that is an answer.
        yield Finding("signer", "ok", f"is there at {settings.signer_socket}: {error}")
    except rpc.RpcUnavailable as error:
        yield Finding("signer", "broken", f"does not answer: {error}", start)
    for process, sign in (("router", settings.router_sign), ("worker", settings.worker_sign)):
        yield _look_at_sign(process, sign, start)
    for part, host, port, path in (
        ("api live", settings.host, settings.port, "/health/live"),
        ("api ready", settings.host, settings.port, "/health/ready"),
        ("router ready", settings.router_host, settings.router_port, "/v2/health/ready"),
    ):
        url = f"http://{_own(host)}:{port}{path}"
        try:
            with _opener().open(url, timeout=_SOCKET_TIMEOUT_S) as response:
                body = response.read(4096).decode("utf-8", "replace")
            yield Finding(part, "ok", f"{url} answers {_brief(body)}")
        except urllib.error.HTTPError as error:
            body = error.read(4096).decode("utf-8", "replace")
            yield Finding(
                part,
                "broken",
                f"{url} answers {error.code}: {_brief(body)}",
                "Look at the log of licet serve.",
            )
        except OSError as error:
            yield Finding(part, "broken", f"{url} does not answer: {getattr(error, 'reason', error)}", start)


def _own(host: str) -> str:
    """An address as part of a URL; what listens on every address is asked at this machine's own."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # Nothing is bound here.
    return f"[{host}]" if ":" in host else host


def _look_at_sign(process: str, path: Path, start: str) -> Finding:
    """Whether a process gives a sign of life, where its supervisor looks for it."""
    try:
        pid = int(path.read_text("ascii"))
        os.kill(pid, 0)
    except PermissionError:
        return Finding(process, "ok", f"runs as another user, or {path} is closed to this one")
    except (OSError, ValueError):
        return Finding(process, "broken", "does not run", start)
    if not is_alive(path):
        detail = f"process {pid} has given no sign of life for a while"
        return Finding(process, "broken", detail, "Look at its log.")
    return Finding(process, "ok", f"runs as process {pid}")


def _opener() -> urllib.request.OpenerDirector:
    """Asks this machine itself, whatever proxy the environment names."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _brief(body: str) -> str:
    try:
        value = json.loads(body)
    except ValueError:
        return body[:200]
    if not isinstance(value, dict):
        return body[:200]
    if "ready" in value:  # As the Open Inference Protocol says it.
        return "ready" if value["ready"] is True else "not ready"
    faults = ", ".join(map(str, (*(value.get("faults") or ()), *(value.get("degraded") or ()))))
    return f"{value.get('status')}" + (f": {faults}" if faults else "")


def look_at_users(settings: Settings) -> Iterator[Finding]:
    """Whether the processes are, or would be, users of their own, by trying."""
    from licet_engine.separation import find_separation  # noqa: PLC0415  # Only where processes are started.

    found = find_separation(settings)
    if found.users is not None:
        uids = f"{found.users.signer}, {found.users.api} and {found.users.worker}"
        yield Finding("users", "ok", f"signer, api and worker are users {uids}; the router is the worker's")
    for note in found.notes:
        yield Finding("users", "weak", note, "See LICET_USERS in docs/configuration.md.")


def look_at_storage(settings: Settings) -> Iterator[Finding]:
    """What the worker found out of the buckets that it uses: what they keep, whether they are there, and whether their locks are."""
    for path, what, mend in (
        (settings.storage_away, "something is away", "Mend what it names; operations are tried again meanwhile."),
        (settings.storage_unlocked, "a hold lost its lock", "Find out who lifted it; place the hold again."),
    ):
        try:
            report = read_report(path)
        except (OSError, ValueError) as error:
            report = Report(faults={}, unseen={})
            told = f"{what}; {path} cannot be read ({type(error).__name__})"
            yield Finding("storage", "broken", told, "Run licet doctor as who runs licet serve.")
        for name, told in report.faults.items():
            yield Finding("storage", "broken", f"{name}: {told}", mend)
        for name, told in report.unseen.items():
            yield Finding(
                "storage", "weak", f"{name}: locks: {told}", "Mend that; the worker looks for locks once an hour."
            )
    for name in dict.fromkeys((settings.objects_adapter, settings.registry_adapter)):
        if not name.startswith("s3-"):
            continue
        if settings.s3_credentials_file:
            yield from _private_file("storage", Path(settings.s3_credentials_file))
        path = settings.worker_data / "adapters" / name / "bucket.json"
        try:
            told = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            yield Finding(
                "storage",
                "weak",
                f"{name}: the bucket {settings.s3_bucket!r} was not reached yet ({type(error).__name__})",
                "Start the service, and look at its log for what keeps it from the bucket.",
            )
            continue
        for lack in told["refused"]:
            yield Finding("storage", "weak", f"{name}: {lack}", "Use a bucket that has it, or accept it knowingly.")
        kept = "kept" if told["object_lock"] else "not kept"
        yield Finding(
            "storage", "ok", f"{name}: {settings.s3_bucket} keeps conditions on writes; holds are {kept} by the store"
        )


def look_at_sandbox(_settings: Settings) -> Iterator[Finding]:
    """Whether jobs can be confined on this machine, by trying."""
    from licet_adapters.sandbox import Sandbox  # noqa: PLC0415  # Only where jobs run.

    missing = [name for name in ("torch", "fairlearn", "captum", "safetensors", "scipy") if find_spec(name) is None]
    if missing:
        yield Finding(
            "training",
            "weak",
            f"not installed: {', '.join(missing)}; no model can be trained or checked here",
            "pip install 'licet[train]'",
        )
    with tempfile.TemporaryDirectory(prefix="licet-doctor-") as folder:
        found = Sandbox(Path(folder)).probe()
    if found.kind == "none":
        yield Finding(
            "sandbox", "weak", "; ".join(found.notes), "Install bubblewrap, and allow unprivileged user namespaces."
        )
        return
    checks = ", ".join(f"{name} {value}" for name, value in found.checks.items())
    yield Finding("sandbox", "ok", f"{found.kind} passed its probe: {checks}")
    if any("root" in note for note in found.notes):
        yield Finding(
            "sandbox",
            "weak",
            "; ".join(found.notes),
            "Started as root, the service gives its processes and its jobs users of their own.",
        )


def look_at_devices(settings: Settings) -> Iterator[Finding]:
    """Whether the devices that jobs may be given are there, and torch can use them."""
    from licet_adapters.training.devices import Machine, find_devices  # noqa: PLC0415  # Only where jobs run.

    if not settings.device_uuids:
        yield Finding("devices", "ok", "none is allowed: jobs run on the processor")
        return
    found = find_devices(settings.device_uuids, Machine())
    for note in found.notes:
        yield Finding("devices", "weak", note, "See LICET_DEVICES in docs/configuration.md, and nvidia-smi -L.")
    if found.devices:
        named = ", ".join(f"{device.uuid} ({device.name}, driver {device.driver})" for device in found.devices)
        yield Finding("devices", "ok", f"{len(found.devices)} in the pool: {named}")
        if "+cpu" in version("torch"):
            yield Finding(
                "devices", "weak", "torch is a CPU build: jobs cannot use them", "Install a CUDA build of torch."
            )


LOOKS: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
    look_at_configuration,
    look_at_folder,
    look_at_keys,
    doctor_state.look_at_passphrase,
    look_at_database,
    doctor_state.look_at_belonging,
    doctor_state.look_at_logs,
    doctor_witnesses.look_at_witnesses,
    doctor_state.look_at_tokens,
    doctor_state.look_at_retention,
    doctor_state.look_at_break_glass,
    doctor_state.look_at_messages,
    doctor_state.look_at_probes,
    doctor_state.look_at_policies,
    doctor_state.look_at_sockets,
    look_at_processes,
    look_at_storage,
    look_at_users,
    look_at_sandbox,
    look_at_devices,
)


def examine(settings: Settings) -> list[Finding]:
    """Look at everything; what cannot be looked at is found weak."""
    found: list[Finding] = []
    for look in LOOKS:
        name = look.__name__.removeprefix("look_at_")
        try:
            found += look(settings)
        except ModuleNotFoundError as error:
            found.append(
                Finding(
                    name, "weak", f"could not be looked at: {error.name} is not installed", "pip install 'licet[all]'"
                )
            )
        except Exception as error:  # noqa: BLE001  # One look that fails must not hide what the others find.
            found.append(Finding(name, "weak", f"could not be looked at: {type(error).__name__}: {error}", ""))
    return found


@click.command()
@click.option(
    "--data", type=click.Path(path_type=Path), help="Folder of the installation; LICET_DATA or ./data if not given."
)
@click.option("--host", help="Address of the API; LICET_HOST or 127.0.0.1 if not given.")
@click.option("--port", type=click.IntRange(1, 65_535), help="Port of the API; LICET_PORT or 8000 if not given.")
@local
def doctor(data: Path | None, host: str | None, port: int | None, format_: str) -> None:
    """Look at the installation on this machine, and say what is weak and how to mend it.

    Exit 0: all is well; 1: something is weak; 2: something is broken.
    """
    from licet_engine.settings import load_settings  # noqa: PLC0415  # Only where an installation is.

    found = examine(load_settings(data=data, host=host, port=port))
    states = {finding.state for finding in found}
    worst = "broken" if "broken" in states else "weak" if "weak" in states else "ok"
    if format_ == "json":
        items = [{"check": f.check, "state": f.state, "detail": f.detail, "mend": f.mend} for f in found]
        click.echo(json.dumps({"state": worst, "findings": items}, indent=2))
    else:
        for finding in found:
            mark = click.style(f"{finding.state:<7}", fg=_COLOURS[finding.state], bold=True)
            click.echo(f"{mark} {clean(finding.check)}: {clean(finding.detail)}")
            if finding.mend:
                click.echo(labelled("", finding.mend, indent=10, label_chars=0))
    raise click.exceptions.Exit({"ok": EXIT_DONE, "weak": EXIT_DENIED, "broken": EXIT_ERROR}[worst])
