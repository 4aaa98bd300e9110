"""What somebody meets on the first day: what is told, what is refused, and what is left in the log by looking."""

from __future__ import annotations

import json

import pytest
from service_world import Installation, poll, problem

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
