"""The clock of a whole installation is set, forward and back by hours, while it works and while it is away.

All processes are told another time, which a file says, by what Python imports when it starts; the passing of time (the monotonic clock) stays
as it is. (`libfaketime` would do it from outside, but spoils sleeping until a time.) Whatever the clock does: time never runs backwards in a log, nothing that was acknowledged is lost, what needs a true clock says no, and it is told.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from databases import KINDS
from licet_attestations.leaf import Leaf
from licet_engine.client import Answer, LicetClient, ServerUnavailable
from licet_engine.log import store
from licet_engine.store.db import read_transaction
from postgres_server import PostgresServer
from set_clock import CLOCK

sys.path.append(str(Path(__file__).parent))
from test_kill import ENDED, TENANT, Checks, Supervised, poll, prepare  # The line above finds it.

BASE_H = 12
"""Hours after the installation was made: its keys count from then on, so no clock here is set before."""
pytestmark = pytest.mark.slow


class Clocked:
    """An installation whose clock can be set.

    Attributes:
        service: The installation.
    """

    def __init__(self, folder: Path, urls: str) -> None:
        # Every process reads it, whoever it is.
        folder.chmod(0o755)
        self._says = folder / "clock"
        (folder / "clocked").mkdir(mode=0o755)
        (folder / "clocked" / "sitecustomize.py").write_text(CLOCK)
        self.set(BASE_H)
        self.service = Supervised(folder, database_urls=urls)

    def set(self, hours: int) -> None:
        """Set the clock: so many hours from the true one."""
        new = self._says.with_name("clock.new")
        new.write_text(str(hours * 3600))
        new.chmod(0o644)
        new.replace(self._says)

    def environment(self) -> dict[str, str]:
        """What a process needs to have this clock."""
        return {"PYTHONPATH": str(self._says.parent / "clocked"), "TEST_CLOCK": str(self._says)}

    def start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            for name, value in self.environment().items():
                patch.setenv(name, value)
            self.service.start()
        self.service.settle()

    def doctor(self) -> dict[str, Any]:
        """What `licet doctor` says of the clock, by this clock."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LICET_")}
        environment |= self.service.settings.to_environment() | self.environment()
        run = [sys.executable, "-m", "licet_engine.cli", "doctor", "--format", "json"]
        ended = subprocess.run(run, capture_output=True, text=True, check=False, env=environment)
        (found,) = (found for found in json.loads(ended.stdout)["findings"] if found["check"] == "clock")
        return dict(found)


@pytest.fixture(params=KINDS)
def clocked(request: pytest.FixtureRequest) -> Iterator[Clocked]:
    urls = ""
    with tempfile.TemporaryDirectory(prefix="lc-") as folder:
        if request.param == "postgresql":
            server: PostgresServer = request.getfixturevalue("postgres")
            urls = str(server.write_urls(server.create(), Path(folder) / "urls"))
        made = Clocked(Path(folder), urls)
        try:
            yield made
        finally:
            made.service.stop()


@pytest.fixture
def closing() -> Iterator[contextlib.ExitStack]:
    """What is closed at the end, however that comes."""
    with contextlib.ExitStack() as stack:
        yield stack


def times(checks: Checks) -> dict[str, list[int]]:
    """The times of all entries of each log, in their order."""
    with read_transaction(checks.engine) as connection:
        heads = {str(row.tenant_id): int(row.size) for row in connection.execute(store.HEADS.select())}
        return {
            tenant: [
                Leaf.from_bytes(entry.header.encode()).time_ms
                for entry in store.read_entries(connection, tenant, 0, size)
            ]
            for tenant, size in heads.items()
        }


def insist(send: Callable[[], Answer]) -> Answer:
    """Send until the service answers."""

    def sent() -> Answer | None:
        try:
            return send()
        except ServerUnavailable:
            return None

    answer = poll("an answer", sent, 60.0)
    assert isinstance(answer, Answer)
    return answer


@pytest.mark.timeout(400)
def test_whatever_the_clock_does_time_never_runs_backwards_in_a_log(
    clocked: Clocked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closing: contextlib.ExitStack
) -> None:
    service = clocked.service
    clocked.start(monkeypatch)
    tokens, _ = prepare(service, tmp_path)
    checks = Checks(service.settings)
    closing.callback(checks.engine.dispose)
    client = closing.enter_context(LicetClient(service.url, tokens[0]))
    decisions: dict[str, bool] = {}
    latest = told = 0

    def work(name: str) -> str:
        """Have something decided and something accepted; return the number of the operation."""
        asked = insist(lambda: client.ask("dataset.read", f"{TENANT}/loans"))
        held = insist(lambda: client.act("dataset.hold", f"{TENANT}/kept", {"reason": name}))
        decisions.update({answer.decision_id: answer.allowed for answer in (asked, held)})
        assert asked.allowed
        assert held.operation is not None
        return held.operation.id

    steps = ((0, False), (6, False), (0, False), (-5, True), (3, False), (-2, False), (8, True), (0, True), (9, False))
    for hours, restarts in steps:
        if restarts:
            service.stop()
        clocked.set(BASE_H + hours)
        if restarts:
            clocked.start(monkeypatch)
        before = times(checks)[TENANT]
        operation = work(str(hours))
        after = times(checks)[TENANT]
        checks.logs_are_whole()
        checks.decisions_stand(decisions)
        checks.signer_is_not_ahead()
        is_behind, latest = hours < latest, max(latest, hours)
        if is_behind:
            # The log's time stands still. What is decided is logged; what has effects waits for a clock that is right, and it is told.
            assert set(after[len(before) :]) == {before[-1]}
            assert clocked.doctor()["state"] == "broken"
            poll("it to be told", lambda told=told: "the clock is behind the log" in service.log.read_text()[told:])
            assert checks.operations()[operation].state in {"accepted", "running"}
        else:
            assert len(before) == 0 or after[-1] > before[-1]
            assert clocked.doctor()["state"] == "ok"
            poll("it to be done", lambda operation=operation: checks.operations()[operation].state == "done", 60.0)
        told = len(service.log.read_text())
        assert all(of_one == sorted(of_one) for of_one in times(checks).values())
    poll("everything to end", lambda: all(row.state in ENDED for row in checks.operations().values()), 120.0)
    # What was tried for so long that it failed says why, and is in the log as well.
    ends = {(row.state, (row.error or {}).get("code")) for row in checks.operations().values()}
    assert ends <= {("done", None), ("failed", "warrant.expired")}, ends
    service.stop()
    checks.nothing_was_done_undecided()
