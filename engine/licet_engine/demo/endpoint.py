"""The acts of the demo about an endpoint: a canary that takes over, and a regression that is taken back by itself."""

from __future__ import annotations

import csv
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from licet_engine.client import Denied, LicetClient, LicetClientError
from licet_engine.client_serving import rows_request
from licet_engine.demo.stage import DATA, Stage, Unexpected
from licet_engine.lifecycle.tabular import Tables

ENDPOINT: Final = "northbank/credit"
MODEL: Final = "northbank/credit-risk"
ALARMS: Final[tuple[Mapping[str, Any], ...]] = (
    {"kind": "p95-latency", "threshold_us": 1_000_000, "window_s": 5, "min_count": 50},
    {"kind": "error-rate", "threshold_micro": 20_000, "window_s": 5, "min_count": 50},
    {"kind": "drift", "alpha_micro": 10_000, "effect_min_micro": 100_000, "window_s": 30, "min_count": 100},
)
QUIET: Final = ALARMS[:2]
"""For the versions that the third returns to: what drifts for it drifts for them, and would lead past them."""
STEPS: Final = (10, 50, 100)
BAKE_S: Final = 2
_ROWS_AT_ONCE: Final = 8
_WITHIN_S: Final = 40.0
_PERCENT: Final = ("dir", "hir", "lvr")
"""Columns that hold a ratio."""
_YES_NO: Final = {"yes": 1.0, "no": 0.0}


class Traffic:
    """Somebody who invokes the endpoint all the time, with rows that no model was trained on.

    Args:
        client: Of who invokes.
        rows: Of the held-out part of the data.
    """

    def __init__(self, client: LicetClient, rows: list[dict[str, float]]) -> None:
        self._client, self._rows = client, rows
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="licet-demo-traffic", daemon=True)
        self.change: Callable[[dict[str, float]], dict[str, float]] = dict
        self.answered: dict[str, int] = {}
        self.failed: list[str] = []

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, after the request at hand."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        first = 0
        while not self._stop.is_set():
            rows = [self.change(self._rows[(first + i) % len(self._rows)]) for i in range(_ROWS_AT_ONCE)]
            first += _ROWS_AT_ONCE
            try:
                version = self._client.endpoint.invoke(ENDPOINT, rows_request(rows)).version
            except LicetClientError as error:
                self.failed.append(str(error))
            else:
                self.answered[version] = self.answered.get(version, 0) + 1


def canary(stage: Stage) -> None:
    """Version 2 takes over from version 1 on an endpoint, in steps, under real requests."""
    ci, ana = stage.as_("northbank/ci"), stage.as_("northbank/ana")
    staged = stage.ask(
        f"licet model promote {MODEL}@1 --to staging: it answers there until version 2 does",
        lambda: ci.model.promote(f"{MODEL}@1", stage="staging"),
        allowed=True,
    )
    stage.done("northbank/ci", staged)
    stage.ask(
        f"licet endpoint deploy {ENDPOINT} --version {MODEL}@1, with no alarm",
        lambda: ci.endpoint.deploy(ENDPOINT, f"{MODEL}@1", alarms=[]),
        allowed=False,
        by=("guardrail.endpoints.alarm",),
    )
    _deploy(stage, 1, strategy="direct")
    with _traffic(stage) as traffic:
        _deploy(stage, 2, strategy="canary", steps=STEPS, bake_s=BAKE_S)
        _until(stage, "version 2 takes all traffic", {"2": 100}, state="live")
    divided = [event["weights"] for event in reversed(ana.endpoint.show(ENDPOINT)["events"]) if event["weights"]]
    steps = dict.fromkeys(weights.get("2", 0) for weights in divided if "2" in weights)
    stage.holds("percent of version 2, step by step", list(steps), list(STEPS))
    told = ", ".join(f"version {number} answered {count}" for number, count in sorted(traffic.answered.items()))
    stage.tell(f"{sum(traffic.answered.values())} requests of {_ROWS_AT_ONCE} held-out rows meanwhile: {told}")
    stage.holds("requests that failed or were lost", len(traffic.failed), 0)
    stage.holds("versions that answered", sorted(traffic.answered), ["1", "2"])
    _reach_from_lakeside(stage)


def _reach_from_lakeside(stage: Stage) -> None:
    lena = stage.as_("lakeside/lena")
    told = set()
    for endpoint in (ENDPOINT, "northbank/nothing"):
        try:
            lena.endpoint.invoke(endpoint, rows_request([{"dir": 0.2}]))
        except Denied as error:
            told.add(str(error).replace(endpoint, "").replace(error.answer.decision_id, ""))
        else:
            raise Unexpected(f"lena of lakeside was answered by {endpoint}")
    stage.holds("lena of lakeside invokes it, and one that is not there; different answers", len(told), 1)


def regression(stage: Stage) -> None:
    """Version 3 meets inputs it was not trained on, and is rolled back by itself."""
    ci, ana = stage.as_("northbank/ci"), stage.as_("northbank/ana")
    staged = stage.ask(
        f"licet model promote {MODEL}@3 --to staging",
        lambda: ci.model.promote(f"{MODEL}@3", stage="staging"),
        allowed=True,
    )
    stage.done("northbank/ci", staged)
    with _traffic(stage) as traffic:
        _deploy(stage, 3, strategy="canary", steps=(50, 100), bake_s=60, alarms=ALARMS)
        stage.tell("what feeds the endpoint changes: ratios come in percent, 33 where they were 0.33")
        began_s = time.monotonic()
        traffic.change = lambda row: row | {name: row[name] * 100 for name in _PERCENT if name in row}
        _until(stage, "version 2 has all traffic again", {"2": 100}, state="rolled-back")
        stage.tell(f"{time.monotonic() - began_s:.1f} s after the change, nobody having done anything")
    newest = ana.endpoint.show(ENDPOINT)["deployments"][0]
    stage.holds("version 3", newest["state"], "rolled-back")
    stage.holds("because of the alarm", newest["cause"]["kind"], "drift")
    stage.holds("requests that failed or were lost", len(traffic.failed), 0)
    account = _closed_account(stage)
    stage.tell(f"{account['last']} invocations, each numbered and in the log by its session; {account['lost']} lost")
    answer = ci.endpoint.retire(ENDPOINT)
    if answer.operation is None:
        raise Unexpected("the endpoint was not retired")
    stage.done("northbank/ci", answer)


def _deploy(stage: Stage, number: int, **how: Any) -> None:
    ci = stage.as_("northbank/ci")
    one = {"min": 1, "max": 1, "idle_s": 0}
    answer = stage.ask(
        f"licet endpoint deploy {ENDPOINT} --version {MODEL}@{number} --strategy {how['strategy']}",
        lambda: ci.endpoint.deploy(ENDPOINT, f"{MODEL}@{number}", replicas=one, **({"alarms": QUIET} | how)),
        allowed=True,
    )
    stage.done("northbank/ci", answer)


def _until(stage: Stage, what: str, weights: Mapping[str, int], *, state: str) -> None:
    """Wait until the traffic is divided so, and the newest deployment is in that state."""
    ana = stage.as_("northbank/ana")
    began_s = time.monotonic()
    expected = f"{dict(weights)}, {state}"
    while True:
        told = ana.endpoint.show(ENDPOINT)
        now = f"{told['endpoint']['weights']}, {told['deployments'][0]['state']}"
        if now == expected or time.monotonic() - began_s > _WITHIN_S:
            break
        time.sleep(0.1)
    stage.check(what, now == expected, now, expected, began_s)


def _closed_account(stage: Stage) -> Mapping[str, Any]:
    """The account of invocations, once the router has reported all of them."""
    ana = stage.as_("northbank/ana")
    until_s = time.monotonic() + _WITHIN_S
    asked_ms = time.time_ns() // 1_000_000
    while True:
        told = ana.endpoint.show(ENDPOINT)
        live, account = told["live"], told["invocations"]
        if live.get("told_at_ms", 0) > asked_ms and live["invocations"] == account["last"]:
            return dict(account)
        if time.monotonic() > until_s:
            raise Unexpected("the router did not account for all invocations")
        time.sleep(0.1)


@contextmanager
def _traffic(stage: Stage) -> Iterator[Traffic]:
    token = (stage.folder / "credentials" / "northbank.ana.token").read_text("ascii").strip()
    with LicetClient(stage.supervisor.url, token, serving_url=stage.supervisor.router_url) as client:
        traffic = Traffic(client, _held_out(stage))
        traffic.start()
        try:
            yield traffic
        finally:
            traffic.stop()


def _held_out(stage: Stage) -> list[dict[str, float]]:
    """The rows of the example data that were kept from training, as a model takes them."""
    if "held-out" not in stage.notes:
        ana = stage.as_("northbank/ana")
        run = ana.run.read("northbank/run-2").result["run"]
        (dataset,) = (row for row in ana.list("northbank", "datasets") if row["name"] == "hmda")
        parameters = {name: dataset[name] for name in ("columns", "label", "protected", "missing")}
        parameters |= {"split": run["spec"]["split"], "exclude": run["spec"]["exclude"]}
        names = [feature["name"] for feature in run["spec"]["spec"]["features"]]
        with tempfile.TemporaryDirectory() as folder:
            _, held_out, _ = Tables().split(DATA, Path(folder), parameters)
            with held_out.path.open(newline="") as file:
                rows = [
                    {name: _YES_NO[row[name]] if row[name] in _YES_NO else float(row[name]) for name in names}
                    for row in csv.DictReader(file)
                ]
        stage.notes["held-out"] = rows
    return list(stage.notes["held-out"])
