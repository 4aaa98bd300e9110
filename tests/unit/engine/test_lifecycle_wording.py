"""What is wrong with a question is said in a sentence: the member, and what is allowed there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from licet_engine.domain.errors import InvalidInput
from licet_engine.lifecycle.asked import parse_asked
from licet_engine.lifecycle.catalogue import VERBS
from licet_engine.lifecycle.verbs import RefForm
from licet_engine.lifecycle.wording import pattern_text

REFERENCE = {
    RefForm.TENANT: "acme",
    RefForm.NAME: "acme/x",
    RefForm.BUNDLE: "acme/x",
    RefForm.VERSION: "acme/x@1",
    RefForm.NAME_OR_VERSION: "acme/x",
}
DEPLOY = {"version": "northbank/credit-risk@1"}
LAUNCH = {"dataset": "acme/hmda", "environment": "us-east", "use": "credit-risk"}


def patterns(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("pattern"), str):
            yield value["pattern"]
        for key, below in value.items():
            if key == "patternProperties":
                yield from below
            yield from patterns(below)
    elif isinstance(value, list):
        for below in value:
            yield from patterns(below)


def refused(action: str, parameters: Any, resource: Any = None) -> str:
    verb = VERBS[action]
    with pytest.raises(InvalidInput) as caught:
        parse_asked(verb, REFERENCE[verb.form] if resource is None else resource, parameters)
    return caught.value.message


def test_every_pattern_that_a_verb_uses_is_put_in_words() -> None:
    found = {pattern for verb in VERBS.values() for pattern in patterns(verb.body.model_json_schema())}
    assert found
    for pattern in found:
        assert not re.search(r"[\^$\[\]\\]", pattern_text(pattern)), pattern


@pytest.mark.parametrize(
    ("action", "parameters", "told"),
    [
        ("model.approve", {}, "model.approve: track is missing"),
        (
            "person.administer",
            {"roles": ["datascientist"]},
            "roles.0 must be one of administrator, auditor, compliance",
        ),
        ("person.administer", {"kind": "service", "roles": ["pipeline"]}, "a service account needs an owner"),
        ("person.administer", {"roles": ["pipeline"]}, "the role pipeline is for service accounts"),
        ("person.administer", {"owner": "Ana"}, "owner must be a name of 1 to 63 lower-case letters"),
        (
            "training.launch",
            {**LAUNCH, "spec": {"epoch": 3}},
            "spec.epoch is not known; spec takes seed, epochs, hidden",
        ),
        ("training.launch", {**LAUNCH, "spec": {"exclude": "black,dmi"}}, 'such as ["black","dmi"]'),
        ("training.launch", {**LAUNCH, "spec": {"hidden": 8}}, "must be a list, such as [8]"),
        (
            "training.launch",
            {**LAUNCH, "epoch": 3},
            "epoch is not known; this takes dataset, environment, use, cost, devices, ranks, spec",
        ),
        ("training.launch", {**LAUNCH, "cost": "much"}, "cost must be a whole number"),
        ("training.launch", [], "parameters must be an object"),
        (
            "endpoint.deploy",
            {**DEPLOY, "strategy": "slowly"},
            "strategy must be 'canary', 'blue-green', 'shadow' or 'direct'",
        ),
        (
            "endpoint.deploy",
            {**DEPLOY, "alarms": [{"kind": "p95"}]},
            "alarms.0 must have as 'kind' one of 'p95-latency'",
        ),
        ("endpoint.deploy", {**DEPLOY, "alarms": [{}]}, "alarms.0 lacks 'kind', which tells what it is"),
        ("endpoint.deploy", {**DEPLOY, "steps": [50, 10, 100]}, "the steps of a canary rise and end at 100"),
        ("endpoint.deploy", {**DEPLOY, "steps": [10, 10, 100]}, "the steps of a canary rise and end at 100"),
        ("endpoint.deploy", {**DEPLOY, "steps": [10]}, "the steps of a canary rise and end at 100"),
        ("endpoint.deploy", {**DEPLOY, "strategy": "shadow", "steps": [10, 100]}, "only a canary has steps"),
        ("endpoint.deploy", {"version": "credit-risk"}, "version must be a version of a model, as TENANT/NAME@VERSION"),
        ("endpoint.shift-traffic", {"weights": {"two": 100}}, "weights.two must be the number of a version, such as 2"),
        ("token.issue", {"ttl_s": 1000 * 86_400}, "ttl_s must be at most 31622400 (366d)"),
        ("tenant.request-break-glass", {"reason": "x", "duration_s": 9 * 3600}, "must be at most 14400 (4h)"),
        ("run.log", {"name": "auc", "step": 1, "value": "abc"}, "value must be a decimal number, such as 0.81"),
        (
            "model.approve",
            {"track": "legal", "reason": "x", "binding": "abc"},
            "the binding that licet model read shows",
        ),
        (
            "webhook.create",
            {"url": "https://hooks.example/x", "events": ["approval-given"]},
            "events.0 must be one of approval.requested, approval.given",
        ),
        # A dot stands for itself.
        (
            "webhook.create",
            {"url": "https://hooks.example/x", "events": ["approvalxgiven"]},
            "must be one of approval.req",
        ),
        ("webhook.create", {"url": "https://hooks.example/a b"}, "url must be an address without spaces"),
        ("webhook.create", {"url": "http://hooks.example/x"}, "url must be https"),
        ("webhook.create", {"url": "https://[::1/x"}, "url must have a valid host"),
        ("webhook.create", {"url": "https://hooks.example:0/x"}, "url must have a valid port"),
        (
            "webhook.redeliver",
            {"message": "7"},
            "message must be the ID of a message, as licet webhook history shows it",
        ),
        ("ticket.fetch", {"ticket": "../CHG"}, "ticket must be the ID of a ticket"),
        ("approval.delegate", {"track": "law", "until_ms": 1}, "track must be one of engineering, model-risk"),
        ("approval.delegate", {"track": "legal", "until_ms": -1}, "until_ms must be at least 0"),
        ("token.revoke", {"token_id": "123"}, "token_id must be an ID of 32 hexadecimal digits"),
    ],
)
def test_what_is_wrong_is_said_with_what_is_allowed(action: str, parameters: Any, told: str) -> None:
    message = refused(action, parameters)
    assert told in message
    assert message.startswith(f"{action}: ")


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_a_member_that_is_not_known_is_answered_with_those_that_are(verb: Any) -> None:
    message = refused(verb.action, {"unheard-of": 1})
    # Another member may be missing, which is said first.
    assert "unheard-of is not known; this takes" in message or message.endswith(" is missing")


def test_a_resource_that_is_missing_is_said_with_its_form() -> None:
    with pytest.raises(
        InvalidInput, match=r"model.read: resource is missing: it is text of the form TENANT/NAME@VERSION"
    ):
        parse_asked(VERBS["model.read"], None, {})
