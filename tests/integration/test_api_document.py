"""The API's description is valid, complete, true of what is answered, and shown without loading anything."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from service_world import Installation

from licet_engine.lifecycle.catalogue import VERBS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def document(world: Installation) -> dict[str, Any]:
    response = world.http(None).get("/schema/openapi.json")
    assert response.status_code == 200
    found: dict[str, Any] = response.json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def validate(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    Draft202012Validator({**schema, "components": document["components"]}).validate(value)


def holds(document: dict[str, Any], response: httpx.Response, path: str, status: int) -> None:
    """What was answered is what the document says is answered."""
    assert response.status_code == status, response.text
    told = document["paths"][path][response.request.method.lower()]["responses"][str(status)]["content"]
    media_type = response.headers["content-type"].partition(";")[0]
    validate(document, told[media_type]["schema"], response.json())


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(document).validate()


def test_every_route_says_what_it_takes_and_how_it_answers(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        assert ("requestBody" in operation) == (method in {"post", "put"}), path
        statuses = set(operation["responses"])
        assert statuses & {"200", "201"}, path
        if not path.startswith("/health/"):
            assert statuses >= {"429", "503"}, path
        if operation.get("security") != []:
            assert "401" in statuses, path
        for status, answer in operation["responses"].items():
            assert answer["content"], (path, status)


def test_every_verb_takes_its_own_body_and_says_whether_it_accepts_work(document: dict[str, Any]) -> None:
    for verb in VERBS.values():
        operation = document["paths"]["/v1/" + verb.action.replace(".", "/")]["post"]
        body = operation["requestBody"]["content"]["application/json"]["schema"]
        assert body["properties"]["parameters"] == {"$ref": f"#/components/schemas/{verb.action}"}
        members = document["components"]["schemas"][verb.action].get("properties", {})
        assert set(members) == set(verb.body.model_fields), verb.action
        assert ("202" in operation["responses"]) == (verb.do is not None), verb.action
        assert {"200", "400", "401", "403", "409", "413", "415"} <= set(operation["responses"])


def test_what_is_answered_is_what_the_document_says(
    document: dict[str, Any], world: Installation, trained: str
) -> None:
    ana, nobody = world.http("northbank/ana"), world.http(None)
    read = "/v1/model/read"
    asked = {"resource": trained}
    validate(document, document["paths"][read]["post"]["requestBody"]["content"]["application/json"]["schema"], asked)
    holds(document, ana.post(read, json=asked), read, 200)
    holds(document, ana.post(read, json={"resource": "lakeside/risk@1"}), read, 403)
    holds(document, ana.post(read, json={}), read, 400)
    holds(document, nobody.post(read, json=asked), read, 401)
    promote = "/v1/model/promote"
    wanted = {"resource": trained, "parameters": {"stage": "prod"}}
    holds(document, world.http("northbank/ci").post(promote, json=wanted), promote, 403)
    check = "/v1/model/check"
    accepted = world.http("northbank/mei").post(
        check, json={"resource": trained, "parameters": {"kinds": ["technical"]}}
    )
    holds(document, accepted, check, 202)
    number = accepted.json()["operation"]["id"]
    at = "/v1/operations/{tenant}/{operation}"
    holds(document, world.http("northbank/mei").get(f"/v1/operations/northbank/{number}"), at, 200)
    dry = {"action": "model.promote", **wanted}
    form = document["paths"]["/v1/ask"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    validate(document, form, dry)
    answer = ana.post("/v1/ask", json=dry)
    holds(document, answer, "/v1/ask", 200)
    decision = answer.json()["decision"]["id"]
    sam = world.http("northbank/sam")
    for path, url in (
        ("/v1/list/{tenant}/{what}", "/v1/list/northbank/models"),
        ("/v1/decisions/{tenant}/{decision}", f"/v1/decisions/northbank/{decision}"),
        ("/v1/decisions/{tenant}/{decision}/explain", f"/v1/decisions/northbank/{decision}/explain"),
        ("/v1/enforced/{tenant}", "/v1/enforced/northbank"),
        ("/v1/log/{tenant}", "/v1/log/northbank"),
        ("/v1/log/{tenant}/entries", "/v1/log/northbank/entries?count=2"),
        ("/v1/trust-root", "/v1/trust-root"),
        ("/health/live", "/health/live"),
        ("/health/ready", "/health/ready"),
        ("/.well-known/authzen-configuration", "/.well-known/authzen-configuration"),
    ):
        holds(document, sam.get(url), path, 200)


def test_the_page_shows_every_route_and_can_load_nothing(document: dict[str, Any], world: Installation) -> None:
    response = world.http(None).get("/schema")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "script-src" not in policy
    for path, method, _ in operations(document):
        assert f"{method.upper()} {path}</code>" in response.text
    assert not re.search(r"<script|<link|<img|@import|url\(|src=|https?://", response.text)
