"""The client against a real HTTP server that misbehaves as it is told."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING, Any

import pytest

from licet_engine import client as client_module
from licet_engine.client import (
    Denied,
    LicetClient,
    LicetClientError,
    NotAuthenticated,
    Operation,
    OperationFailed,
    RequestRefused,
    ServerFault,
    ServerUnavailable,
    StateConflict,
    StillRunning,
)
from licet_engine.lifecycle.catalogue import VERBS

if TYPE_CHECKING:
    from pathlib import Path

OPERATION = {"id": "0" * 32, "tenant": "northbank", "state": "accepted"}


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(client_module, "_LONGEST_PAUSE_S", 0.002)
    monkeypatch.setattr(client_module, "_FIRST_POLL_S", 0.001)


@pytest.fixture
def licet(script: Any) -> Any:
    with LicetClient(script.url, "licet_secret", timeout_s=5) as client:
        yield client


def test_an_allow_carries_its_decision_and_operation(licet: LicetClient, script: Any, world: Any) -> None:
    script.answer(202, {"decision": world.allow, "result": {"x": 1}, "operation": OPERATION})
    answer = licet.model.promote("northbank/credit-risk@2", stage="prod", reason="go")
    assert answer.allowed
    assert answer.decision_id == "a" * 32
    assert answer.operation is not None
    assert answer.operation.ref == "northbank/" + "0" * 32
    assert answer.require() is answer
    sent = script.asked[0]
    assert (sent.method, sent.path) == ("POST", "/v1/model/promote")
    assert sent.json == {"resource": "northbank/credit-risk@2", "parameters": {"stage": "prod", "reason": "go"}}
    assert sent.headers["Authorization"] == "Bearer licet_secret"


def test_a_denial_is_a_value_and_not_an_exception(licet: LicetClient, script: Any, world: Any) -> None:
    denial = world.deny(world.policy("guardrail.residency.training", "region:allowed"))
    script.problem(403, "denied", "policy denies this", decision=denial)
    answer = licet.training.launch("northbank/run-1", dataset="northbank/hmda", environment="eu", use="credit-risk")
    assert not answer.allowed
    assert answer.policies[0].requires == ("region:allowed",)
    with pytest.raises(Denied) as caught:
        answer.require()
    assert caught.value.answer is answer


def test_asking_gives_a_denial_with_status_200(licet: LicetClient, script: Any, world: Any) -> None:
    script.answer(200, {"decision": world.deny(world.policy("p", "approval:model-risk"))})
    answer = licet.ask("model.promote", "northbank/m@1", {"stage": "prod"}, claimed={"ticket": "T-1"})
    assert not answer.allowed
    assert answer.missing_approvals == ("model-risk",)
    assert script.asked[0].json["claimed"] == {"ticket": "T-1"}


@pytest.mark.parametrize(
    ("path", "pending"),
    [
        ({"possible": True, "steps": [{"name": "approval:legal"}, {"name": "approval:security"}]}, True),
        ({"possible": True, "steps": [{"name": "approval:legal"}, {"name": "check:bias"}]}, False),
        ({"possible": True, "steps": [{"describe": "approval:legal"}]}, False),
        ({"possible": True, "steps": []}, False),
        ({"possible": False, "steps": [{"name": "approval:legal"}]}, False),
        ({}, False),
        (None, False),
    ],
)
def test_approval_is_pending_only_where_approvals_alone_would_do(
    licet: LicetClient, script: Any, world: Any, *, path: Any, pending: bool
) -> None:
    script.answer(200, {"decision": world.deny(world.policy("p", "approval:legal"))})
    script.answer(200, {"record": {}, "explanation": {}, "path": path})
    explanation = licet.explain(licet.ask("model.promote", "northbank/m@1"))
    assert explanation is not None
    assert explanation.is_approval_pending is pending


def test_what_was_not_explained_at_all_is_not_asked_about(licet: LicetClient, script: Any) -> None:
    script.answer(200, {"decision": {"id": "x", "decision": "deny"}})
    assert licet.explain(licet.ask("model.promote", "lakeside/m@1")) is None
    assert len(script.asked) == 1


def test_a_lost_connection_and_503_are_retried_with_the_same_idempotency_key(
    licet: LicetClient, script: Any, world: Any
) -> None:
    script.hang_up()
    script.problem(503, "busy", "try later")
    script.hang_up()
    script.answer(200, {"decision": world.allow, "result": {}, "operation": None})
    assert licet.dataset.archive("northbank/hmda").allowed
    keys = [asked.headers["Idempotency-Key"] for asked in script.asked]
    assert len(keys) == 4
    assert len(set(keys)) == 1
    assert 0 < len(keys[0]) <= 64


def test_each_call_has_a_key_of_its_own(licet: LicetClient, script: Any, world: Any) -> None:
    for _ in range(2):
        script.answer(200, {"decision": world.allow, "result": {}, "operation": None})
        licet.dataset.archive("northbank/hmda")
    assert script.asked[0].headers["Idempotency-Key"] != script.asked[1].headers["Idempotency-Key"]


def test_a_server_that_never_answers_is_unavailable_and_the_key_is_told(licet: LicetClient, script: Any) -> None:
    with pytest.raises(ServerUnavailable) as caught:
        licet.dataset.archive("northbank/hmda", idempotency_key="mine")
    assert caught.value.idempotency_key == "mine"
    assert len(script.asked) == client_module.DEFAULT_ATTEMPTS
    assert {asked.headers["Idempotency-Key"] for asked in script.asked} == {"mine"}


def test_a_lasting_503_keeps_the_servers_code(licet: LicetClient, script: Any) -> None:
    for _ in range(client_module.DEFAULT_ATTEMPTS):
        script.problem(503, "log-unavailable", "the log cannot be written")
    with pytest.raises(ServerUnavailable, match="the log cannot be written") as caught:
        licet.dataset.archive("northbank/hmda")
    assert caught.value.code == "log-unavailable"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, RequestRefused),
        (401, NotAuthenticated),
        (404, RequestRefused),
        (409, StateConflict),
        (413, RequestRefused),
        (500, ServerFault),
    ],
)
def test_errors_are_exceptions_by_the_callers_reaction_and_are_not_retried(
    licet: LicetClient, script: Any, status: int, kind: type[LicetClientError]
) -> None:
    script.problem(status, "some-code", "what is wrong, and what to do")
    with pytest.raises(kind, match="what is wrong, and what to do") as caught:
        licet.dataset.archive("northbank/hmda")
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.status) == ("some-code", status)
    assert len(script.asked) == 1


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"decision": {}}', b'{"decision": null}'])
def test_what_is_no_answer_of_licet_is_a_fault_and_never_a_yes(licet: LicetClient, script: Any, body: bytes) -> None:
    script.answer(200, body)
    with pytest.raises(ServerFault):
        licet.dataset.archive("northbank/hmda")


@pytest.mark.parametrize("word", ["deny", "maybe", ""])
def test_only_the_word_allow_allows(licet: LicetClient, script: Any, word: str) -> None:
    script.answer(200, {"decision": {"id": "x", "decision": word}})
    assert not licet.ask("model.promote", "northbank/m@1").allowed


def test_a_success_that_says_deny_is_a_fault(licet: LicetClient, script: Any, world: Any) -> None:
    script.answer(200, {"decision": world.deny(), "result": {}, "operation": None})
    with pytest.raises(ServerFault, match="contradict"):
        licet.dataset.archive("northbank/hmda")


def test_a_redirect_is_not_followed_so_the_token_stays_where_it_belongs(licet: LicetClient, script: Any) -> None:
    script.answer(307, {}, Location=f"{script.url}/elsewhere")
    with pytest.raises(ServerFault):
        licet.dataset.archive("northbank/hmda")
    assert len(script.asked) == 1


@pytest.mark.parametrize(
    "url", ["ftp://host", "host:8000", "http://licet.example", "http://user@127.0.0.1", "https://"]
)
def test_a_url_that_would_leak_the_token_or_is_none_is_refused(url: str) -> None:
    with pytest.raises(RequestRefused):
        LicetClient(url, "licet_secret")


def test_plain_http_elsewhere_needs_a_word_and_warns() -> None:
    with pytest.warns(UserWarning, match="unencrypted"):
        LicetClient("http://licet.example", "t", unsafe_plain_http=True).close()


def test_a_token_with_a_line_break_is_refused_without_being_shown() -> None:
    with pytest.raises(RequestRefused) as caught:
        LicetClient("https://licet.example", "secret\r\nX-Evil: 1")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("action", ["promote", "model.promote/../x", "Model.Promote", ""])
def test_what_is_no_action_is_never_sent(licet: LicetClient, script: Any, action: str) -> None:
    with pytest.raises(RequestRefused):
        licet.act(action, "northbank/m@1")
    assert not script.asked


def test_a_name_with_a_slash_cannot_reach_another_path(licet: LicetClient, script: Any) -> None:
    script.answer(200, {"items": []})
    assert licet.list("../x", "datasets") == []
    assert script.asked[0].path == "/v1/list/..%2Fx/datasets?limit=50"
    with pytest.raises(RequestRefused):
        licet.operation("..", "0")


# --- operations ---------------------------------------------------------------------------------------------------------


def test_waiting_reports_each_change_once_and_gives_the_end_back(licet: LicetClient, script: Any) -> None:
    states: list[dict[str, Any]] = [
        {"state": "accepted"},
        {"state": "running", "attempt": 1, "progress": {"epoch": 1}},
        {"state": "running", "attempt": 1, "progress": {"epoch": 1}},
        {"state": "running", "attempt": 2, "progress": {"epoch": 1}},
        {"state": "done", "attempt": 2, "result": {"auc_micro": 700000}},
    ]
    for state in states:
        script.answer(200, {**OPERATION, **state})
    seen: list[Operation] = []
    ended = licet.wait("northbank/" + "0" * 32, on_progress=seen.append)
    assert ended.is_done
    assert ended.require().result == {"auc_micro": 700000}
    assert [(o.state, o.attempt) for o in seen] == [("accepted", 0), ("running", 1), ("running", 2), ("done", 2)]


def test_waiting_outlives_a_restart_of_the_server(licet: LicetClient, script: Any) -> None:
    script.hang_up()
    script.problem(503, "starting", "not yet")
    script.answer(200, {**OPERATION, "state": "done"})
    assert licet.wait(Operation.from_json(OPERATION)).is_done


@pytest.mark.parametrize("state", ["failed", "refused"])
def test_an_operation_that_was_not_done_raises_only_on_require(licet: LicetClient, script: Any, state: str) -> None:
    script.answer(200, {**OPERATION, "state": state, "error": {"code": "pickle", "message": "a pickle"}})
    ended = licet.wait(Operation.from_json(OPERATION))
    assert ended.state == state
    with pytest.raises(OperationFailed, match="a pickle") as caught:
        ended.require()
    assert caught.value.code == "pickle"


def test_waiting_ends_in_time_and_says_that_the_operation_goes_on(licet: LicetClient, script: Any) -> None:
    script.answer(200, {**OPERATION, "state": "running"})
    with pytest.raises(StillRunning, match="goes on"):
        licet.wait(Operation.from_json(OPERATION), timeout_s=0)


def test_an_operation_that_may_not_be_read_is_denied(licet: LicetClient, script: Any) -> None:
    script.problem(403, "denied", "no", decision={"id": "x", "decision": "deny"})
    with pytest.raises(Denied):
        licet.operation("northbank", "0" * 32)


def test_an_artifact_is_fetched_whole_after_a_break(licet: LicetClient, script: Any) -> None:
    script.hang_up()
    script.answer(200, b"the bytes", Content_Type="application/zip")
    target = io.BytesIO(b"left by an earlier try, and longer")
    digest_hex = licet.fetch_artifact(Operation.from_json(OPERATION), target)
    assert target.getvalue() == b"the bytes"
    assert digest_hex == hashlib.sha256(b"the bytes").hexdigest()


# --- uploads ------------------------------------------------------------------------------------------------------------


def test_registering_uploads_first_and_names_the_upload(
    licet: LicetClient, script: Any, world: Any, tmp_path: Path
) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(b"a,b\n1,2\n")
    digest_hex = hashlib.sha256(b"a,b\n1,2\n").hexdigest()
    script.hang_up()
    script.answer(201, {"upload": "e" * 32, "digest_hex": digest_hex, "size_bytes": 8})
    script.answer(202, {"decision": world.allow, "result": {}, "operation": OPERATION})
    answer = licet.dataset.register(
        "northbank/hmda",
        file,
        classification="confidential",
        residency=["us"],
        uses=["credit-risk"],
        expires_at_ms=1,
        label="deny",
        protected=["black"],
    )
    assert answer.allowed
    first, second, third = script.asked
    assert first.body == second.body == b"a,b\n1,2\n"
    assert (second.method, second.path, second.headers["Content-Length"]) == ("PUT", "/v1/uploads", "8")
    assert third.json["parameters"] == {
        "upload": "e" * 32,
        "digest_hex": digest_hex,
        "size_bytes": 8,
        "classification": "confidential",
        "protected": ["black"],
        "residency": ["us"],
        "uses": ["credit-risk"],
        "expires_at_ms": 1,
        "label": "deny",
    }


def test_an_upload_that_arrived_otherwise_is_not_used(licet: LicetClient, script: Any, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(b"a\n1\n")
    script.answer(201, {"upload": "e" * 32, "digest_hex": "0" * 64, "size_bytes": 4})
    with pytest.raises(ServerFault, match="not what was sent"):
        licet.upload(file)


# --- completeness -------------------------------------------------------------------------------------------------------


def test_every_verb_of_the_engine_has_a_method_of_the_client(script: Any) -> None:
    """A verb that is only in the engine's catalogue would be out of a pipeline's reach."""
    looked_up = {
        *("log.read", "decision.read", "decision.explain", "operation.read"),
        *("catalogue.read", "decision.ask-for"),
    }
    with LicetClient(script.url, "t") as client:
        for action in sorted(set(VERBS) - looked_up):
            noun, _, verb = action.partition(".")
            method = getattr(getattr(client, noun), verb.replace("-", "_"))
            assert callable(method), action
