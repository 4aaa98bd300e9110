"""``licet endpoint`` before anything is sent: alarms, weights and rows as people write them."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from licet_engine.cli import cli
from licet_engine.client import LicetClient, RequestRefused, ServerUnavailable
from licet_engine.client_serving import rows_request
from licet_engine.commands.endpoints import AlarmOption, _cause, _counted, _numbers, _request, _row


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("p95-latency=50ms", {"kind": "p95-latency", "threshold_us": 50_000}),
        ("p95-latency=800us", {"kind": "p95-latency", "threshold_us": 800}),
        ("p95-latency=1.5s", {"kind": "p95-latency", "threshold_us": 1_500_000}),
        ("error-rate=0.02", {"kind": "error-rate", "threshold_micro": 20_000}),
        ("drift=0.01", {"kind": "drift", "alpha_micro": 10_000}),
        ("confidence-shift=1", {"kind": "confidence-shift", "threshold_micro": 1_000_000}),
        ("staleness=30d", {"kind": "staleness", "max_age_s": 2_592_000}),
    ],
)
def test_an_alarm_is_written_as_people_write_it(text: str, expected: dict[str, object]) -> None:
    assert AlarmOption().convert(text, None, None) == expected


@pytest.mark.parametrize(
    "text",
    ["p95-latency=50", "error-rate=2", "error-rate=-0.1", "drift=1.5", "drift=x", "noise=1", "drift", "staleness=x"],
)
def test_an_alarm_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        AlarmOption().convert(text, None, None)


def test_weights_are_numbers_and_each_version_is_named_once() -> None:
    assert _numbers([("1", "20"), ("2", "80")], "--weight") == {"1": 20, "2": 80}
    for wrong in ([("1", "x")], [("1", "20"), ("1", "80")], [("1", "-1")]):
        with pytest.raises(click.BadParameter):
            _numbers(wrong, "--weight")


def test_a_row_on_the_command_line_becomes_a_request_of_the_protocol() -> None:
    body = rows_request([_row([("ratio", "0.33"), ("single", "yes"), ("self", "No")])])
    assert [(t["name"], t["shape"], t["data"]) for t in body["inputs"]] == [
        ("ratio", [1], [0.33]),
        ("single", [1], [1.0]),
        ("self", [1], [0.0]),
    ]
    with pytest.raises(click.BadParameter, match="neither a number nor yes or no"):
        _row([("ratio", "much")])


def test_a_request_file_must_hold_one_object(tmp_path: Path) -> None:
    path = tmp_path / "request.json"
    path.write_text(json.dumps({"inputs": []}))
    assert _request(path) == {"inputs": []}
    for wrong in ("[]", "{", '"x"'):
        path.write_text(wrong)
        with pytest.raises(click.BadParameter):
            _request(path)


@pytest.mark.parametrize("arguments", [[], ["request.json", "--row", "a=1"]])
def test_a_request_comes_from_a_file_or_from_rows_and_not_from_both(arguments: list[str]) -> None:
    ended = CliRunner().invoke(cli, ["endpoint", "invoke", "northbank/credit", *arguments])
    assert ended.exit_code == 2
    assert "not both" in ended.output


def test_steps_that_are_no_percentages_are_refused_before_anything_is_sent() -> None:
    arguments = ["endpoint", "deploy", "northbank/credit", "--version", "northbank/m@1", "--steps", "10;100"]
    ended = CliRunner().invoke(cli, arguments)
    assert ended.exit_code == 2
    assert "10,50,100" in ended.output


@pytest.mark.parametrize("weight", ["x=100", "0=100", "2=many"])
def test_weights_of_what_is_no_version_are_refused_before_anything_is_sent(weight: str) -> None:
    ended = CliRunner().invoke(cli, ["endpoint", "shift", "northbank/credit", "--weight", weight])
    assert ended.exit_code == 2
    assert "--weight" in ended.output


@pytest.mark.parametrize("name", ["northbank", "northbank/", "northbank/credit/infer"])
def test_what_names_no_endpoint_is_refused_before_anything_is_sent(name: str) -> None:
    with LicetClient("http://127.0.0.1:1", "licet_x") as client, pytest.raises(RequestRefused, match="TENANT/ENDPOINT"):
        client.endpoint.invoke(name, {"inputs": []})


def test_a_router_that_does_not_answer_is_named_and_not_the_api() -> None:
    router = "http://127.0.0.1:2"
    client = LicetClient("http://127.0.0.1:1", "licet_x", attempts=1, serving_url=router)
    with client, pytest.raises(ServerUnavailable, match=router):
        client.endpoint.invoke("northbank/credit", {"inputs": []})


@pytest.mark.parametrize(
    ("cause", "told"),
    [
        (
            {"kind": "p95-latency", "value": 61_500, "threshold": 50_000, "window_s": 10, "count": 60},
            "alarm p95-latency: 61.5 ms, above 50 ms (on 60 in 10 s)",
        ),
        (
            {"kind": "error-rate", "value": 250_000, "threshold": 20_000, "window_s": 10, "count": 60},
            "alarm error-rate: 0.25, above 0.02 (on 60 in 10 s)",
        ),
        (
            {"kind": "drift", "value": 1, "threshold": 0, "window_s": 10, "count": 60, "detail": "features drifted: a"},
            "alarm drift: features drifted: a (on 60 in 10 s)",
        ),
        (
            {"kind": "staleness", "value": 90, "threshold": 60, "window_s": 0, "count": 1},
            "alarm staleness: the newest data is 90 s old, above 60 s",
        ),
        ({"by": "ci", "reason": "complaints"}, "by ci: complaints"),
        ({"by": "ci", "reason": ""}, "by ci"),
        ({"code": "input.plan", "message": "it does not fit"}, "it does not fit"),
        ({"more": 1}, '{"more": 1}'),
    ],
)
def test_why_a_deployment_ended_is_said_in_words(cause: dict[str, object], told: str) -> None:
    assert _cause(cause) == told


def test_numbers_that_a_router_left_unknown_are_not_called_lost_requests() -> None:
    assert _counted(20, 0) == "20 in the log"
    assert _counted(20_020, 20_000).startswith("20 in the log; 20000 numbers unknown, used or not")
