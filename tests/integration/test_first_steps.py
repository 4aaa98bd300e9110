"""What somebody meets on the first day: what is told, what is refused, and what is left in the log by looking."""

from __future__ import annotations

import json
from typing import Any

import pytest
from service_world import Installation, poll, problem

from licet_engine.client import RequestRefused, StateConflict

pytestmark = pytest.mark.slow


def test_every_process_writes_one_json_object_a_line(world: Installation) -> None:
    lines = poll("lines", lambda: world.output().splitlines())
    told = [json.loads(line) for line in lines]
    assert all({"time", "level", "logger", "event"} <= set(line) for line in told)
    # The signer's line is there, and in the form of the others.
    assert any(line["event"].startswith("signer ready") for line in told)


def test_the_discovery_document_does_not_repeat_what_a_request_says_of_its_host(world: Installation) -> None:
    with world.http(None) as http:
        told = http.get("/.well-known/authzen-configuration", headers={"Host": "evil.example"})
    assert told.json()["policy_decision_point"] == world.url
    assert "evil" not in told.text


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
@pytest.mark.parametrize("path", ["/v1/ask", "/v1/dataset/read", "/access/v1/evaluation"])
def test_a_body_that_is_not_json_as_it_is_is_refused(world: Installation, path: str, headers: dict[str, str]) -> None:
    with world.http("northbank/ana") as http:
        problem(http.post(path, content=b"{}", headers=headers), 415, "unsupported-media-type")


def test_a_packed_upload_is_refused(world: Installation) -> None:
    with world.http("northbank/ana") as http:
        sent = http.put("/v1/uploads", content=b"abc", headers={"Content-Encoding": "gzip"})
    problem(sent, 415, "unsupported-media-type")


def test_what_is_missing_and_what_is_there_instead_is_told(world: Installation) -> None:
    with world.http("northbank/ana") as http:
        assert "'action' is missing" in problem(http.post("/v1/ask", json={}), 400, "invalid-input")["detail"]
        assert "it takes POST" in problem(http.get("/v1/ask"), 405, "method-not-allowed")["detail"]
        assert "/schema" in problem(http.post("/v1/v1/ask", json={}), 404, "no-such-route")["detail"]


def test_listing_ones_own_decisions_leaves_no_denial_in_the_log(world: Installation) -> None:
    ana = world.client("northbank/ana")
    ana.act("dataset.read", "northbank/loans").require()
    first = world.size("northbank")
    rows = ana.list("northbank", "decisions")
    assert {row["principal"] for row in rows} == {"northbank/ana"}
    decided = [
        record["decision"]
        for leaf, record in world.entries("northbank", first)
        if leaf.kind == "decision" and record["action"] == "decision.read"
    ]
    assert decided == ["allow"]


def test_operators_see_the_environments_that_they_set(world: Installation) -> None:
    rows = {row["tenant"]: row for row in world.client("platform/operator").list("platform", "tenants")}
    assert rows["northbank"]["environments"] == {"far": "elsewhere", "us-east": "us"}
    own = world.client("lakeside/ana").list("lakeside", "tenants")
    assert [row["environments"] for row in own] == [{"eu-east": "eu", "far": "elsewhere"}]


def test_what_policies_require_is_a_list_for_every_asker(world: Installation, trained: str) -> None:
    asked = {"action": "model.promote", "resource": trained, "parameters": {"stage": "prod"}}
    with world.http("northbank/ci") as http:
        policies = http.post("/v1/ask", json=asked).json()["decision"]["policies"]
    required = [policy["requires"] for policy in policies]
    assert any(required)
    assert all(isinstance(each, list) and all(isinstance(word, str) for word in each) for each in required)


def test_a_run_in_an_environment_that_is_not_there_is_refused_at_once(world: Installation, trained: str) -> None:
    assert trained
    ci = world.client("northbank/ci")
    body = {"dataset": "northbank/loans", "environment": "mars", "use": "credit-risk"}
    size = world.size("northbank")
    for call in (ci.ask, ci.act):
        with pytest.raises(
            RequestRefused, match="environment 'mars' is not declared in northbank: name one that licet"
        ):
            call("training.launch", "northbank/run-on-mars", body)
    assert world.size("northbank") == size
    assert "run-on-mars" not in {row["name"] for row in ci.list("northbank", "runs")}
    # Another tenant learns of no environment, declared or not.
    answers = [
        world.client("lakeside/all").ask("training.launch", "northbank/x", {**body, "environment": name})
        for name in ("mars", "us-east")
    ]
    assert [(answer.allowed, answer.is_explained) for answer in answers] == [(False, False)] * 2


def test_one_question_of_many_that_cannot_be_put_is_its_own_answer(world: Installation, trained: str) -> None:
    assert trained
    properties = {"dataset": "northbank/loans", "environment": "mars", "use": "credit-risk"}
    asked: dict[str, Any] = {
        "subject": {"type": "service-account", "id": "northbank/ci"},
        "evaluations": [
            {
                "action": {"name": "training.launch", "properties": properties | {"environment": place}},
                "resource": {"type": "Run", "id": f"northbank/{run}"},
            }
            for place, run in (("mars", "other"), ("us-east", "other"), ("us-east", "run-1"))
        ],
    }
    with world.http("northbank/ci") as http:
        response = http.post("/access/v1/evaluations", json=asked)
    assert response.status_code == 200, response.text
    told = response.json()["evaluations"]
    assert [answer["decision"] for answer in told] == [False, True, True]
    assert "mars" in told[0]["context"]["error"]["message"]
    assert "conflict" not in told[1]["context"]
    assert told[2]["context"]["conflict"]["code"] == "conflict"


def test_what_could_not_be_done_is_told_with_the_answer_and_at_the_end_of_the_path(
    world: Installation, trained: str
) -> None:
    assert trained
    ci = world.client("northbank/ci")
    launch = {"dataset": "northbank/loans", "environment": "us-east", "use": "credit-risk"}
    free = ci.ask("training.launch", "northbank/another", launch)
    taken = ci.ask("training.launch", "northbank/run-1", launch)
    assert (free.allowed, free.conflict, taken.allowed) == (True, None, True)
    told = {"code": "conflict", "detail": "run northbank/run-1 exists already: launch it under another name"}
    assert taken.conflict == told
    with pytest.raises(StateConflict, match="exists already"):
        ci.act("training.launch", "northbank/run-1", launch)
    # Where it is denied, nothing of it is told but where the path to yes would lead into it.
    paths = {}
    for name in ("another", "run-1"):
        dear = ci.ask("training.launch", f"northbank/{name}", launch | {"cost": 5000})
        assert (dear.allowed, dear.conflict) == (False, None)
        explanation = ci.explain(dear)
        assert explanation is not None
        assert [step["name"] for step in explanation.path["steps"]] == ["budget:training"]
        paths[name] = explanation.path["conflict"]
    assert paths == {"another": None, "run-1": told}
    outside = world.client("northbank/uma").ask("training.launch", "northbank/run-1", launch)
    assert (outside.allowed, outside.conflict) == (False, None)
    explanation = world.client("northbank/uma").explain(outside)
    assert explanation is None or (explanation.path["possible"], explanation.path["conflict"]) == (False, None)


def test_a_version_is_of_who_made_it_not_of_who_failed_to(world: Installation, trained: str) -> None:
    assert trained
    ana, ci = world.client("northbank/ana"), world.client("northbank/ci")
    broken = {"model.safetensors": world.upload("northbank/ana", b"no such file")}
    failed = ana.act("model.register", "northbank/second", {"run": "northbank/run-1", "files": broken})
    assert world.done(ana, failed).state == "failed"
    made = ci.act("model.register", "northbank/second", {"run": "northbank/run-1"})
    assert world.done(ci, made).state == "done"
    rows = [row for row in ci.list("northbank", "models") if row["model"] == "second"]
    assert [(row["version"], row["created_by"]) for row in rows] == [(1, "ci")]
