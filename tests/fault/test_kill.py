"""The processes of a running installation are killed, a hundred times, while it is used.

Each round kills one of them with SIGKILL at a random moment: the signer, the api (its server, or the process that
answers), the worker, or the supervisor with all of them. One installation lives through all rounds. What is checked:

- every acknowledged decision stands in the log where it was said to, and the logs are whole (fsck);
- the signer's last checkpoint is of this log, and the log goes on from it;
- every accepted operation ends as done; its object is stored once, its attempts and its end are logged once;
- a budget is spent once for each accepted run, however often it was sent.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlmodel import select

from licet_attestations.checkpoint import parse_note
from licet_attestations.signer.client import SignerClient
from licet_engine.client import LicetClient
from licet_engine.init import initialise
from licet_engine.log import store
from licet_engine.log.fsck import verify_logs
from licet_engine.settings import Settings, load_settings
from licet_engine.store import tables
from licet_engine.store.db import open_engine, read_transaction, tenant_session

sys.path.append(str(Path(__file__).parents[1] / "integration"))
from service_world import FAR_MS, Installation, free_port, poll, table  # The line above finds it.

pytestmark = pytest.mark.slow

ROUNDS = 100
VICTIMS = ("signer", "server", "api", "worker", "supervisor")
BACK_WITHIN_S = 40.0
BUDGET = 1_000_000

SUPERVISE = """
import signal, sys
from licet_engine.serve import Supervisor
from licet_engine.settings import load_settings
from pathlib import Path

supervisor = Supervisor(load_settings(), log=Path(sys.argv[1]), longest_pause_s=0.1)
signal.signal(signal.SIGTERM, lambda *_: supervisor.ask_to_stop())
try:
    supervisor.start()
    supervisor.run()
finally:
    supervisor.stop()
"""


def children(pid: int) -> dict[int, str]:
    """The child processes of a process, with their command lines."""
    found: dict[int, str] = {}
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                with contextlib.suppress(OSError):
                    line = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                    if line:
                        found[int(child)] = line
    return found


def is_gone(pid: int) -> bool:
    """Whether a process has ended, though perhaps nobody has asked how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in {"Z", "X"}
    except OSError:
        return True


class Supervised:
    """An installation under a supervisor that is a process of its own, so that it can be killed."""

    def __init__(self, folder: Path) -> None:
        self.settings: Settings = load_settings({}, data=folder / "d", port=free_port(), checkpoint_interval_s=0.2)
        self.log = folder / "service.log"
        initialise(self.settings)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{self.settings.host}:{self.settings.port}"

    def start(self) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LICET_")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SUPERVISE, str(self.log)],
                env=environment | self.settings.to_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def pids(self) -> dict[str, int]:
        """The processes by what they are; those that are away are left out."""
        assert self.process is not None
        found = {"supervisor": self.process.pid}
        for pid, line in children(self.process.pid).items():
            for word, name in (
                ("licet_attestations.signer", "signer"),
                ("granian", "server"),
                ("licet_engine.worker", "worker"),
            ):
                if word in line:
                    found[name] = pid
        if "server" in found:
            for pid, line in children(found["server"]).items():
                if "granian" in line or "spawn_main" in line:
                    found["api"] = pid
        return found

    def is_back(self, before: dict[str, int], victim: str) -> bool:
        """Whether everything is there, and in the place of the killed a new one that has begun to work."""
        now = self.pids()
        if set(now) != set(VICTIMS) or now[victim] == before[victim]:
            return False
        ready = self.settings.data / "run" / "worker.ready"
        try:
            return ready.read_text() == str(now["worker"]) and bool(httpx.get(f"{self.url}/health/ready").is_success)
        except (OSError, httpx.HTTPError):
            return False

    def kill(self, victim: str) -> dict[str, int]:
        """Kill one, wait until all are back; return who was there before."""
        before = self.pids()
        os.kill(before[victim], signal.SIGKILL)
        if victim == "supervisor":
            assert self.process is not None
            assert self.process.wait(10) == -signal.SIGKILL
            # Its children die with it, however it ends.
            poll("the children of a killed supervisor to end", lambda: all(map(is_gone, before.values())), 10.0)
            self.start()
        if victim == "server":
            poll("what the killed server had started to end", lambda: is_gone(before["api"]), 10.0)
        poll(f"everything to be back after {victim} was killed", lambda: self.is_back(before, victim), BACK_WITHIN_S)
        return before

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(60)


@dataclass
class Load:
    """A user who does not tire: asks, registers, spends; sends again what was not answered, under the same key."""

    url: str
    token: str
    number: int
    stop: threading.Event
    decisions: dict[str, tuple[str, bool]] = field(default_factory=dict)
    operations: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    turns: int = 0

    def run(self) -> None:
        try:
            with LicetClient(self.url, self.token, attempts=200) as client:
                while not self.stop.is_set():
                    self.turn(client)
        except Exception as error:  # noqa: BLE001  # Told by the test, which would otherwise not know.
            self.errors.append(repr(error))

    def turn(self, client: LicetClient) -> None:
        self.turns += 1
        name = f"d-{self.number}-{self.turns}"
        asked = client.ask("dataset.read", "northbank/loans")
        self.decisions[asked.decision_id] = ("dataset.read", asked.allowed)
        held = client.act("dataset.hold", "northbank/loans", {"reason": name})
        self.decisions[held.decision_id] = ("dataset.hold", held.allowed)
        if self.turns % 2:
            data = table(20, odd=self.number * 100_000 + self.turns)
            path = Path(self.folder) / name
            path.write_bytes(data)
            upload = client.upload(path)
            body = {
                **upload.to_parameters(),
                "classification": "internal",
                "residency": ["us"],
                "uses": ["credit-risk"],
                "expires_at_ms": FAR_MS,
                "label": "deny",
            }
            done = client.act("dataset.register", f"northbank/{name}", body)
            assert done.allowed
            assert done.operation is not None
            self.decisions[done.decision_id] = ("dataset.register", True)
            self.operations[done.operation.id] = name
            path.unlink()

    @property
    def folder(self) -> str:
        return tempfile.gettempdir()
