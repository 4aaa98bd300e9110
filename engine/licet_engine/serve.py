"""``licet serve``: supervises the four processes of an installation on one machine.

Rules kept here:

- signer, api, router and worker are processes of their own; what one may hold, the others do not. One that ends is started again,
  after a pause that grows while it keeps ending.
- Children die with their supervisor, however it ends.
- Started as root, each is a user of its own, which reads only what it must (``separation``); where that cannot be had, it is
  said aloud, or nothing is started.
- Nothing is handed to a child but its settings; no secret stands in an argument or in the environment.
- Of several supervisors of one installation, each in a slot of its own, exactly one runs signer and router. Who does holds a lock that the
  kernel drops with its process; then another takes both over. Two signers would each remember a last checkpoint of their own, and two
  routers would each give out the same numbers.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx

from licet_attestations.signer.keystore import read_passphrase
from licet_engine import logs
from licet_engine.domain.errors import ConfigurationError
from licet_engine.init import initialise, is_initialised, prepare_database, verify_prepared
from licet_engine.log.witnesses import load_policy
from licet_engine.metrics import METRICS_HOST, make_token
from licet_engine.processes import die_with
from licet_engine.separation import Separation, find_separation, launch_command, take_over
from licet_engine.settings import Settings
from licet_engine.users import Process

logger = logging.getLogger(__name__)

_READY_WITHIN_S: Final = 60.0
_STOP_WITHIN_S: Final = 15.0
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 10.0


@dataclass(slots=True)
class _Child:
    name: Process
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    started_at_s: float = 0.0
    pause_s: float = _FIRST_PAUSE_S
    restart_at_s: float = field(default=0.0)


def is_served(data: Path) -> bool:
    """Whether a supervisor runs on this installation, in whichever slot."""
    for path in data.glob("run/serve*.lock"):
        lock = _try_lock(path)
        if lock is None:
            return True
        os.close(lock)
    return False


def _claim(settings: Settings) -> int:
    """Hold the place of a supervisor of an installation, as long as the descriptor is open.

    Raises:
        ConfigurationError: Another holds it, or it is another user's.
    """
    lock = _try_lock(settings.serve_lock)
    if lock is None:
        raise ConfigurationError(
            f"{settings.data} is served already in slot {settings.slot}: stop that first, serve another folder with --data, "
            "or on PostgreSQL another slot with LICET_SLOT"
        )
    return lock


@contextlib.contextmanager
def hold_stopped(settings: Settings) -> Iterator[None]:
    """Keep an installation from being served, in any slot, while a block runs.

    Raises:
        ConfigurationError: It is being served.
    """
    held = []
    try:
        settings.serve_lock.parent.mkdir(mode=0o700, exist_ok=True)
        for path in {settings.serve_lock, settings.signer_lock, *settings.data.glob("run/serve*.lock")}:
            lock = _try_lock(path)
            if lock is None:
                raise ConfigurationError(f"{settings.data} is being served: stop it first, in every slot")
            held.append(lock)
        yield
    finally:
        for lock in held:
            os.close(lock)


def _try_lock(path: Path) -> int | None:
    """Hold a lock file as long as the descriptor is open; None if another process holds it.

    Raises:
        ConfigurationError: It is another user's.
    """
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except PermissionError as error:
        raise ConfigurationError(
            f"{path.parent.parent} is another user's: serve it as who made it, or as root"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


class Supervisor:
    """Starts the processes, keeps them alive, and stops them.

    Args:
        settings: Of the installation.
        log: Where the children's standard output and error go; this process's own if None.
        longest_pause_s: How long a child that keeps ending is left alone at most before it is started again.
    """

    def __init__(
        self, settings: Settings, *, log: Path | None = None, longest_pause_s: float = _LONGEST_PAUSE_S
    ) -> None:
        self._settings = settings
        self._log = log
        self._longest_pause_s = longest_pause_s
        self._stop = threading.Event()
        self._lock: int | None = None
        self._signer_lock: int | None = None
        self._children = [
            _Child("api", self._api_command()),
            _Child("worker", [sys.executable, "-P", "-m", "licet_engine.worker"]),
        ]
        self._separation = Separation(None, has_namespace=False, notes=())

    def _signer_arguments(self, passphrase_fd: int | None) -> list[str]:
        arguments = ["--data", str(self._settings.signer_data), "--socket", str(self._settings.signer_socket)]
        users = self._separation.users
        if users is not None:
            arguments += ["--api-uid", str(users.api), "--worker-uid", str(users.worker)]
            arguments += ["--overseer-uid", str(os.geteuid()), "--shared-gid", str(users.worker)]
        return arguments if passphrase_fd is None else [*arguments, "--passphrase-fd", str(passphrase_fd)]

    def _api_command(self) -> list[str]:
        return [
            *(sys.executable, "-P", "-m", "granian", "licet_engine.app:application"),
            *("--interface", "asgi", "--factory", "--workers", "1", "--no-ws"),
            *("--host", self._settings.host, "--port", str(self._settings.port)),
            *("--log-level", "warning", "--backlog", "1024", "--http1-header-read-timeout", "10000"),
            # On SIGTERM it accepts nothing more and answers what is in flight; whatever hangs longer is ended.
            *("--workers-kill-timeout", str(self._settings.drain_s)),
        ]

    @property
    def settings(self) -> Settings:
        """What it serves by."""
        return self._settings

    @property
    def url(self) -> str:
        """Where the API is."""
        return f"http://{self._settings.host}:{self._settings.port}"

    def pid(self, name: str) -> int:
        """Process id of a child."""
        child = next(child for child in self._children if child.name == name)
        if child.process is None:
            raise ConfigurationError(f"{name} is not running")
        return child.process.pid

    def start(self) -> bool:
        """Start everything and return once it is ready, or once it was told to stop.

        Returns:
            Whether it is ready.

        Raises:
            ConfigurationError: It does not become ready; says which part, and what to look at.
        """
        _check_port(self._settings.host, self._settings.port, "--port")
        load_policy(
            self._settings.witness_policy
        )  # What stops api and worker is told here, and not sixty seconds later.
        self._lock = _claim(self._settings)
        # Only now: what is served already is not to be touched. Nor by another slot, whose requests would wait for the locks that changed
        # rights take: who runs the signer prepares.
        self._claim_signer()
        self._check_metrics_ports()
        if self._signer_lock is not None:
            _check_port(self._settings.router_host, self._settings.router_port, "LICET_ROUTER_PORT")
            prepare_database(self._settings)
        else:
            verify_prepared(self._settings, within_s=_READY_WITHIN_S)
        self._separation = find_separation(self._settings)
        for note in self._separation.notes:
            logger.warning("users: %s", note)
        if self._settings.metrics_port:
            make_token(self._settings.metrics_token)
        if self._signer_lock is not None:
            # Who comes second finds everything given already, and in use.
            take_over(self._settings, self._separation.users)
            self._settings.router_sign.unlink(missing_ok=True)
        self._settings.worker_sign.unlink(missing_ok=True)
        for child in self._children:
            self._spawn(child)
        deadline_s = time.monotonic() + _READY_WITHIN_S
        while time.monotonic() < deadline_s:
            self._tend()
            if self._is_ready():
                return True
            if self._stop.wait(0.05):
                return False
        self.stop()
        raise ConfigurationError(
            f"the service did not become ready within {_READY_WITHIN_S:.0f} s; see its output"
            + (f" in {self._log}" if self._log else "")
            + ", or run: licet doctor"
        )

    def _check_metrics_ports(self) -> None:
        """Metrics that were asked for and that nobody can read would be missed when they are needed.

        A process that is started again later, and finds its port taken meanwhile, goes on without and says so: what answers is not ended
        for the sake of its metrics.

        Raises:
            ConfigurationError: Another process has one of the ports.
        """
        if not self._settings.metrics_port:
            return
        names = ("api", "worker", *(("router",) if self._signer_lock is not None else ()))
        for offset, name in enumerate(names):
            option = f"LICET_METRICS_PORT, which takes the next two as well: this one is for metrics of the {name}"
            _check_port(METRICS_HOST, self._settings.metrics_port + offset, option)

    @property
    def router_url(self) -> str:
        """Where the router takes invocations."""
        return f"http://{self._settings.router_host}:{self._settings.router_port}"

    def _is_ready(self) -> bool:
        signs = [self._settings.worker_sign, *([self._settings.router_sign] if self._signer_lock is not None else [])]
        if not all(sign.exists() for sign in signs):
            return False
        try:
            return httpx.get(f"{self.url}/health/ready", timeout=2.0).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def run(self) -> None:
        """Keep the children alive until told to stop."""
        while not self._stop.wait(0.1):
            self._tend()

    def ask_to_stop(self) -> None:
        """Make `run` return."""
        self._stop.set()

    def stop(self) -> None:
        """Stop the children: the worker first, the signer last."""
        self._stop.set()
        for child in reversed(self._children):
            process = child.process
            if process is None or process.poll() is not None:
                continue
            process.terminate()
            try:
                process.wait(_STOP_WITHIN_S + self._settings.drain_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for lock in (self._signer_lock, self._lock):
            if lock is not None:
                os.close(lock)
        self._signer_lock = self._lock = None

    def _claim_signer(self) -> None:
        """Run signer and router from now on, if no other supervisor does."""
        if self._signer_lock is None:
            self._signer_lock = _try_lock(self._settings.signer_lock)
            if self._signer_lock is not None:
                self._children.insert(0, _Child("signer", [sys.executable, "-P", "-m", "licet_attestations.signer"]))
                # Before the worker, so that it is stopped after it.
                self._children.insert(-1, _Child("router", [sys.executable, "-P", "-m", "licet_engine.router"]))

    def _tend(self) -> None:
        self._claim_signer()
        for child in self._children:
            if child.process is not None and child.process.poll() is not None:
                lived_s = time.monotonic() - child.started_at_s
                child.pause_s = (
                    _FIRST_PAUSE_S if lived_s > _LONGEST_PAUSE_S else min(child.pause_s * 2, self._longest_pause_s)
                )
                child.restart_at_s = time.monotonic() + child.pause_s
                logger.warning("%s ended with status %s; starting it again", child.name, child.process.returncode)
                child.process = None
            if child.process is None and time.monotonic() >= child.restart_at_s:
                self._spawn(child)

    def _spawn(self, child: _Child) -> None:
        # Credentials for a bucket are for who uses it: no other process has them.
        withheld = () if child.name == "worker" else ("AWS_", "BOTO_")
        environment = {
            key: value for key, value in os.environ.items() if key != "LICET_TOKEN" and not key.startswith(withheld)
        }
        environment |= self._settings.to_environment()
        if self._separation.users is not None:
            environment["HOME"] = "/"  # Root's own is closed to them.
        with contextlib.ExitStack() as opened:
            output = passphrase = None
            command = child.command
            if self._log is not None:
                output = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                opened.callback(os.close, output)
            if child.name == "signer":
                passphrase = self._open_passphrase(opened)
                command = command + self._signer_arguments(passphrase)
            child.process = subprocess.Popen(
                launch_command(self._settings, self._separation, child.name, command),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=() if passphrase is None else (passphrase,),
                preexec_fn=die_with(os.getpid()),  # noqa: PLW1509 - it only sets a flag of the child's own.
                start_new_session=True,
            )
        child.started_at_s = time.monotonic()

    def _open_passphrase(self, opened: contextlib.ExitStack) -> int | None:
        """The signer's passphrase in a pipe: the file need not be the signer's own."""
        if not self._settings.key_passphrase_file:
            return None
        passphrase = read_passphrase(Path(self._settings.key_passphrase_file))
        reader, writer = os.pipe()
        opened.callback(os.close, reader)
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(passphrase)  # Far less than a pipe holds.
        return reader


def _check_port(host: str, port: int, option: str) -> None:
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigurationError(
                f"{host}:{port} cannot be used: {error.strerror}; choose another with {option}"
            ) from error


def main(settings: Settings, *, init: bool = False) -> None:
    """Serve until told to stop.

    Args:
        settings: Of the installation.
        init: Make an installation first if there is none.

    Raises:
        ConfigurationError: There is none, or it does not start.
    """
    logs.configure()
    if not is_initialised(settings):
        if not init:
            raise ConfigurationError(
                f"{settings.data} holds no installation; make one: licet init --data {settings.data}"
            )
        made = initialise(settings)
        print(f"made an installation in {settings.data}; the first operator's token is in {made.token_file}")  # noqa: T201 - told to the person who runs this.
    supervisor = Supervisor(settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervisor.ask_to_stop())
    try:
        if not supervisor.start():
            return
        print(f"licet serves {supervisor.url} (API docs: {supervisor.url}/schema)", flush=True)  # noqa: T201 - as above.
        supervisor.run()
    finally:
        supervisor.stop()
