"""An endpoint as its users and its operators meet it: real processes, a real model, real requests."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from standardwebhooks.webhooks import Webhook

from licet_attestations.statement import DEPLOYMENT
from licet_engine.app import build_services
from licet_engine.backup import backup, restore
from licet_engine.client import Denied, LicetClient, LicetClientError, NotAuthenticated
from licet_engine.client_serving import rows_request
from licet_engine.domain.errors import LicetError
from licet_engine.lifecycle.router_door import RouterDoor
from licet_engine.serve import Supervisor
from licet_engine.settings import load_settings

sys.path.append(str(Path(__file__).parent))
from service_world import Installation, free_port, free_ports, poll, table  # The line above finds it.
from webhook_receiver import Receiver

pytestmark = pytest.mark.slow

CREDIT = "northbank/credit"
ALARMS = [
    {"kind": "p95-latency", "threshold_us": 2_000_000, "window_s": 5, "min_count": 20},
    {"kind": "drift", "alpha_micro": 10_000, "effect_min_micro": 100_000, "window_s": 30, "min_count": 100},
]
CALM = [{"kind": "error-rate", "threshold_micro": 900_000, "window_s": 5, "min_count": 1000}]


def row(i: int) -> dict[str, float]:
    """A row as the training table has them."""
    return {"income": (i * 53 % 90) / 10, "ratio": (i * 37 % 100) / 100}


def versions_of(world: Installation) -> None:
    """Versions 1 to 3 of a model, on staging as far as anything stands there."""
    ci = world.client("northbank/ci")
    for number in (1, 2, 3):
        launch = {
            "dataset": "northbank/loans",
            "environment": "us-east",
            "use": "credit-risk",
            "spec": {"epochs": 20, "seed": number},
        }
        run = f"northbank/serve-{number}"
        assert world.done(ci, ci.act("training.launch", run, launch)).state == "done"
        assert world.done(ci, ci.model.register("northbank/scorer", run=run, tier="low")).state == "done"


def deploy(world: Installation, number: int, *, endpoint: str = CREDIT, **more: Any) -> Any:
    ci = world.client("northbank/ci")
    body: dict[str, Any] = {"alarms": CALM, "replicas": {"min": 1, "max": 1, "idle_s": 0}} | more
    answer = ci.endpoint.deploy(endpoint, f"northbank/scorer@{number}", **body)
    return world.done(ci, answer)


@pytest.fixture(scope="module")
def house() -> Iterator[Installation]:
    """An installation of its own: its processes are killed, its tenants suspended."""
    installation = Installation(metrics_port=free_ports(3), outbound_networks="127.0.0.0/8")
    try:
        installation.start()
        # No pack: staging is open to a model of the lowest tier, and what is tried here is the platform's own.
        for tenant, region in (("northbank", "us"), ("lakeside", "eu")):
            installation.people(tenant, region, packs=[])
        assert installation.register("northbank/ana", "loans", table()).state == "done"
        versions_of(installation)
        ci = installation.client("northbank/ci")
        # One version holds a stage at a time; what was there is deployed while it is.
        for number in (1, 2, 3):
            if number < 3:
                promoted = ci.model.promote(f"northbank/scorer@{number}", stage="staging")
                assert installation.done(ci, promoted).state == "done"
            if number == 1:
                assert deploy(installation, 1).state == "done"
        yield installation
    finally:
        installation.stop()


def test_a_deployed_version_answers_and_each_answer_is_counted(house: Installation) -> None:
    ana = house.client("northbank/ana")
    answered = [ana.endpoint.invoke(CREDIT, rows_request([row(i), row(i + 1)])) for i in range(20)]
    assert {one.version for one in answered} == {"1"}
    assert len({one.number for one in answered}) == 20
    assert all(len(one.outputs["probability"]["data"]) == 2 for one in answered)
    told = poll("the account", lambda: (s := ana.endpoint.show(CREDIT))["invocations"]["last"] >= 20 and s)
    assert told["invocations"]["totals"]["1"]["ok"] >= 20
    assert told["live"]["state"] == "answers"
    (session,) = {one.session for one in answered}
    record = ana.decision.read("northbank", session)["record"]
    assert (record["action"], record["decision"]) == ("endpoint.invoke", "allow")
    counted = [r for leaf, r in house.entries("northbank") if leaf.kind == "invocations"]
    assert all(r["event"] == "counted" for r in counted)
    assert session in {group["session"] for r in counted for group in r["groups"]}


def shown(house: Installation, *options: str) -> str:
    """What ``licet endpoint show`` prints."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LICET_")}
    environment |= {"LICET_URL": house.url, "LICET_TOKEN": house.tokens["northbank/ana"], "NO_COLOR": "1"}
    run = [sys.executable, "-m", "licet_engine.cli", "endpoint", "show", CREDIT, *options]
    ran = subprocess.run(run, capture_output=True, text=True, check=False, env=environment, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_how_long_a_version_takes_is_shown_by_its_percentiles(house: Installation) -> None:
    ana = house.client("northbank/ana")
    before = ana.endpoint.show(CREDIT)["live"]["versions"]["1"]["latency"].get("count", 0)
    took_us: list[int] = []
    for i in range(30):
        began_ns = time.monotonic_ns()
        ana.endpoint.invoke(CREDIT, rows_request([row(i)]))
        took_us.append((time.monotonic_ns() - began_ns) // 1000)

    def told() -> Any:
        latency = json.loads(shown(house, "--format", "json"))["live"]["versions"]["1"]["latency"]
        return latency if latency["count"] >= before + 30 else None

    latency = poll("what was invoked to be in the figures", told)
    # Of a lifetime, by buckets a twentieth wide; what a caller waits is longer than what a replica takes.
    assert 0 < latency["p50_us"] <= latency["p95_us"] <= latency["p99_us"]
    assert latency["p50_us"] < 1.1 * max(took_us)
    assert latency["ok"] == latency["count"]
    text = shown(house)
    assert all(re.search(rf"^ +p{rank}_us +[0-9]+$", text, re.MULTILINE) for rank in (50, 95, 99)), text


def test_what_is_read_of_an_endpoint_is_what_the_document_of_the_api_says(house: Installation) -> None:
    ana = house.http("northbank/ana")
    document = ana.get("/schema/openapi.json").json()
    answers = document["paths"]["/v1/endpoints/{tenant}/{name}"]["get"]["responses"]
    for ref, status, media_type in ((CREDIT, 200, "application/json"), ("lakeside/x", 403, "application/problem+json")):
        answer = ana.get(f"/v1/endpoints/{ref}")
        assert answer.status_code == status
        schema = answers[str(status)]["content"][media_type]["schema"]
        Draft202012Validator({**schema, "components": document["components"]}).validate(answer.json())


@pytest.fixture(scope="module")
def hook(house: Installation) -> Iterator[tuple[Receiver, Webhook]]:
    """Who is told of roll-backs, with the verification of others' software."""
    receiver = Receiver()
    admin = house.client("northbank/admin")
    created = admin.webhook.create(
        "northbank/oncall", receiver.url, events=["endpoint.rolled-back", "endpoint.failed"], unsafe_http=True
    )
    yield receiver, Webhook(created.require().result["secret"])
    receiver.close()


def told_of_the_end(hook: tuple[Receiver, Webhook], operation: str) -> dict[str, Any]:
    """What was told of the end of a deployment, once, and signed."""
    receiver, verifier = hook

    def of_it() -> list[dict[str, Any]]:
        verified = [verifier.verify(raw, headers) for _, headers, raw in list(receiver.got)]
        return [body["data"] for body in verified if body["data"]["operation"] == operation]

    found: list[dict[str, Any]] = poll("the message", of_it)
    assert len({headers["webhook-id"] for _, headers, raw in receiver.got if operation in raw.decode()}) == 1
    return found[0]


def weights(house: Installation, endpoint: str = CREDIT) -> dict[str, int]:
    told: dict[str, int] = house.client("northbank/ana").endpoint.show(endpoint)["endpoint"]["weights"]
    return told


def states(house: Installation, endpoint: str = CREDIT) -> list[tuple[int, str]]:
    told = house.client("northbank/ana").endpoint.show(endpoint)
    return [(d["version"], d["state"]) for d in reversed(told["deployments"])]


def closed_account(house: Installation) -> dict[str, Any]:
    """The account of the endpoint, once all of what went before is in it."""
    ana = house.client("northbank/ana")
    asked_ms = time.time_ns() // 1_000_000

    def found() -> Any:
        try:
            told = ana.endpoint.show(CREDIT)
        except LicetClientError:
            return None
        live, account = told["live"], told["invocations"]
        is_later = live.get("told_at_ms", 0) > asked_ms
        return account if is_later and live["invocations"] == account["last"] else None

    account: dict[str, Any] = poll("the account to close", found, within_s=60)
    return account


@contextlib.contextmanager
def router_door(house: Installation) -> Iterator[RouterDoor]:
    """The door as it is behind its socket, which takes calls of the router's user alone; on the same database."""
    services = build_services(house.settings)
    try:
        yield services.router_door
    finally:
        services.sequencer.close()
        services.threads.shutdown()
        for engine in {services.engine, services.sequencer._engine}:  # On SQLite they are one.
            engine.dispose()


def deciding(answer: Any) -> set[str]:
    return {policy.id for policy in answer.policies}


# --- what is not permitted ------------------------------------------------------------------------------------------


def test_a_deployment_without_an_alarm_or_of_a_version_on_no_stage_is_denied(house: Installation) -> None:
    ci = house.client("northbank/ci")
    answer = ci.endpoint.deploy("northbank/other", "northbank/scorer@2", alarms=[])
    assert (answer.allowed, deciding(answer)) == (False, {"guardrail.endpoints.alarm"})
    answer = ci.endpoint.deploy("northbank/other", "northbank/scorer@3", alarms=CALM)
    assert (answer.allowed, deciding(answer)) == (False, {"guardrail.endpoints.stage"})
    far = ci.endpoint.deploy("northbank/other", "northbank/scorer@2", alarms=CALM, region="eu")
    assert (far.allowed, deciding(far)) == (False, {"guardrail.residency.deployment"})
    # A data scientist deploys nothing.
    assert not house.client("northbank/ana").endpoint.deploy(CREDIT, "northbank/scorer@2", alarms=CALM).allowed
    # Nothing of what was denied left a trace among the facts.
    assert [row["name"] for row in ci.list("northbank", "endpoints")] == ["credit"]


def test_unknown_foreign_and_forbidden_endpoints_are_one_answer_at_the_router(house: Installation) -> None:
    house.person("northbank/idle", roles=[])
    asked = (
        ("lakeside/all", CREDIT),
        ("lakeside/all", "lakeside/nothing"),
        ("lakeside/all", "nobody/nothing"),
        ("northbank/idle", CREDIT),
        ("northbank/ana", "northbank/nothing"),
    )
    seen = set()
    for who, endpoint in asked:
        response = httpx.post(
            f"{house.supervisor.router_url}/v2/models/{endpoint}/infer",
            json=rows_request([row(1)]),
            headers={"Authorization": f"Bearer {house.tokens[who]}"},
            trust_env=False,
        )
        body = response.json()
        decision = body.pop("decision")["id"]
        headers = {name: value for name, value in response.headers.items() if name not in {"date", "content-length"}}
        seen.add(json.dumps([response.status_code, headers, body], sort_keys=True))
        own = who.partition("/")[0]
        told = [r for leaf, r in house.entries(own) if r.get("id") == decision and leaf.kind == "decision"]
        assert [r["decision"] for r in told] == ["deny"]
    assert len(seen) == 1
    assert json.loads(seen.pop())[0] == 403
    attempts = [r for leaf, r in house.entries("northbank") if leaf.kind == "attempt" and leaf.actor == "lakeside"]
    assert [(r["action"], r["resource"]) for r in attempts] == [("endpoint.invoke", CREDIT)]


@pytest.mark.parametrize("act", ["deploy", "shift-traffic", "roll-back", "retire", "invoke", "read"])
def test_unknown_and_foreign_endpoints_are_one_answer_at_the_api(house: Installation, act: str) -> None:
    parameters = {
        "deploy": {"version": "northbank/scorer@1", "alarms": CALM},
        "shift-traffic": {"weights": {"1": 100}},
    }.get(act, {})
    seen = set()
    for endpoint in (CREDIT, "northbank/nothing", "nobody/nothing"):
        with house.http("lakeside/all") as http:
            response = http.post(f"/v1/endpoint/{act}", json={"resource": endpoint, "parameters": parameters})
        body = response.json()
        body["decision"].pop("id")
        seen.add(json.dumps([response.status_code, body], sort_keys=True))
    assert len(seen) == 1
    with house.http("lakeside/all") as http:
        looked = [http.get(f"/v1/endpoints/{ref}").json() for ref in (CREDIT, "nobody/nothing")]
    assert all(told["decision"].pop("id") for told in looked)
    assert looked[0] == looked[1]


def test_without_a_token_that_counts_nothing_is_answered(house: Installation) -> None:
    url = house.supervisor.router_url
    with LicetClient(house.url, "licet_nobody", serving_url=url) as nobody, pytest.raises(NotAuthenticated):
        nobody.endpoint.invoke(CREDIT, rows_request([row(1)]))


# --- traffic --------------------------------------------------------------------------------------------------------


def test_a_canary_takes_over_in_steps_and_no_request_is_lost(house: Installation) -> None:
    ana = house.client("northbank/ana")
    failed: list[Exception] = []
    answered: list[str] = []
    stop = threading.Event()

    def call() -> None:
        client = LicetClient(
            house.url, house.tokens["northbank/ben"], attempts=1, serving_url=house.supervisor.router_url
        )
        with client:
            i = 0
            while not stop.is_set():
                i += 1
                try:
                    answered.append(client.endpoint.invoke(CREDIT, rows_request([row(i)])).version)
                except LicetClientError as error:
                    failed.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    try:
        assert deploy(house, 2, strategy="canary", steps=[10, 50, 100], bake_s=2).state == "done"
        poll("the canary to take over", lambda: weights(house) == {"2": 100})
    finally:
        stop.set()
        thread.join()
    assert failed == []
    assert set(answered) == {"1", "2"}
    assert answered[-1] == "2"
    told = poll(
        "the end of the canary", lambda: (s := ana.endpoint.show(CREDIT))["events"][0]["kind"] == "completed" and s
    )
    assert [event["weights"] for event in reversed(told["events"])][-4:-1] == [
        {"1": 90, "2": 10},
        {"1": 50, "2": 50},
        {"2": 100},
    ]
    assert states(house) == [(1, "superseded"), (2, "live")]
    logged = [r for leaf, r in house.entries("northbank") if leaf.kind == "traffic"]
    assert [r["kind"] for r in logged][-1] == "completed"


def test_traffic_is_shifted_by_hand_only_to_what_could_be_deployed(
    house: Installation, hook: tuple[Receiver, Webhook]
) -> None:
    ci = house.client("northbank/ci")
    # Version 1 left its stage when version 2 took it.
    answer = ci.endpoint.shift_traffic(CREDIT, {"1": 20, "2": 80})
    assert (answer.allowed, deciding(answer)) == (False, {"guardrail.endpoints.shift"})
    back = house.done(ci, ci.endpoint.roll_back(CREDIT, reason="looked at again"))
    assert back.state == "done"
    assert weights(house) == {"1": 100}
    assert {
        house.client("northbank/ana").endpoint.invoke(CREDIT, rows_request([row(i)])).version for i in range(5)
    } == {"1"}
    assert states(house) == [(1, "live"), (2, "rolled-back")]
    # The newest deployment is the second; the first, which has the traffic, is on guard as it was.
    live = poll("the guard", lambda: (s := house.client("northbank/ana").endpoint.show(CREDIT)["live"])["guards"] and s)
    assert (live["rollout"]["version"], live["rollout"]["state"]) == ("2", "held")
    assert [(one["version"], one["state"], one["alarms"]) for one in live["guards"]] == [("1", "held", ["error-rate"])]
    assert "guards:" in shown(house)
    ended = house.client("northbank/ana").endpoint.show(CREDIT)["deployments"][0]
    message = told_of_the_end(hook, f"northbank/{ended['id']}")
    assert (message["version"], message["weights"]) == ("northbank/scorer@2", {"1": 100})
    assert message["cause"] == {"by": "ci", "reason": "looked at again"}
    assert deploy(house, 2, strategy="blue-green", bake_s=0).state == "done"
    poll("version 2", lambda: weights(house) == {"2": 100})
    with pytest.raises(LicetClientError, match="100"):
        ci.act("endpoint.shift-traffic", CREDIT, {"weights": {"1": 50, "2": 51}})


def test_drifted_requests_return_all_traffic_to_the_version_before_and_that_is_attested_and_told(
    house: Installation, hook: tuple[Receiver, Webhook]
) -> None:
    ci, ana = house.client("northbank/ci"), house.client("northbank/ana")
    promoted = ci.model.promote("northbank/scorer@3", stage="staging")
    assert house.done(ci, promoted).state == "done"
    assert deploy(house, 3, strategy="canary", steps=[50, 100], bake_s=600, alarms=ALARMS).state == "done"

    def feed() -> bool:
        # Far from every training row in both columns.
        body = rows_request([{"income": 400.0 + i, "ratio": 9.0} for i in range(50)])
        for _ in range(5):
            ana.endpoint.invoke(CREDIT, body)
        return weights(house) == {"2": 100}

    poll("the return", feed, within_s=60)
    told = ana.endpoint.show(CREDIT)
    newest = told["deployments"][0]
    assert (newest["version"], newest["state"]) == (3, "rolled-back")
    assert newest["cause"]["kind"] == "drift"
    message = told_of_the_end(hook, f"northbank/{newest['id']}")
    assert (message["version"], message["weights"]) == ("northbank/scorer@3", {"2": 100})
    assert message["cause"] == newest["cause"]
    assert {ana.endpoint.invoke(CREDIT, rows_request([row(i)])).version for i in range(5)} == {"2"}

    def attested() -> list[dict[str, Any]]:
        found = [r for leaf, r in house.entries("northbank") if leaf.kind == "attestation"]
        return [r for r in found if r["predicate_type"] == DEPLOYMENT and r["operation"] == newest["id"]]

    # What was deployed, and that it was taken back.
    poll("both statements", lambda: len(attested()) == 2)


def test_an_alarm_on_a_first_version_ends_it_and_that_is_told(
    house: Installation, hook: tuple[Receiver, Webhook]
) -> None:
    ana, lone = house.client("northbank/ana"), "northbank/lone"
    # Who deploys is told beforehand that there is nothing to return to.
    ci = house.client("northbank/ci")
    answer = ci.endpoint.deploy(lone, "northbank/scorer@3", alarms=ALARMS, replicas={"min": 1, "max": 1, "idle_s": 0})
    assert answer.result["note"].startswith("there is no version before on this endpoint")
    assert house.done(ci, answer).state == "done"

    def feed() -> bool:
        body = rows_request([{"income": 400.0 + i, "ratio": 9.0} for i in range(50)])
        with contextlib.suppress(LicetClientError):
            for _ in range(5):
                ana.endpoint.invoke(lone, body)
        (deployed,) = ana.endpoint.show(lone)["deployments"]
        # It goes on, since there is nowhere to return to; and what fired is told.
        return (deployed["state"], (deployed["cause"] or {}).get("kind")) == ("live", "drift")

    poll("the end", feed, within_s=60)
    newest = ana.endpoint.show(lone)["deployments"][0]
    message = told_of_the_end(hook, f"northbank/{newest['id']}")
    assert (message["version"], message["weights"], message["cause"]["kind"]) == (
        "northbank/scorer@3",
        {"3": 100},
        "drift",
    )
    # A version after it has it to return to, by hand too.
    ci = house.client("northbank/ci")
    assert house.done(ci, ci.model.promote("northbank/scorer@2", stage="staging")).state == "done"
    quiet = [{"kind": "error-rate", "threshold_micro": 900_000, "window_s": 60, "min_count": 1000}]
    assert deploy(house, 2, endpoint=lone, alarms=quiet, strategy="canary", steps=[10, 100], bake_s=600).state == "done"
    poll("the canary", lambda: ana.endpoint.show(lone)["endpoint"]["weights"] == {"2": 10, "3": 90}, 30)
    assert house.done(ci, ci.endpoint.roll_back(lone, reason="not wanted")).state == "done"
    assert ana.endpoint.show(lone)["endpoint"]["weights"] == {"3": 100}
    assert house.done(ci, ci.model.promote("northbank/scorer@3", stage="staging")).state == "done"
    assert house.done(ci, ci.endpoint.retire(lone)).state == "done"


def test_a_held_version_is_neither_deployed_nor_invoked_and_a_hold_on_its_data_stops_neither(
    house: Installation,
) -> None:
    ci, cora, ana = (house.client(f"northbank/{name}") for name in ("ci", "cora", "ana"))
    cora.dataset.hold("northbank/loans", "an inquiry into the data").require()
    held = "northbank/held"
    assert deploy(house, 3, endpoint=held).state == "done"
    assert ana.endpoint.invoke(held, rows_request([row(1)])).version == "3"
    assert ana.endpoint.may_invoke(held).allowed
    cora.model.hold("northbank/scorer@3", "an inquiry into the version").require()
    # A session that is open lasts to its end (see below); another is not opened.
    answer = ana.endpoint.may_invoke(held)
    assert (answer.allowed, deciding(answer)) == (False, {"guardrail.holds.invocation"})
    ben = house.client("northbank/ben")
    with pytest.raises(Denied):
        ben.endpoint.invoke(held, rows_request([row(1)]))
    answer = ci.endpoint.deploy("northbank/other", "northbank/scorer@3", alarms=CALM)
    assert (answer.allowed, deciding(answer)) == (False, {"guardrail.holds.deployment"})
    # What answers elsewhere is another version.
    assert ana.endpoint.may_invoke(CREDIT).allowed
    cora.model.lift_hold("northbank/scorer@3", "over").require()
    assert ana.endpoint.may_invoke(held).allowed
    cora.dataset.lift_hold("northbank/loans", "over").require()
    assert house.done(ci, ci.endpoint.retire(held)).state == "done"


# --- what is wrong is said ------------------------------------------------------------------------------------------


def test_wrong_requests_are_refused_with_the_reason_and_the_next_is_answered(house: Installation) -> None:
    ana = house.client("northbank/ana")

    def post(body: bytes, path: str = f"{CREDIT}/infer") -> httpx.Response:
        return httpx.post(
            f"{house.supervisor.router_url}/v2/models/{path}",
            content=body,
            headers={"Authorization": f"Bearer {house.tokens['northbank/ana']}"},
            trust_env=False,
        )

    right = rows_request([row(1)])
    inputs = right["inputs"]
    for body, status, why in (
        (b"{", 400, "not an inference request"),
        (json.dumps({"inputs": inputs[:1]}).encode(), 400, "ratio"),
        (json.dumps({"inputs": [inputs[0] | {"shape": [2]}, inputs[1]]}).encode(), 400, "shape"),
        (json.dumps({"inputs": [inputs[0] | {"datatype": "BYTES"}, inputs[1]]}).encode(), 400, "datatype"),
        (json.dumps({"inputs": [inputs[0] | {"data": ["x"]}, inputs[1]]}).encode(), 400, "input"),
        (json.dumps(right | {"parameters": {"pad": "x" * (1 << 20)}}).encode(), 413, "1048576"),
    ):
        answer = post(body)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
        assert why in answer.json()["detail"], answer.text
    answer = post(json.dumps(right).encode(), f"{CREDIT}-/infer")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-input")
    answer = post(json.dumps(right).encode(), f"{CREDIT}/versions/9/infer")
    assert (answer.status_code, answer.json()["code"]) == (404, "no-such-version")
    assert ana.endpoint.invoke(CREDIT, right).outputs["probability"]["data"]


# --- the account ----------------------------------------------------------------------------------------------------


def test_a_gap_or_an_overlap_in_the_account_is_refused_and_logged(house: Installation) -> None:
    ana = house.client("northbank/ana")
    count = closed_account(house)
    session = ana.endpoint.invoke(CREDIT, rows_request([row(1)])).session
    poll("it to be counted", lambda: ana.endpoint.show(CREDIT)["invocations"]["last"] == count["last"] + 1)
    last = count["last"] + 1

    with router_door(house) as door:

        def report(first: int, last_: int, **more: Any) -> str:
            groups = [{"session": session, "version": 2, "status": "ok", "count": last_ - first + 1}]
            batch = {"router": "other", "epoch": 1, "first": first, "last": last_, "lost": 0, "groups": groups} | more
            with pytest.raises(LicetError) as error:
                door.accounts.take("northbank", CREDIT, batch)
            return f"{error.value.code}: {error.value}"

        assert "leaves a gap" in report(last + 2, last + 3)
        assert "overlaps" in report(last, last)
        assert "counts 1 of 3" in report(
            last + 1, last + 3, groups=[{"session": session, "version": 2, "status": "ok", "count": 1}]
        )
        assert "no session" in report(
            last + 1, last + 1, groups=[{"session": "0" * 32, "version": 2, "status": "ok", "count": 1}]
        )
        assert "invalid-input" in report(
            last + 1, last + 1, groups=[{"session": session, "version": 2, "status": "odd", "count": 1}]
        )
        before = [r for leaf, r in house.entries("northbank") if leaf.kind == "invocations" and r["event"] == "refused"]
        assert len(before) == 4
        assert "leaves a gap" in report(last + 2, last + 3)  # Told again, it is not logged again.
        after = [r for leaf, r in house.entries("northbank") if leaf.kind == "invocations" and r["event"] == "refused"]
        assert len(after) == 4
        assert ana.endpoint.show(CREDIT)["invocations"]["last"] == last


@pytest.mark.parametrize("process", ["router", "api", "worker", "signer"])
def test_a_process_killed_under_traffic_comes_back_and_the_account_has_no_gap(
    house: Installation, process: str
) -> None:
    failed = 0
    with LicetClient(
        house.url, house.tokens["northbank/ben"], attempts=8, serving_url=house.supervisor.router_url
    ) as client:
        for i in range(200):
            if i == 100:
                os.kill(house.supervisor.pid(process), signal.SIGKILL)
            try:
                client.endpoint.invoke(CREDIT, rows_request([row(i)]))
            except LicetClientError:
                failed += 1
    # Only the router's own death can be noticed by who invokes, and a client that tries again notices nothing.
    assert failed == 0
    closed_account(house)
    counted = [r for leaf, r in house.entries("northbank") if leaf.kind == "invocations" and r["event"] == "counted"]
    ends = [(r["first"], r["last"]) for r in counted if r["endpoint"] == CREDIT]
    assert ends[0][0] == 1
    assert all(following[0] == before[1] + 1 for before, following in itertools.pairwise(ends))


@pytest.mark.parametrize("process", ["router", "worker"])
def test_a_deployment_over_which_a_process_is_killed_is_there_once_in_the_end(
    house: Installation, process: str
) -> None:
    ci, ana = house.client("northbank/ci"), house.client("northbank/ana")
    endpoint = f"northbank/over-{process}"
    accepted = ci.endpoint.deploy(
        endpoint, "northbank/scorer@3", alarms=CALM, replicas={"min": 1, "max": 1, "idle_s": 0}
    )
    assert accepted.operation is not None
    poll("it to be at work", lambda: ci.operation("northbank", accepted.operation.id).state == "running")
    os.kill(house.supervisor.pid(process), signal.SIGKILL)
    assert ci.wait(accepted.operation, timeout_s=120).state == "done"
    assert poll("an answer", lambda: ana.endpoint.invoke(endpoint, rows_request([row(1)]))).version == "3"
    assert states(house, endpoint) == [(3, "live")]
    assert house.done(ci, ci.endpoint.retire(endpoint)).state == "done"
    assert states(house, endpoint) == [(3, "retired")]


def test_the_router_counts_what_it_answers_without_naming_anybody(house: Installation) -> None:
    token = house.settings.metrics_token.read_text().strip()
    house.client("northbank/ana").endpoint.invoke(CREDIT, rows_request([row(1)]))
    told = httpx.get(
        f"http://127.0.0.1:{house.settings.metrics_port + 2}/metrics",
        headers={"Authorization": f"Bearer {token}"},
        trust_env=False,
    ).text
    found = dict(line.rsplit(" ", 1) for line in told.splitlines() if line.startswith("licet_"))
    assert float(found['licet_invocation_duration_seconds_count{outcome="ok"}']) >= 1
    assert float(found["licet_replicas"]) >= 1
    assert float(found["licet_router_connections"]) >= 1
    assert "northbank" not in told


# --- backup ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("router", ["kept", "lost"])
def test_a_backup_under_traffic_brings_its_endpoints_back_and_the_account_goes_on(
    house: Installation, tmp_path: Path, router: str
) -> None:
    if house.settings.database_urls:
        pytest.skip("licet backup is of SQLite; on PostgreSQL it refuses")
    is_lost = router == "lost"
    stop = threading.Event()
    numbers: list[int] = []

    def call() -> None:
        client = LicetClient(house.url, house.tokens["northbank/ana"], serving_url=house.supervisor.router_url)
        with client:
            while not stop.is_set():
                numbers.append(client.endpoint.invoke(CREDIT, rows_request([row(1)])).number)

    thread = threading.Thread(target=call)
    thread.start()
    try:
        poll("some traffic", lambda: len(numbers) > 20)
        backup(house.settings, tmp_path / "b")
    finally:
        stop.set()
        thread.join()
    data = house.data.parent / f"r-{router}"
    restore(tmp_path / "b", data)
    if is_lost:
        shutil.rmtree(data / "router")
    settings = load_settings({}, data=data, port=free_port(), router_port=free_port())
    supervisor = Supervisor(settings, log=house.data.parent / "restored.log")
    try:
        supervisor.start()
        ana, ci = (
            LicetClient(supervisor.url, house.tokens[f"northbank/{name}"], serving_url=supervisor.router_url)
            for name in ("ana", "ci")
        )
        with ana, ci:
            before = ana.endpoint.show(CREDIT)
            if is_lost:
                with pytest.raises(LicetClientError, match="nothing is deployed"):
                    ana.endpoint.invoke(CREDIT, rows_request([row(1)]))
                assert house.done(ci, ci.endpoint.retire(CREDIT)).state == "done"
                body = {"alarms": CALM, "replicas": {"min": 1, "max": 1, "idle_s": 0}}
                assert house.done(ci, ci.endpoint.deploy(CREDIT, "northbank/scorer@3", **body)).state == "done"
            number = ana.endpoint.invoke(CREDIT, rows_request([row(1)])).number
            assert number > before["invocations"]["last"]
            told = poll("the account", lambda: (s := ana.endpoint.show(CREDIT))["invocations"]["last"] >= number and s)
            assert is_lost or told["endpoint"]["weights"] == before["endpoint"]["weights"]
        output = (house.data.parent / "restored.log").read_text()
        assert "account-broken" not in output
    finally:
        supervisor.stop()


# --- sessions end ---------------------------------------------------------------------------------------------------


def test_within_a_minute_a_revoked_token_invokes_nothing_and_a_held_version_answers_nobody(house: Installation) -> None:
    admin, cora, ana = (house.client(f"northbank/{name}") for name in ("admin", "cora", "ana"))
    issued = admin.token.issue("northbank/ben").require().result
    guest = LicetClient(house.url, issued["token"], serving_url=house.supervisor.router_url)
    guest.endpoint.invoke(CREDIT, rows_request([row(1)]))
    ana.endpoint.invoke(CREDIT, rows_request([row(1)]))
    began_s = time.monotonic()
    admin.token.revoke("northbank/ben", issued["token_id"]).require()
    cora.model.hold("northbank/scorer@2", "an inquiry").require()

    def is_refused(client: LicetClient, error: type[Exception]) -> bool:
        try:
            client.endpoint.invoke(CREDIT, rows_request([row(1)]))
        except error:
            return True
        return False

    poll("the revoked token", lambda: is_refused(guest, NotAuthenticated), within_s=62)
    poll("the hold", lambda: is_refused(ana, Denied), within_s=max(1, 62 - (time.monotonic() - began_s)))
    guest.close()
    cora.model.lift_hold("northbank/scorer@2", "over").require()
    poll("it to answer again", lambda: not is_refused(ana, Denied), within_s=10)


def test_a_suspended_tenant_can_still_roll_back_and_is_not_answered(house: Installation) -> None:
    operator, ci = house.client("platform/operator"), house.client("northbank/ci")
    assert deploy(house, 3, strategy="blue-green", bake_s=0).state == "done"
    poll("version 3", lambda: weights(house) == {"3": 100})
    operator.tenant.suspend("northbank").require()
    try:
        answer = ci.endpoint.roll_back(CREDIT)
        assert answer.allowed
        assert not ci.endpoint.retire(CREDIT).allowed
        assert not ci.endpoint.may_invoke(CREDIT).allowed
    finally:
        operator.tenant.suspend("northbank", suspended=False).require()
    assert answer.operation is not None
    assert ci.wait(answer.operation, timeout_s=60).state == "done"
    assert weights(house) == {"2": 100}


# --- the end --------------------------------------------------------------------------------------------------------


def test_a_retired_endpoint_answers_nobody_and_leaves_no_model_in_the_clear(house: Installation) -> None:
    ci, ana = house.client("northbank/ci"), house.client("northbank/ana")
    kept = list(house.settings.router_data.rglob("model.safetensors"))
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}
    assert digests
    # Readable to a job in its sandbox, which is given them there; here nobody else gets past this folder.
    assert house.settings.router_data.stat().st_mode & 0o077 == 0
    assert house.done(ci, ci.endpoint.retire(CREDIT)).state == "done"
    assert weights(house) == {}
    with pytest.raises(LicetClientError):
        ana.endpoint.invoke(CREDIT, rows_request([row(1)]))
    assert not ana.endpoint.may_invoke(CREDIT).allowed
    poll("the files to go", lambda: not list(house.settings.router_data.rglob("model.safetensors")), within_s=20)
    # Deployed again, its account goes on where it was.
    last = ana.endpoint.show(CREDIT)["invocations"]["last"]
    assert deploy(house, 3).state == "done"
    assert poll("an answer", lambda: ana.endpoint.invoke(CREDIT, rows_request([row(1)]))).number > last
    poll("the account", lambda: ana.endpoint.show(CREDIT)["invocations"]["last"] > last)
