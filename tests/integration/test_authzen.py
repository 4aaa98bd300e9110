"""The OpenID AuthZEN Authorization API 1.0, as its own schemas and its text have it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

sys.path.append(str(Path(__file__).parent))
from service_world import Installation, problem  # The line above finds it.

from licet_policies import resource_types

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[2]
VECTORS = Path(os.environ.get("LICET_VECTORS", str(CHECKOUT.parent / "shared" / "vectors"))) / "authzen"


@pytest.fixture(scope="module")
def schemas() -> dict[str, jsonschema.protocols.Validator]:
    """The working group's schemas of a request and of a response."""
    if not VECTORS.is_dir():
        pytest.skip(f"no vectors at {VECTORS}: set LICET_VECTORS to the folder that holds authzen/")
    found = {}
    for name in ("request", "response"):
        schema = json.loads((VECTORS / f"evaluation-{name}.schema.json").read_text())
        found[name] = jsonschema.validators.validator_for(schema)(schema)
    return found


def question(subject: str, action: str, resource: str, **more: Any) -> dict[str, Any]:
    kind = "service-account" if subject.endswith("/ci") else "person"
    noun = min(resource_types().get(action, {"Dataset"}))
    return {
        "subject": {"type": kind, "id": subject},
        "action": {"name": action},
        "resource": {"type": noun, "id": resource},
    } | more


def evaluate(http: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    response = http.post("/access/v1/evaluation", json=body)
    assert response.status_code == 200, response.text
    told: dict[str, Any] = response.json()
    return told


def record(world: Installation, identifier: str) -> dict[str, Any]:
    (found,) = (r for _, r in world.entries("northbank") if r.get("id") == identifier and "decision" in r and "v" in r)
    return found


def test_requests_and_responses_are_of_the_specifications_shape(
    world: Installation, schemas: dict[str, jsonschema.protocols.Validator]
) -> None:
    bodies = [
        question("northbank/ana", "dataset.read", "northbank/loans"),
        question("northbank/ana", "dataset.delete", "northbank/loans"),
        question("northbank/ana", "dataset.read", "lakeside/loans"),
    ]
    with world.http("northbank/ana") as http:
        for body, expected in zip(bodies, (True, False, False), strict=True):
            schemas["request"].validate(body)
            told = evaluate(http, body)
            schemas["response"].validate(told)
            assert told["decision"] is expected
            assert told["context"]["decision"] == ("allow" if expected else "deny")


def test_the_interop_payloads_are_understood_as_questions(
    world: Installation, schemas: dict[str, jsonschema.protocols.Validator]
) -> None:
    payloads = json.loads((VECTORS / "decisions-authorization-api-1_0-02.json").read_text())["evaluation"]
    with world.http("northbank/ana") as http:
        for payload in payloads:
            schemas["request"].validate(payload["request"])
            # Of the right shape, about a world that is not ours: refused by name, never answered with a yes.
            problem(http.post("/access/v1/evaluation", json=payload["request"]), 400, "invalid-input")
    assert len(payloads) > 10


def test_the_discovery_document_names_what_is_there(world: Installation) -> None:
    with world.http(None) as http:
        told = http.get("/.well-known/authzen-configuration").json()
    assert told["policy_decision_point"] == world.url
    with world.http("northbank/ana") as http:
        body = question("northbank/ana", "dataset.read", "northbank/loans")
        assert http.post(told["access_evaluation_endpoint"], json=body).json()["decision"] is True
        answer = http.post(told["access_evaluations_endpoint"], json={**body, "evaluations": [{}]})
        assert [item["decision"] for item in answer.json()["evaluations"]] == [True]


def test_the_request_identifier_is_sent_back(world: Installation) -> None:
    body = question("northbank/ana", "dataset.read", "northbank/loans")
    with world.http("northbank/ana") as http:
        answer = http.post("/access/v1/evaluation", json=body, headers={"X-Request-ID": "req-17"})
        assert answer.headers["x-request-id"] == "req-17"
        assert "x-request-id" not in http.post("/access/v1/evaluation", json=body).headers


def test_properties_land_in_what_is_claimed_and_feed_no_guardrail(world: Installation) -> None:
    body = {
        "subject": {"type": "person", "id": "northbank/ana", "properties": {"roles": ["administrator"]}},
        "action": {"name": "dataset.delete", "properties": {"urgent": True}},
        "resource": {"type": "Dataset", "id": "northbank/loans", "properties": {"held": "no"}},
        "context": {"ticket": "T-1", "score": 0.5},
    }
    with world.http("northbank/ana") as http:
        told = evaluate(http, body)
    assert told["decision"] is False
    claimed = {item["name"]: item["value"] for item in record(world, told["context"]["id"])["context"]["claimed"]}
    assert claimed == {
        "subject.roles": '["administrator"]',
        "action.urgent": "true",
        "resource.held": "no",
        "context.ticket": "T-1",
        "context.score": "0.5",
    }


def test_properties_that_the_verb_declares_are_its_parameters(world: Installation, trained: str) -> None:
    body = question("northbank/mei", "model.approve", trained)
    with world.http("northbank/mei") as http:
        for track, expected in (("model-risk", True), ("compliance", False)):
            body["action"] = {"name": "model.approve", "properties": {"track": track}}
            told = evaluate(http, body)
            assert told["decision"] is expected, told
            stated = record(world, told["context"]["id"])["context"]
            assert stated["track"] == track
            assert stated["claimed"] == []
        body["action"] = {"name": "model.approve"}
        problem(http.post("/access/v1/evaluation", json=body), 400, "invalid-input")


HOLD = {"name": "dataset.hold", "properties": {"reason": "asked for"}}
ASKED = {
    "ana reads": question("northbank/ana", "dataset.read", "northbank/loans"),
    "ana holds": question("northbank/ana", "dataset.hold", "northbank/loans") | {"action": HOLD},
    "cora holds": question("northbank/cora", "dataset.hold", "northbank/loans") | {"action": HOLD},
    "ci reads": question("northbank/ci", "dataset.read", "northbank/loans"),
}
EXPECTED = {"ana reads": True, "ana holds": False, "cora holds": True, "ci reads": False}


def test_asking_about_another_is_itself_decided(world: Installation) -> None:
    about = question("northbank/ana", "dataset.read", "northbank/loans")
    # A colleague may not ask what another may do.
    with world.http("northbank/ben") as http:
        denied = evaluate(http, about)
    assert denied["decision"] is False
    asked = record(world, denied["context"]["id"])
    assert (asked["action"], asked["principal"]["id"]) == ("decision.ask-for", "northbank/ben")
    # An auditor may; the answer is as if the other had asked, with the other's permissions, and says who did.
    with world.http("northbank/uma") as http:
        told = {name: evaluate(http, body) for name, body in ASKED.items()}
    assert {name: answer["decision"] for name, answer in told.items()} == EXPECTED
    for name, answer in told.items():
        found = record(world, answer["context"]["id"])
        assert found["principal"]["id"] == ASKED[name]["subject"]["id"]
        assert found["asked_by"] == {"type": "Person", "id": "northbank/uma"}
        assert found["errors"] == []
    allowed = [r for _, r in world.entries("northbank") if r.get("action") == "decision.ask-for"]
    assert [r["decision"] for r in allowed[-len(ASKED) :]] == ["allow"] * len(ASKED)


@pytest.mark.parametrize(
    ("semantic", "asked", "answered"),
    [
        ("execute_all", "ydy", [True, False, True]),
        ("deny_on_first_deny", "ydy", [True, False]),
        ("deny_on_first_deny", "yy", [True, True]),
        ("permit_on_first_permit", "dyd", [False, True]),
        ("permit_on_first_permit", "dd", [False, False]),
    ],
)
def test_the_semantics_of_several(world: Installation, semantic: str, asked: str, answered: list[bool]) -> None:
    actions = {"y": {"action": {"name": "dataset.read"}}, "d": {"action": {"name": "dataset.delete"}}}
    body = {
        "subject": {"type": "person", "id": "northbank/ana"},
        "resource": {"type": "Dataset", "id": "northbank/loans"},
        "evaluations": [actions[letter] for letter in asked],
        "options": {"evaluations_semantic": semantic},
    }
    first = world.size("northbank")
    with world.http("northbank/ana") as http:
        told = http.post("/access/v1/evaluations", json=body).json()
    assert [item["decision"] for item in told["evaluations"]] == answered
    # What was not evaluated is not decided, nor logged.
    assert world.size("northbank") == first + len(answered)


def test_several_take_their_defaults_from_the_top(world: Installation) -> None:
    body = {
        **question("northbank/ana", "dataset.read", "northbank/loans"),
        "context": {"ticket": "top"},
        "evaluations": [{}, {"context": {"ticket": "own"}}, {"resource": {"type": "Dataset", "id": "lakeside/loans"}}],
    }
    with world.http("northbank/ana") as http:
        told = http.post("/access/v1/evaluations", json=body).json()["evaluations"]
        one = http.post("/access/v1/evaluations", json=question("northbank/ana", "dataset.read", "northbank/loans"))
    assert [item["decision"] for item in told] == [True, True, False]
    claims = [record(world, item["context"]["id"])["context"]["claimed"] for item in told]
    assert [claim[0]["value"] for claim in claims] == ["top", "own", "top"]
    # Without evaluations it is a single one.
    assert one.json()["decision"] is True


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"subject": {"type": "person", "id": "northbank/ana"}},
        {"subject": "northbank/ana", "action": {"name": "dataset.read"}, "resource": {"type": "D", "id": "n/l"}},
        question("northbank/ana", "dataset.read", "northbank/loans") | {"context": []},
        question("ana", "dataset.read", "northbank/loans"),
        question("northbank/ana", "no.such-action", "northbank/loans"),
        question("northbank/ana", "dataset.read", "NOT A REF"),
        question("northbank/ana", "dataset.read", "northbank/loans")
        | {"subject": {"type": "robot", "id": "northbank/x"}},
        {"evaluations": [{}] * 101, **question("northbank/ana", "dataset.read", "northbank/loans")},
        {
            **question("northbank/ana", "dataset.read", "northbank/loans"),
            "evaluations": [{}],
            "options": {"evaluations_semantic": "guess"},
        },
        question("northbank/ana", "dataset.read", "northbank/loans") | {"context": {f"c{n}": "x" for n in range(65)}},
        question("northbank/ana", "dataset.read", "northbank/loans") | {"context": {"c": "x" * 2000}},
    ],
)
def test_what_is_no_evaluation_is_refused_and_not_decided(world: Installation, body: dict[str, Any]) -> None:
    first = world.size("northbank")
    with world.http("northbank/ana") as http:
        told = problem_of(http.post("/access/v1/evaluations", json=body))
    assert told["code"] in {"invalid-input", "malformed-json"}
    assert world.size("northbank") == first


def problem_of(response: httpx.Response) -> dict[str, Any]:
    return problem(response, 400, response.json().get("code", ""))


@pytest.mark.parametrize("path", ["/access/v1/evaluation", "/access/v1/evaluations"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"context": ' + b'{"a":' * 8_000 + b"1" + b"}" * 8_000 + b"}",
        b"\xff\xfe",
        b'{"context": {"half a pair": "\\ud800"}}',
    ],
    ids=["empty", "cut", "list", "null", "deep", "not-utf8", "half-a-pair"],
)
def test_what_is_not_json_is_refused(world: Installation, path: str, content: bytes) -> None:
    with world.http("northbank/ana") as http:
        problem(http.post(path, content=content), 400, "malformed-json")
