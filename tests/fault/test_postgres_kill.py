"""Two api processes and two workers on one PostgreSQL database, under load: any of them is killed, and the database restarts.

What is checked is what ``test_kill`` checks of one of each on SQLite: every acknowledged decision stands where it was said to, the logs are
whole, the signer's last checkpoint is one of them, and every accepted operation ended once, with its effect once.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from licet_engine.store import tables
from postgres_server import PostgresServer
from rounds import rounds

sys.path.append(str(Path(__file__).parent))
from test_kill import (
    ENDED,
    TENANT,
    Checks,
    Load,
    Supervised,
    every_effect_happened_once,
    poll,
    prepare,
)

pytestmark = pytest.mark.slow

ROUNDS = rounds(10)
BOTH_BACK_WITHIN_S = 120.0
"""Two slots start in the time of two, and where the machine has other things to do, of many."""
VICTIMS = {"api": 3, "worker": 3, "server": 1, "supervisor": 1, "signer": 1, "router": 1}


class Slots:
    """Two supervisors of one installation, each with an api and a worker; the first to come runs signer and router."""

    def __init__(self, folder: Path, urls: Path) -> None:
        self.slots = [Supervised(folder, database_urls=str(urls), slot=number) for number in (1, 2)]
        for slot in self.slots:
            slot.start()

    def __iter__(self) -> Iterator[Supervised]:
        return iter(self.slots)

    def signers(self) -> list[int]:
        """Every process that is a signer of the installation."""
        return self.every("signer")

    def every(self, kind: str) -> list[int]:
        """Every process of a kind."""
        return [pid for slot in self for name, pid in slot.pids().items() if name == kind]

    def is_settled(self) -> bool:
        """Whether everything is there and has begun to work."""
        for slot in self:
            now = slot.pids()
            try:
                if not {"server", "api", "worker"} <= set(now) or slot.settings.worker_sign.read_text() != str(
                    now["worker"]
                ):
                    return False
            except OSError:
                return False
        return len(self.signers()) == len(self.every("router")) == 1 and all(slot.is_ready() for slot in self)

    def settle(self) -> None:
        poll("everything to be back", self.is_settled, BOTH_BACK_WITHIN_S)

    def stop(self) -> None:
        for slot in self:
            slot.stop()


class Watched:
    """A load on each of some supervisors, and what must be true once it is over."""

    def __init__(self, first: Supervised, others: list[Supervised], folder: Path) -> None:
        tokens, _ = prepare(first, folder)
        self.checks = Checks(first.settings)
        self.before = set(self.checks.operations())
        self.objects = self.checks.stored()
        (self.budget,) = (row.remaining for row in self.checks.rows(tables.Budget))
        self.stop = threading.Event()
        self.loads = [
            Load(slot.url, token, number, folder, self.stop)
            for number, (slot, token) in enumerate(zip([first, *others] * 2, tokens[:2], strict=False))
        ]
        self.threads = [threading.Thread(target=load.run) for load in self.loads]
        for thread in self.threads:
            thread.start()

    def check_meanwhile(self) -> None:
        assert not any(load.errors for load in self.loads), [load.errors for load in self.loads]
        for load in self.loads:
            self.checks.decisions_stand(dict(load.decisions))

    def go_on(self) -> None:
        """Wait until some operations have ended that had not."""
        ended = self.checks.ended()
        poll("work to go on", lambda: self.checks.ended() > ended + 1, BOTH_BACK_WITHIN_S)

    def join(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(150)
        assert not any(thread.is_alive() for thread in self.threads)

    def check_all(self, least: int) -> dict[str, tables.Operation]:
        try:
            return self._check_all(least)
        finally:
            self.checks.engine.dispose()

    def _check_all(self, least: int) -> dict[str, tables.Operation]:
        self.check_meanwhile()
        checks, loads = self.checks, self.loads
        found = poll(
            "every accepted operation to end",
            lambda: (rows := checks.operations()) and all(row.state in ENDED for row in rows.values()) and rows,
            120.0,
        )
        ours = {key: row for key, row in found.items() if key not in self.before}
        # One for each that was acknowledged, and none beside it.
        assert set(ours) == {
            key for load in loads for made in (load.datasets, load.runs, load.verdicts, load.holds) for key in made
        }
        assert len(ours) > least, "too little was accepted to tell"
        ends = {(row.action, row.state, (row.error or {}).get("code")) for row in ours.values()}
        assert ends == {
            ("dataset.hold", "done", None),
            ("dataset.register", "done", None),
            ("training.launch", "failed", "input.split"),
            ("model.approve", "done", None),
        }, [(row.id, row.action, row.state, row.attempt, row.error) for row in ours.values() if row.error]
        every_effect_happened_once(checks, loads, ours)
        assert len(checks.stored() - self.objects) == sum(len(load.datasets) for load in loads)
        (budget,) = (row.remaining for row in checks.rows(tables.Budget))
        assert self.budget - budget == 3 * sum(len(load.runs) for load in loads)
        checks.logs_are_whole()
        checks.signer_is_not_ahead()
        checks.nothing_was_done_undecided()
        return ours


@pytest.mark.timeout(600 + 20 * ROUNDS)
def test_any_of_two_apis_and_two_workers_is_killed_and_nothing_is_lost_or_done_twice(
    slots: Slots, tmp_path: Path
) -> None:
    slots.settle()
    first, second = slots
    watched = Watched(first, [second], tmp_path)
    seed = os.environ.get("LICET_TEST_SEED", "two")
    chance = random.Random(seed)  # noqa: S311  # Chooses moments, no secrets.
    killed: Counter[str] = Counter()
    # Each of them at least once, and then by how often.
    victims = chance.sample(list(VICTIMS), len(VICTIMS))
    victims += chance.choices(list(VICTIMS), weights=list(VICTIMS.values()), k=ROUNDS - len(victims))
    try:
        for number, victim in enumerate(victims):
            slot = chance.choice(slots.slots)
            watched.stop.wait(chance.uniform(0.0, 0.3))  # The moment of the kill is what is random here.
            if victim in {"signer", "router"}:
                poll(f"a {victim}", lambda victim=victim: slots.every(victim))
                slot = next(slot for slot in slots if victim in slot.pids())
            slot.kill(victim)
            killed[victim] += 1
            assert len(slots.signers()) <= 1
            assert len(slots.every("router")) <= 1
            watched.check_meanwhile()
            if number % 5 == 4:
                slots.settle()
                watched.checks.signer_is_not_ahead()
                watched.go_on()
    finally:
        watched.join()
    assert set(killed) == set(VICTIMS)
    slots.settle()
    ours = watched.check_all(ROUNDS / 2)
    assert any(row.attempt > 1 for row in ours.values()), "nothing was interrupted"


@pytest.mark.timeout(300)
def test_what_a_worker_had_in_hand_when_it_died_for_good_is_done_by_the_other(slots: Slots, tmp_path: Path) -> None:
    slots.settle()
    # Whoever came first runs the signer.
    first, second = sorted(slots, key=lambda slot: "signer" not in slot.pids())
    watched = Watched(second, [], tmp_path)
    try:
        watched.go_on()
        # All of that slot, the signer with it, and nobody starts it again.
        assert slots.signers() == [first.pids()["signer"]]
        assert first.process is not None
        first.process.kill()
        first.process.wait(10)
        poll("the other supervisor to run the signer", lambda: "signer" in second.pids(), BOTH_BACK_WITHIN_S)
        for _ in range(3):
            watched.go_on()
    finally:
        watched.join()
    watched.check_all(4)


@pytest.mark.timeout(600)
def test_the_database_restarts_under_load_and_nothing_is_lost_or_done_twice(tmp_path: Path) -> None:
    server = PostgresServer(durable=True)
    try:
        with tempfile.TemporaryDirectory(prefix="lc-") as folder:
            urls = server.write_urls(server.create(), tmp_path / "urls")
            service = Supervised(Path(folder), database_urls=str(urls))
            service.start()
            try:
                restarts(server, service, tmp_path)
            except AssertionError as error:
                error.add_note(service.log.read_text()[-50_000:])
                raise
            finally:
                service.stop()
    finally:
        server.close()


def restarts(server: PostgresServer, service: Supervised, folder: Path) -> None:
    service.settle()
    watched = Watched(service, [], folder)
    pids = service.pids()
    try:
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL, signal.SIGINT):
            watched.go_on()
            server.stop(number)
            told = poll("the answer while there is no database", lambda: unavailable(service, watched))
            assert told["retry-after"].isdigit()
            server.start()
            poll("everything to be back", service.is_settled, BOTH_BACK_WITHIN_S)
            watched.check_meanwhile()
        watched.go_on()
    finally:
        watched.join()
    # Each found its way back by itself.
    assert service.pids() == pids
    watched.check_all(10)
    password = server.url("x").password
    assert password
    printed = service.log.read_text()
    assert not [word for word in ("-pass-word", "postgresql://") if word in printed]
    for pid in service.pids().values():
        for name in ("cmdline", "environ"):
            assert b"-pass-word" not in Path(f"/proc/{pid}/{name}").read_bytes()


def unavailable(service: Supervised, watched: Watched) -> httpx.Headers | None:
    """The headers of a 503 to a request that needs the database."""
    with httpx.Client(trust_env=False, timeout=30.0) as http:
        answer = http.post(
            f"{service.url}/v1/ask",
            json={"action": "dataset.read", "resource": f"{TENANT}/loans"},
            headers={"Authorization": f"Bearer {watched.loads[0].token}"},
        )
    if answer.status_code != 503:
        return None
    assert answer.json()["code"] in {"database-unavailable", "log-unavailable"}, answer.text
    return answer.headers
