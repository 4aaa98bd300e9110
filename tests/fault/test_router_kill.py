"""Callers of an endpoint, two slots, and a router that is killed again and again: alone, and with the slot that ran it.

What is checked is what docs/operations.md says of a router that ends, and of slots:

- callers see answers, connections that break, and 503 with ``Retry-After``; nothing else;
- there is one router at a time; the other slot's takes over, on its own port, with traffic as it was, and makes no change of it;
- no number is given twice, and the account in the log has no gap: it has every number that a caller saw, and tells the rest as lost;
- the logs are whole, and the signer's last checkpoint is one of them.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from licet_engine.client import LicetClient
from licet_engine.client_serving import rows_request
from licet_engine.store import tables

sys.path.append(str(Path(__file__).parent))
from test_kill import REGISTER, TENANT, Checks, Supervised, done, is_gone, poll, table
from test_postgres_kill import Slots

pytestmark = pytest.mark.slow

ENDPOINT = f"{TENANT}/credit"
WEIGHTS = {"1": 70, "2": 30}
CALM = [{"kind": "error-rate", "threshold_micro": 900_000, "window_s": 5, "min_count": 1000}]
ROW = {"income": 4.5, "ratio": 0.3}
BACK_WITHIN_S = 60.0
UNUSED_AT_MOST = 30_000
"""Numbers that nobody was given and that one death of a router loses of an endpoint at most, as docs/operations.md says."""


class Caller:
    """Who invokes without a pause, at whichever slot's router is there."""

    def __init__(self, ports: list[int], token: str, stop: threading.Event) -> None:
        self._ports, self._token, self._stop = itertools.cycle(ports), token, stop
        self.seen: list[tuple[int, str]] = []  # Numbers that were answered, and the versions that did.
        self.outcomes: Counter[str] = Counter()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", next(self._ports), timeout=30)
            try:
                while not self._stop.is_set():
                    self._invoke(connection)
            except (OSError, http.client.HTTPException):
                self.outcomes["broken"] += 1
                self._stop.wait(0.05)
            finally:
                connection.close()

    def _invoke(self, connection: http.client.HTTPConnection) -> None:
        headers = {"Authorization": f"Bearer {self._token}"}
        connection.request("POST", f"/v2/models/{ENDPOINT}/infer", json.dumps(rows_request([ROW])), headers)
        answer = connection.getresponse()
        told = json.loads(answer.read())
        if answer.status == 200:
            self.outcomes["answered"] += 1
            self.seen.append((int(answer.headers["licet-invocation"]), answer.headers["licet-version"]))
            self._stop.wait(0.005)  # The machine has other things to do.
        elif answer.status == 503 and int(answer.headers["retry-after"]) > 0:
            self.outcomes["told to wait"] += 1
            self._stop.wait(0.1)
        else:
            self.outcomes[f"{answer.status} {told}"] += 1


def prepare(service: Supervised, folder: Path) -> list[str]:
    """Two versions of a model on an endpoint, the second as a canary that stays; return the tokens of three who may invoke it."""
    with LicetClient(service.url, (service.settings.data / "operator.token").read_text().strip()) as operator:
        made = operator.act("tenant.create", TENANT, {"region": "us", "packs": []}).require()
    tokens = []
    with LicetClient(service.url, made.result["token"]) as admin:
        place = {"environments": [{"name": "us-east", "region": "us"}], "budgets": {"training": 100}}
        admin.act("tenant.administer", TENANT, place).require()
        people: dict[str, dict[str, Any]] = {name: {"roles": ["data-scientist"]} for name in ("ana", "ben", "eva")}
        people["ci"] = {"kind": "service", "roles": ["pipeline"], "owner": "ana"}
        for name, body in people.items():
            admin.act("person.administer", f"{TENANT}/{name}", body).require()
            tokens.append(admin.act("token.issue", f"{TENANT}/{name}", {}).require().result["token"])
    (folder / "loans.csv").write_bytes(table(400))
    with LicetClient(service.url, tokens[0]) as ana, LicetClient(service.url, tokens[-1]) as ci:
        body = ana.upload(folder / "loans.csv").to_parameters() | REGISTER | {"protected": ["minor"]}
        done(ana, ana.act("dataset.register", f"{TENANT}/loans", body))
        launch = {"dataset": f"{TENANT}/loans", "environment": "us-east", "use": "credit-risk", "spec": {"epochs": 5}}
        done(ci, ci.act("training.launch", f"{TENANT}/run", launch))
        for number, how in ((1, {}), (2, {"strategy": "canary", "steps": [WEIGHTS["2"], 100], "bake_s": 3600})):
            done(ci, ci.model.register(f"{TENANT}/scorer", run=f"{TENANT}/run", tier="low"))
            done(ci, ci.model.promote(f"{TENANT}/scorer@{number}", stage="staging"))
            done(ci, ci.endpoint.deploy(ENDPOINT, f"{TENANT}/scorer@{number}", alarms=CALM, **how))
    return tokens[:-1]


class Serving:
    """Two slots under callers.

    Args:
        slots: Both.
        checks: Looks into what they keep.
        tokens: Of who invokes.
    """

    def __init__(self, slots: Slots, checks: Checks, tokens: list[str]) -> None:
        self.slots, self._checks = slots, checks
        self.token = tokens[0]
        self.deaths = 0
        self._stop = threading.Event()
        ports = [slot.settings.router_port for slot in slots]
        self.callers = [Caller(ports, token, self._stop) for token in tokens]

    @property
    def holder(self) -> Supervised:
        """The slot that runs the router."""
        found: Supervised = poll("a router", lambda: next((s for s in self.slots if "router" in s.pids()), None))
        return found

    def seen(self) -> list[tuple[int, str]]:
        return [one for caller in self.callers for one in list(caller.seen)]

    def require_told(self) -> Counter[str]:
        """What callers saw, once it is sure that it is no more than is said."""
        outcomes = sum((caller.outcomes for caller in self.callers), Counter())
        assert set(outcomes) <= {"answered", "broken", "told to wait"}, outcomes
        return outcomes

    def go_on(self, *, until_told: bool) -> None:
        """Wait until every caller is answered again, often enough to tell the versions' shares; perhaps until the log has some of it."""
        self.require_told()
        before = [len(caller.seen) for caller in self.callers]
        poll(
            "every caller to be answered again",
            lambda: all(len(one.seen) > count + 40 for one, count in zip(self.callers, before, strict=True)),
            BACK_WITHIN_S,
        )
        assert len(self.slots.every("router")) == len(self.slots.signers()) == 1
        answered = Counter(
            version for one, count in zip(self.callers, before, strict=True) for _, version in one.seen[count:]
        )
        assert set(answered) == {"1", "2"}
        assert answered["2"] / answered.total() == pytest.approx(WEIGHTS["2"] / 100, abs=0.1)
        if until_told:
            number = self.callers[0].seen[-1][0]
            poll("that to be told", lambda: self._checks.rows(tables.InvocationCount)[0].last >= number, BACK_WITHIN_S)

    def kill_router(self) -> None:
        """Kill the router alone: the same slot starts it again."""
        slot = self.holder
        pid = slot.pids()["router"]
        os.kill(pid, signal.SIGKILL)
        self.deaths += 1
        poll("another router", lambda: slot.pids().get("router", pid) != pid, BACK_WITHIN_S)
        assert len(self.slots.every("router")) == 1

    def kill_slot(self) -> Supervised:
        """Kill all of the slot that runs the router; return it once the other has taken over."""
        slot = self.holder
        (other,) = (one for one in self.slots if one is not slot)
        before = slot.pids()
        assert slot.process is not None
        slot.process.kill()
        slot.process.wait(10)
        self.deaths += 1
        poll("what the killed supervisor had started to end", lambda: all(map(is_gone, before.values())), 10.0)
        poll("the other slot to take over", lambda: {"signer", "router"} <= set(other.pids()), BACK_WITHIN_S)
        return slot

    def end(self) -> None:
        self._stop.set()
        for caller in self.callers:
            caller.thread.join(60)
        assert not any(caller.thread.is_alive() for caller in self.callers)

    def close_account(self) -> dict[str, Any]:
        """Wait until the log has all that the router counted; return how the endpoint stands."""
        asked_ms = time.time_ns() // 1_000_000
        with LicetClient(self.holder.url, self.token) as client:

            def closed() -> Any:
                told = client.endpoint.show(ENDPOINT)
                live = told["live"]
                is_later = live.get("told_at_ms", 0) > asked_ms
                return told if is_later and live["invocations"] == told["invocations"]["last"] else None

            told: dict[str, Any] = poll("the account to close", closed, BACK_WITHIN_S)
        return told


@pytest.mark.timeout(900)
def test_routers_killed_under_invocations_are_taken_over_and_the_account_has_no_gap(
    slots: Slots, tmp_path: Path
) -> None:
    slots.settle()
    first, _ = slots
    tokens = prepare(first, tmp_path)
    checks = Checks(first.settings)
    serving = Serving(slots, checks, tokens)
    try:
        serving.go_on(until_told=True)
        events = [(row.kind, row.serial) for row in checks.rows(tables.TrafficEvent)]
        for until_told in (False, True):
            serving.kill_router()
            serving.go_on(until_told=until_told)
        gone = serving.kill_slot()
        serving.go_on(until_told=True)
        gone.start()
        serving.kill_router()
        slots.settle()
        assert serving.holder is not gone  # Who was there before takes nothing back.
        serving.kill_slot().start()
        assert serving.holder is gone
        serving.go_on(until_told=False)
    finally:
        serving.end()
    assert serving.require_told()["broken"] >= serving.deaths
    slots.settle()
    told = serving.close_account()
    assert told["endpoint"]["weights"] == told["live"]["weights"] == WEIGHTS
    assert [guard["version"] for guard in told["live"]["guards"]] == ["1"]  # Whom the newest deployment leaves traffic.
    assert [(row.kind, row.serial) for row in checks.rows(tables.TrafficEvent)] == events
    the_account_has_no_gap(checks, serving)
    checks.logs_are_whole()
    checks.signer_is_not_ahead()
    checks.engine.dispose()


def the_account_has_no_gap(checks: Checks, serving: Serving) -> None:
    """Every number is in one batch of the log, once; those that a caller saw as answered, the rest perhaps as lost."""
    batches = [record for record in checks.records() if record.get("type") == "invocations"]
    assert {batch["event"] for batch in batches} == {"counted"}  # None was refused.
    assert batches[0]["first"] == 1
    assert all(after["first"] == before["last"] + 1 for before, after in itertools.pairwise(batches))
    counted: Counter[tuple[str, str]] = Counter()
    for batch in batches:
        of_batch = sum(group["count"] for group in batch["groups"])
        assert of_batch + batch["lost"] == batch["last"] - batch["first"] + 1
        for group in batch["groups"]:
            counted[group["status"], group["version"]] += group["count"]
    seen = serving.seen()
    numbers = [number for number, _ in seen]
    assert len(numbers) == len(set(numbers)) > 500
    assert max(numbers) <= batches[-1]["last"]
    assert sum(batch["lost"] for batch in batches) <= UNUSED_AT_MOST * serving.deaths + len(numbers)
    # A batch that has a number that was seen counts it, or tells that it does not know of so many.
    ends = [batch["last"] for batch in batches]
    of_batches: Counter[int] = Counter(next(i for i, end in enumerate(ends) if number <= end) for number in numbers)
    for index, count in of_batches.items():
        ok = sum(group["count"] for group in batches[index]["groups"] if group["status"] == "ok")
        assert count <= ok + batches[index]["lost"]
    assert {version for _, version in seen} == {version for status, version in counted if status == "ok"}
    assert len({batch["epoch"] for batch in batches}) > 2  # Several lives of a router told of theirs.
