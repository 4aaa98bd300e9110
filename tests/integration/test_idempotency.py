"""The same request again is answered alike and done once, however often and at how many a time it is sent."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlmodel import select

from licet_engine.api.services import Services
from licet_engine.app import build_services
from licet_engine.domain.errors import InvalidInput
from licet_engine.lifecycle.asked import Answer, parse_asked
from licet_engine.lifecycle.catalogue import VERBS
from licet_engine.lifecycle.verbs import Who
from licet_engine.store import tables
from licet_engine.store.db import tenant_session

sys.path.append(str(Path(__file__).parent))
from service_world import Installation, problem, table  # The line above finds it.

pytestmark = pytest.mark.slow


def send(http: httpx.Client, path: str, body: dict[str, Any], key: str) -> httpx.Response:
    return http.post(path, json=body, headers={"Idempotency-Key": key})


def rows(world: Installation, kind: type[Any], tenant: str = "northbank") -> list[Any]:
    with tenant_session(world.engine, tenant) as session:
        return list(session.exec(select(kind)).all())


def remaining(world: Installation) -> int:
    (row,) = (row for row in rows(world, tables.Budget) if row.name == "training")
    left: int = row.remaining
    return left


def test_the_same_key_gives_the_same_answer_and_does_it_once(world: Installation) -> None:
    body = {"resource": "northbank/loans", "parameters": {"reason": "said twice"}}
    with world.http("northbank/cora") as http:
        first, again = (send(http, "/v1/dataset/hold", body, "hold-1") for _ in range(2))
        # The log grows until the store keeps the object, too.
        world.client("northbank/cora").wait(f"northbank/{first.json()['operation']['id']}", timeout_s=60)
        size = world.size("northbank")
        third = send(http, "/v1/dataset/hold", body, "hold-1")
        assert first.status_code == again.status_code == third.status_code == 202
        assert first.json() == again.json() == third.json()
        # What was decided once is not decided, nor logged, again.
        assert world.size("northbank") == size
        placed = [row for row in rows(world, tables.Hold) if row.reason == "said twice"]
        assert [row.id for row in placed] == [first.json()["result"]["hold"]]
        other = send(http, "/v1/dataset/hold", body, "hold-2")
        assert other.json()["result"]["hold"] != first.json()["result"]["hold"]
        lift = {"resource": "northbank/loans", "parameters": {"reason": "over"}}
        assert send(http, "/v1/dataset/lift-hold", lift, "lift-1").status_code == 202
        # It was lifted; sent again, it lifts nothing further, and is no conflict either.
        assert send(http, "/v1/dataset/lift-hold", lift, "lift-1").status_code == 202
        problem(send(http, "/v1/dataset/lift-hold", lift, "lift-2"), 409, "conflict")


@pytest.mark.parametrize(
    "changed",
    [
        {"parameters": {"reason": "another"}},
        {"resource": "northbank/elsewhere-in-the-house"},
        {"claimed": {"ticket": "T-2"}},
    ],
    ids=["other-parameters", "other-resource", "other-claims"],
)
def test_a_key_is_for_one_request_alone(world: Installation, changed: dict[str, Any]) -> None:
    body = {"resource": "northbank/loans", "parameters": {"reason": "bound"}, "claimed": {"ticket": "T-1"}}
    key = f"bound-{next(iter(changed))}"
    with world.http("northbank/cora") as http:
        assert send(http, "/v1/dataset/hold", body, key).status_code == 202
        problem(send(http, "/v1/dataset/hold", body | changed, key), 409, "idempotency-key-reused")
        problem(send(http, "/v1/dataset/lift-hold", body, key), 409, "idempotency-key-reused")
        lifted = {"resource": "northbank/loans", "parameters": {"reason": "over"}}
        assert http.post("/v1/dataset/lift-hold", json=lifted).status_code == 202


def test_a_key_is_its_principals_own(world: Installation) -> None:
    body = {"resource": "northbank/loans", "parameters": {"reason": "two people"}}
    held = set()
    for who in ("northbank/cora", "northbank/all"):
        with world.http(who) as http:
            held.add(send(http, "/v1/dataset/hold", body, "same-key").json()["result"]["hold"])
    assert len(held) == 2
    with world.http("northbank/cora") as http:
        lifted = {"resource": "northbank/loans", "parameters": {"reason": "over"}}
        assert http.post("/v1/dataset/lift-hold", json=lifted).status_code == 202


@pytest.mark.parametrize("key", ["k" * 65, "tab\there", "caf\u00e9"])
def test_a_key_that_is_none_is_refused(world: Installation, key: str) -> None:
    with world.http("northbank/cora") as http:
        body = b'{"resource": "northbank/loans", "parameters": {"reason": "x"}}'
        response = http.post("/v1/dataset/hold", content=body, headers={"Idempotency-Key": key.encode("latin-1")})
    problem(response, 400, "invalid-input")


def test_an_upload_that_was_used_does_not_change_the_answer(world: Installation) -> None:
    client = world.client("northbank/ana")
    parameters = world.dataset_body("northbank/ana", table(30, odd=31))
    body = {"resource": "northbank/once-more", "parameters": parameters}
    with world.http("northbank/ana") as http:
        first = send(http, "/v1/dataset/register", body, "register-1")
        assert first.status_code == 202
        operation = first.json()["operation"]
        assert client.wait(f"northbank/{operation['id']}", timeout_s=60).state == "done"
        # The upload is used up by now: a sender whose first answer was lost is told of what was done all the same.
        assert send(http, "/v1/dataset/register", body, "register-1").json() == first.json()
        problem(send(http, "/v1/dataset/register", body, "register-2"), 400, "no-such-upload")


def test_of_many_at_once_one_is_done(world: Installation) -> None:
    parameters = {
        "dataset": "northbank/loans",
        "environment": "us-east",
        "use": "credit-risk",
        "cost": 5,
        "spec": {"epochs": 1},
    }
    body = {"resource": "northbank/at-once", "parameters": parameters}
    before = remaining(world)

    def launch(_: int) -> httpx.Response:
        with world.http("northbank/ana") as http:
            return send(http, "/v1/training/launch", body, "launch-at-once")

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(launch, range(8)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.text for answer in answers}) == 1
    assert remaining(world) == before - 5
    assert [row.resource for row in rows(world, tables.Operation)].count("northbank/at-once") == 1
    client = world.client("northbank/ana")
    assert client.wait(f"northbank/{answers[0].json()['operation']['id']}", timeout_s=120).state == "done"
    assert remaining(world) == before - 5


@pytest.fixture
def services(world: Installation) -> Iterator[Services]:
    """The parts of a second api process beside the running one, so that a test can step between its steps."""
    made = build_services(world.settings)
    yield made
    made.sequencer.close()
    made.threads.shutdown()
    for engine in {made.engine, made.sequencer._engine}:  # On SQLite they are one.
        engine.dispose()


@pytest.mark.parametrize("is_used_up", [False, True], ids=["facts-changed", "upload-used-up"])
def test_what_is_done_while_it_is_sent_again_is_told_to_both(
    world: Installation, services: Services, *, is_used_up: bool
) -> None:
    """The key is looked for, in vain; the other one is done; then the facts are read, and they speak against it."""
    name, body = f"meanwhile-{is_used_up}".lower(), world.dataset_body("northbank/ana", table(30, odd=37))
    asked = parse_asked(VERBS["dataset.register"], f"northbank/{name}", body, key=name)
    first: list[Answer] = []

    def identify() -> Who:
        return services.tenants.identify(world.tokens["northbank/ana"])

    def do_the_other(_: Who) -> None:
        if not first:
            first.append(services.desk.ask(identify, asked))
            if is_used_up:
                raise InvalidInput("the upload was used", code="no-such-upload")

    second = services.desk.ask(identify, asked, verify=do_the_other)
    assert first[0].operation is not None
    assert second.conflict is None
    assert second.to_json() == first[0].to_json()
    ana = world.client("northbank/ana")
    assert ana.wait(f"northbank/{second.operation}", timeout_s=60).state == "done"
    # Under a key of its own it is another request, and in conflict with what is there.
    other = services.desk.ask(identify, replace(asked, key=f"{name}-other"))
    assert other.conflict is not None
    assert other.operation is None


def test_a_budget_is_not_spent_beyond_what_is_there(world: Installation) -> None:
    admin = world.client("lakeside/admin")
    admin.act("tenant.administer", "lakeside", {"budgets": {"training": 3}}).require()
    parameters = {"dataset": "lakeside/loans", "environment": "eu-east", "use": "credit-risk", "spec": {"epochs": 1}}

    def launch(number: int) -> httpx.Response:
        body = {"resource": f"lakeside/race-{number}", "parameters": parameters | {"cost": 2}}
        with world.http("lakeside/ana") as http:
            return http.post("/v1/training/launch", json=body)

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(launch, range(6)))
    allowed = [answer for answer in answers if answer.status_code == 202]
    assert len(allowed) == 1
    for answer in answers:
        if answer not in allowed:
            decision = problem(answer, 403, "denied")["decision"]
            assert "guardrail.budget" in [policy["id"] for policy in decision["policies"]]
    (left,) = (row.remaining for row in rows(world, tables.Budget, "lakeside"))
    assert left == 1
    client = world.client("lakeside/ana")
    assert client.wait(f"lakeside/{allowed[0].json()['operation']['id']}", timeout_s=120).state == "done"
    admin.act("tenant.administer", "lakeside", {"budgets": {"training": 50}}).require()


def test_a_secret_is_told_once_and_stored_nowhere(world: Installation) -> None:
    body = {"resource": "northbank/ben", "parameters": {"label": "told once"}}
    with world.http("northbank/admin") as http:
        first = send(http, "/v1/token/issue", body, "token-1").json()["result"]
        again = send(http, "/v1/token/issue", body, "token-1").json()["result"]
    assert first["token"].startswith("licet_")
    assert again == {name: value for name, value in first.items() if name != "token"}
    secret = first["token"].encode()
    for path in world.data.rglob("*"):
        if path.is_file():
            assert secret not in path.read_bytes(), path


def test_a_figure_of_a_run_is_logged_once(world: Installation, trained: str) -> None:
    assert trained
    body = {"resource": "northbank/run-1", "parameters": {"name": "auc", "step": 7, "value": "0.71"}}
    with world.http("northbank/ci") as http:
        assert send(http, "/v1/run/log", body, "log-1").status_code == 200
        assert send(http, "/v1/run/log", body, "log-1").status_code == 200
        # Under another key it is another request, for the same place: a conflict, and told as one.
        problem(send(http, "/v1/run/log", body, "log-2"), 409, "conflict")
