"""The router with real replicas, a real signer and log: who may, what is counted, how traffic moves, what ends it."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from licet_adapters.conformance.deployments import ENDPOINT, NEVER
from licet_adapters.conformance.routing import ServingWorld, body, eventually, serving_world
from licet_adapters.conformance.tabular import write_input
from licet_adapters.conformance.world import FOREIGN_TENANT, TENANT
from licet_adapters.effects import Effect
from licet_adapters.errors import Conflict, InputRefused, JobFailed, NotFound, Unavailable, WarrantRefused
from licet_adapters.serving import http as serving_http
from licet_adapters.serving.state import EndpointStore
from licet_attestations import dsse, statement

if TYPE_CHECKING:
    from collections.abc import Iterator

    from licet_adapters.ports import DeploymentJob

FIRST = f"{TENANT}/credit-risk@1"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[ServingWorld]:
    with serving_world(tmp_path) as made:
        yield made


class Load:
    """Callers who ask again and again, on connections of their own."""

    def __init__(self, world: ServingWorld, callers: int = 3, **asked: Any) -> None:
        self.statuses: Counter[int] = Counter()
        self.versions: list[str] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(world, asked)) for _ in range(callers)]
        for thread in self._threads:
            thread.start()

    def _ask(self, world: ServingWorld, asked: dict[str, Any]) -> None:
        caller = world.caller()
        while not self._over.is_set():
            status, _, headers = caller.infer(body(**asked))
            self.statuses[status] += 1
            self.versions.append(headers.get("licet-version", ""))
        caller.close()

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


# --- answers -----------------------------------------------------------------------------------------------------------


def test_an_admitted_request_is_answered_counted_and_told(world: ServingWorld) -> None:
    outcome = world.deploy(1)
    assert (dict(outcome.weights), outcome.shadow, dict(outcome.replicas)) == ({"1": 100}, "", {"1": 1})
    caller = world.caller()
    answers = [caller.infer() for _ in range(5)]
    assert {status for status, _, _ in answers} == {200}
    assert [headers["licet-invocation"] for _, _, headers in answers] == ["1", "2", "3", "4", "5"]
    assert {headers["licet-version"] for _, _, headers in answers} == {"1"}
    _, told, headers = answers[0]
    assert (told["model_name"], told["model_version"]) == (ENDPOINT, "1")
    assert told["outputs"][0]["data"][0] == pytest.approx(0.8175744)
    assert world.door.asked == 1
    eventually(lambda: world.door.told(ENDPOINT) == ({"ok": 5}, 0), "five invocations are told")
    group = world.door.batches[ENDPOINT][0]["groups"][0]
    assert group["session"] == headers["licet-session"]


def test_the_protocols_other_routes_answer(world: ServingWorld) -> None:
    nobody = world.caller("")
    assert nobody.ask("GET", "/v2/health/live")[:2] == (200, {"live": True})
    assert nobody.ask("GET", "/v2/health/ready")[:2] == (200, {"ready": True})
    assert nobody.ask("GET", "/v2")[1]["name"] == "licet"
    world.deploy(1)
    caller = world.caller()
    status, told, _ = caller.ask("GET", f"/v2/models/{ENDPOINT}")
    assert (status, told["name"], told["versions"]) == (200, ENDPOINT, ["1"])
    assert [one["name"] for one in told["inputs"]] == ["income", "ratio"]
    assert caller.ask("GET", f"/v2/models/{ENDPOINT}/versions/1/ready")[:2] == (200, {"name": ENDPOINT, "ready": True})
    assert caller.infer(path=f"/v2/models/{ENDPOINT.replace('/', '.')}/versions/1/infer")[0] == 200
    for method, path, status in (
        ("GET", f"/v2/models/{ENDPOINT}/infer", 405),
        ("POST", f"/v2/models/{ENDPOINT}/ready", 405),
        ("POST", f"/v2/models/{ENDPOINT}/versions/7/infer", 404),
        ("POST", f"/v2/models/{ENDPOINT}/versions/x/infer", 404),
        ("GET", "/v2/models/x", 400),
        ("GET", "/v1", 404),
    ):
        assert caller.ask(method, path, body())[0] == status, path
    assert caller.ask("GET", f"/v2/models/{ENDPOINT}/infer")[2]["allow"] == "POST"


def test_without_a_token_that_counts_nothing_is_told(world: ServingWorld) -> None:
    world.deploy(1)
    for token in ("", "nobody's", "x" * 5000):
        status, told, headers = world.caller(token).infer()
        assert (status, told["code"], headers["www-authenticate"]) == (401, "unauthenticated", "Bearer")


def test_forbidden_foreign_and_unknown_endpoints_cannot_be_told_apart(world: ServingWorld) -> None:
    world.deploy(1)
    token = world.door.allow(f"{TENANT}/other")
    caller = world.caller(token)
    answers = []
    for endpoint in (ENDPOINT, f"{FOREIGN_TENANT}/credit", f"{TENANT}/nowhere", "nobody/nothing"):
        status, told, headers = caller.infer(path=f"/v2/models/{endpoint}/infer")
        assert len(told.pop("decision")["id"]) == 32
        answers.append((status, told, sorted(headers)))
    assert answers[0][0] == 403
    assert all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize("name", [f"{TENANT}/credit-", f"{TENANT}/Credit", f"{TENANT}/a/b", f"{TENANT}/{'c' * 64}"])
def test_a_name_that_can_be_no_endpoint_is_refused_with_the_reason_once_it_is_known_who_calls(
    world: ServingWorld, name: str
) -> None:
    status, told, _ = world.caller().infer(path=f"/v2/models/{name}/infer")
    assert (status, told["code"]) == (400, "invalid-input")
    assert repr(name) in told["detail"]
    assert "TENANT/NAME" in told["detail"]
    assert world.caller("nobody's").infer(path=f"/v2/models/{name}/infer")[0] == 401


def test_a_no_is_asked_for_once_a_second_however_often_it_is_hammered_at(world: ServingWorld) -> None:
    world.deploy(1)
    caller = world.caller(world.door.allow(f"{TENANT}/other"))
    assert {caller.infer()[0] for _ in range(50)} == {403}
    assert world.door.asked == 1
    world.world.now_ms += 1001
    caller.infer()
    assert world.door.asked == 2


def test_a_token_that_is_nobodys_is_asked_about_once_a_second_whatever_it_asks_for(world: ServingWorld) -> None:
    world.deploy(1)
    caller = world.caller("made-up")
    paths = [
        f"/v2/models/{tenant}/{name}/infer" for tenant in (TENANT, FOREIGN_TENANT) for name in ("credit", "x", "y")
    ]
    assert {caller.infer(path=path)[0] for path in paths} == {401}
    assert world.door.asked == 1


def test_whoever_makes_tokens_up_keeps_nobody_waiting_who_was_here(
    world: ServingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.deploy(1)
    token = world.door.allow(ENDPOINT)
    caller = world.caller(token)
    assert caller.infer()[0] == 200
    known, call, over = hashlib.sha256(token.encode()).hexdigest(), world.door.call, threading.Event()

    def slowly(method: str, **params: Any) -> Any:
        if method == "session" and params["token_hash_hex"] != known:
            over.wait(20)
        return call(method, **params)

    monkeypatch.setattr(world.door, "call", slowly)
    statuses: list[int] = []
    strangers = [
        threading.Thread(target=lambda n=n: statuses.append(world.caller(f"made-up-{n}").infer()[0]))
        for n in range(100)
    ]
    for stranger in strangers:
        stranger.start()
    # As many as may wait for an answer; the others are told at once to come again.
    eventually(lambda: len(statuses) == 36, "the rest is turned away")  # A hundred, less 64.
    assert set(statuses) == {503}
    world.world.now_ms += 61_000
    began_s = time.monotonic()
    assert caller.infer()[0] == 200
    assert time.monotonic() - began_s < 5
    over.set()
    for stranger in strangers:
        stranger.join()
    assert statuses.count(401) == 64


def test_a_renewal_that_fails_is_tried_again_after_a_pause_however_many_ask(world: ServingWorld) -> None:
    world.deploy(1)
    caller = world.caller()
    assert caller.infer()[0] == 200
    world.world.now_ms += 50_000
    world.door.is_away = True
    tried: list[str] = []
    call = world.door.call

    def counted(method: str, **params: Any) -> Any:
        if method == "session":
            tried.append(method)
        return call(method, **params)

    world.door.call = counted  # type: ignore[method-assign]  # Watched, and otherwise as it is.
    assert {caller.infer()[0] for _ in range(100)} == {200}
    assert len(tried) == 1
    world.world.now_ms += 1_001
    caller.infer()
    eventually(lambda: len(tried) == 2, "it is tried again")


def test_a_session_ends_after_sixty_seconds_and_another_is_decided_anew(world: ServingWorld) -> None:
    world.deploy(1)
    token = world.door.allow(ENDPOINT)
    caller = world.caller(token)
    first = caller.infer()[2]["licet-session"]
    world.world.now_ms += 59_000
    assert caller.infer()[2]["licet-session"] == first
    # It was renewed in the background meanwhile, by another decision.
    eventually(lambda: caller.infer()[2]["licet-session"] != first, "the session is renewed")
    world.door.allowed.clear()
    world.world.now_ms += 46_000
    assert caller.infer()[0] == 200
    eventually(lambda: caller.infer()[0] == 403, "a no at its renewal ends it before its time")


def test_without_the_api_no_session_is_opened_and_those_that_are_go_on(world: ServingWorld) -> None:
    world.deploy(1)
    caller, late = world.caller(), world.caller()
    assert caller.infer()[0] == 200
    world.door.is_away = True
    status, told, headers = late.infer()
    assert (status, told["code"], headers["retry-after"]) == (503, "unavailable", "1")
    assert caller.infer()[0] == 200
    world.door.is_away = False
    assert late.infer()[0] == 200
    eventually(lambda: world.door.told(ENDPOINT) == ({"ok": 3}, 0), "what could not be told is told later")


def test_malformed_tensors_are_the_callers_fault_and_harm_nobody(world: ServingWorld) -> None:
    world.deploy(1)
    caller = world.caller()
    odd = json.loads(body())
    odd["inputs"][1]["shape"] = [3]
    for data, why in (
        (b"{", "not an inference request"),
        (json.dumps(odd).encode(), "same rows"),
        (body(ratio=float("nan")), "not an inference request"),
    ):
        status, told, headers = caller.infer(data)
        assert (status, told["code"]) == (400, "invalid-input")
        assert why in told["detail"]
        assert told["error"] == told["detail"]
        assert headers["licet-invocation"]
    assert caller.infer()[0] == 200
    assert world.figures()["versions"]["1"]["latency"]["client_error"] == 3


def test_a_body_beyond_the_limit_is_refused_before_and_while_it_is_sent(world: ServingWorld) -> None:
    world.deploy(1, max_request_bytes=1000)
    caller = world.caller()
    status, told, _ = caller.infer(b"x" * 1001)
    assert (status, told["code"]) == (413, "too-large")
    assert caller.infer()[0] == 200  # On the same connection.
    chunks = iter([b"x" * 600, b"x" * 600])
    status, told, _ = caller.ask("POST", f"/v2/models/{ENDPOINT}/infer", chunks)  # type: ignore[arg-type]  # Sent in chunks.
    assert (status, told["code"]) == (413, "too-large")
    assert caller.infer()[0] == 200


@pytest.mark.parametrize(
    ("header", "value", "why"),
    [
        ("Content-Type", "text/csv", "'text/csv'"),
        ("Content-Type", "application/x-www-form-urlencoded", "must be application/json"),
        ("Content-Encoding", "gzip", "without a Content-Encoding"),
        ("Inference-Header-Content-Length", "12", "not as binary data"),
    ],
)
def test_a_body_that_says_it_is_no_json_is_not_read_as_json(
    world: ServingWorld, header: str, value: str, why: str
) -> None:
    world.deploy(1)
    caller = world.caller()
    path = f"/v2/models/{ENDPOINT}/infer"
    status, told, headers = caller.ask("POST", path, body(), {header: value})
    assert (status, told["code"], told["title"]) == (415, "unsupported-media-type", "Unsupported media type")
    assert why in told["detail"]
    assert "licet-invocation" not in headers
    assert caller.ask("POST", path, body(), {"Content-Type": "Application/JSON; charset=utf-8"})[0] == 200
    assert world.caller("nobody's").ask("POST", path, body(), {header: value})[0] == 401


def raw(world: ServingWorld, data: bytes, *, one: bool = True) -> bytes:
    """What the router says to these bytes: one answer, or all until it closes."""
    with socket.create_connection(world.running.address, timeout=20) as connection:
        connection.sendall(data)
        said = b""
        try:
            while part := connection.recv(65536):
                said += part
                if one and said.endswith((b"}", b"Continue\r\n\r\n")):
                    return said
        except ConnectionResetError:
            pass
        return said


def test_what_is_not_http_is_answered_and_closed(world: ServingWorld) -> None:
    for data, status in (
        (b"\x16\x03\x01 this is TLS\r\n\r\n", b"400"),
        (b"GET /v2/health/live HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", b"431"),
        (b"GET /v2/health/live HTTP/1.1\r\na: " + b"b" * 20_000 + b"\r\n\r\n", b"431"),
        (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n\r\n", b"400"),
        (b"POST /v2 HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n", b"400"),
        (b"GET /v2 HTTP/1.1\r\nauthorization: Bearer a\r\nauthorization: Bearer b\r\n\r\n", b"400"),
    ):
        assert raw(world, data).startswith(b"HTTP/1.1 " + status), data[:60]
    assert world.caller("").ask("GET", "/v2/health/live")[0] == 200


def endless(world: ServingWorld, begin: bytes, more: bytes, seconds: float = 8.0) -> int:
    """Send ``begin`` and then ``more`` again and again; how many bytes were taken until the router hung up."""
    with socket.create_connection(world.running.address, timeout=1.0) as connection:
        connection.sendall(begin)
        sent, until_s = 0, time.monotonic() + seconds
        while time.monotonic() < until_s:
            try:
                sent += connection.send(more)
            except TimeoutError:
                return sent  # It reads no more.
            except OSError:
                return sent
        raise AssertionError(f"{sent} bytes were taken in {seconds} s, and no end")


@pytest.mark.parametrize("trailer", [b"0\r\nX-A: ", b"1\r\n{\r\n0\r\nX-A: "])
def test_trailers_without_end_are_hung_up_on_whoever_sends_them(world: ServingWorld, trailer: bytes) -> None:
    world.deploy(1)
    head = f"POST /v2/models/{ENDPOINT}/infer HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"
    known = f"authorization: Bearer {world.door.allow(ENDPOINT)}\r\n"
    for who in ("", known):
        # What lies in buffers between the two counts as taken here.
        assert endless(world, f"{head}{who}\r\n".encode() + trailer, b"a" * 65_536) < 16 << 20
    assert world.caller().infer()[0] == 200


def test_a_body_in_the_smallest_of_chunks_is_taken(world: ServingWorld) -> None:
    world.deploy(1)
    chunks = (bytes([one]) for one in body() + b" " * 20_000)
    assert world.caller().ask("POST", f"/v2/models/{ENDPOINT}/infer", chunks)[0] == 200  # type: ignore[arg-type]  # Sent in chunks.


def test_more_than_any_endpoint_takes_is_refused_by_what_is_announced(world: ServingWorld) -> None:
    world.deploy(1)
    head = f"POST /v2/models/{ENDPOINT}/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {(64 << 20) + 1}\r\n\r\n"
    assert raw(world, head.encode(), one=False).startswith(b"HTTP/1.1 413")


def test_a_body_waits_outside_while_it_is_not_known_who_sends_it_whatever_is_answered_before_it(
    world: ServingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.deploy(1)
    call, waiting = world.door.call, threading.Event()

    def slowly(method: str, **params: Any) -> Any:
        # The second token is looked up for as long as it takes.
        if method == "session" and params["token_hash_hex"] == hashlib.sha256(b"second").hexdigest():
            waiting.set()
            time.sleep(6)
        return call(method, **params)

    monkeypatch.setattr(world.door, "call", slowly)

    def request(token: str, length: int) -> bytes:
        return (
            f"POST /v2/models/{ENDPOINT}/infer HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n"
            f"content-length: {length}\r\n\r\n"
        ).encode()

    begin = request("first", 1) + b"{" + request("second", 60 << 20)
    assert endless(world, begin, b"a" * 65_536, seconds=5.0) < 16 << 20
    assert waiting.is_set()


def test_requests_that_are_sent_at_once_are_answered_in_their_order(world: ServingWorld) -> None:
    world.deploy(1)
    token = world.door.allow(ENDPOINT)
    data = body()
    head = f"POST /v2/models/{ENDPOINT}/infer HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-length: {len(data)}\r\n\r\n"
    live = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    said = raw(world, (head.encode() + data) * 3 + live, one=False)
    at = [said.index(f"licet-invocation: {number}\r\n".encode()) for number in (1, 2, 3)]
    assert at == sorted(at)
    assert said.index(b'{"live":true}') > at[2]


def test_a_body_is_asked_for_only_after_its_sender_was_admitted(world: ServingWorld) -> None:
    world.deploy(1)
    head = f"POST /v2/models/{ENDPOINT}/infer HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 200\r\n"
    admitted = f"{head}authorization: Bearer {world.door.allow(ENDPOINT)}\r\n\r\n".encode()
    assert raw(world, admitted).startswith(b"HTTP/1.1 100 Continue")
    assert raw(world, f"{head}\r\n".encode()).startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize("moved", ["shifted", "retired", "smaller"])
def test_a_body_that_arrives_after_traffic_moved_is_answered_as_things_stand(world: ServingWorld, moved: str) -> None:
    world.deploy(1)
    data = body(rows=50)
    head = f"POST /v2/models/{ENDPOINT}/infer HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {len(data)}\r\n"
    with socket.create_connection(world.running.address, timeout=8) as connection:
        connection.sendall(f"{head}authorization: Bearer {world.door.allow(ENDPOINT)}\r\n\r\n".encode())
        assert connection.recv(1024).startswith(b"HTTP/1.1 100")
        connection.sendall(data[:10])
        if moved == "retired":
            world.retire()
        else:
            world.deploy(2, max_request_bytes=256 if moved == "smaller" else 65_536)
            eventually(lambda: world.figures()["weights"] == {"2": 100}, "version 2 has the traffic")
            eventually(lambda: "1" not in world.figures()["versions"], "version 1 is gone")
        connection.sendall(data[10:])
        said = connection.recv(65_536)
    expected = {"shifted": b"HTTP/1.1 200", "retired": b"HTTP/1.1 404", "smaller": b"HTTP/1.1 413"}
    assert said.startswith(expected[moved]), said
    assert (b"licet-version: 2" in said) == (moved == "shifted")


def test_a_return_is_told_only_once_it_is_on_the_disk(world: ServingWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world.deploy(1)
    world.deploy(2, strategy="canary", steps=[50, 100], bake_s=3600, fallback=FIRST, alarms=[TIGHT])
    eventually(lambda: len(world.door.kinds(ENDPOINT)) == 3, "what went before is told")  # Two steps, one end.
    save, has_room = EndpointStore.save, threading.Event()

    def full(store: EndpointStore, endpoint: str, data: bytes) -> None:
        if not has_room.is_set() and b'"rolled-back"' in data:
            raise Unavailable("the disk is full")
        save(store, endpoint, data)

    monkeypatch.setattr(EndpointStore, "save", full)
    load = Load(world)
    eventually(lambda: world.figures()["weights"] == {"1": 100}, "traffic returns at once")
    load.end()
    time.sleep(1)
    assert world.figures()["untold_events"] == 1
    assert "rolled-back" not in world.door.kinds(ENDPOINT)
    has_room.set()
    eventually(lambda: world.door.kinds(ENDPOINT)[-1] == "rolled-back", "it is told once the disk takes it")


def test_a_return_within_another_change_is_told_only_once_it_is_on_the_disk_itself(
    world: ServingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.deploy(1)
    world.deploy(2, strategy="canary", steps=[50, 100], bake_s=3600, fallback=FIRST, alarms=[TIGHT])
    eventually(lambda: world.figures()["untold_events"] == 0, "what went before is told")
    told = len(world.door.events[ENDPOINT])
    save, writing, written, has_room = EndpointStore.save, threading.Event(), threading.Event(), threading.Event()

    def slow(store: EndpointStore, endpoint: str, data: bytes) -> None:
        if b'"rolled-back"' in data and not has_room.is_set():
            raise Unavailable("the disk is full")
        if not writing.is_set():
            writing.set()
            written.wait(30)
        save(store, endpoint, data)

    monkeypatch.setattr(EndpointStore, "save", slow)
    with ThreadPoolExecutor(1) as by_hand:
        shifting = by_hand.submit(world.shift, {"1": 50, "2": 50})
        assert writing.wait(30)
        load = Load(world)
        eventually(lambda: world.figures()["weights"] == {"1": 100}, "traffic returns within the shift")
        load.end()
        written.set()
        with pytest.raises(Conflict, match="an alarm ended the deployment"):
            shifting.result(30)
    time.sleep(1)
    # The disk has the shift's event under this number, which was never in force: a router killed now would tell that one.
    assert world.figures()["untold_events"] == 1
    assert len(world.door.events[ENDPOINT]) == told
    has_room.set()
    eventually(lambda: world.door.kinds(ENDPOINT)[-1] == "rolled-back", "it is told once the disk takes it")
    assert len(world.door.events[ENDPOINT]) == told + 1


def test_a_slow_caller_is_given_up_and_others_are_not_held_up(
    world: ServingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.deploy(1)
    monkeypatch.setattr(serving_http, "ARRIVAL_S", 0.5)
    token = world.door.allow(ENDPOINT)
    head = f"POST /v2/models/{ENDPOINT}/infer HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-length: 500\r\n\r\n"
    for begun in (b"GET /v2/hea", head.encode(), head.encode() + b"{"):
        began_s = time.monotonic()
        assert raw(world, begun).startswith(b"HTTP/1.1 408")
        assert time.monotonic() - began_s < 5
    assert world.caller().infer()[0] == 200


def test_whoever_is_connected_and_known_to_nobody_makes_room_for_who_invokes(tmp_path: Path) -> None:
    with serving_world(tmp_path, max_connections=8) as world:
        world.deploy(1)
        strangers = [socket.create_connection(world.running.address, timeout=8) for _ in range(20)]
        # No more of them than half stay; the rest is told why.
        eventually(lambda: world.running.load()["connections"] <= 4, "the first made room")
        assert strangers[0].recv(65_536).startswith(b"HTTP/1.1 503")
        callers = [world.caller() for _ in range(4)]
        assert [caller.infer()[0] for caller in callers] == [200] * 4
        # One more than half is one tenant too many; and who is here goes on.
        status, told, headers = world.caller().infer()
        assert (status, told["code"]) == (503, "overloaded")
        assert headers["connection"] == "close"
        assert [caller.infer()[0] for caller in callers] == [200] * 4
        for stranger in strangers:
            stranger.close()


def test_bodies_that_wait_have_a_room_in_common_and_give_it_back(tmp_path: Path) -> None:
    small, large = body(rows=20), body(rows=400)
    with serving_world(tmp_path, max_held_bytes=2 * len(large) - 2) as world:
        world.deploy(1)
        caller = world.caller()
        for _ in range(30):
            assert caller.infer(small)[0] == 200
        status, told, _ = caller.infer(large)
        assert (status, told["code"]) == (503, "overloaded")
        # What a caller that hangs up had sent, others may have.
        head = f"POST /v2/models/{ENDPOINT}/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {len(large)}\r\n"
        head += f"authorization: Bearer {world.door.allow(ENDPOINT)}\r\n\r\n"
        for _ in range(3):
            with socket.create_connection(world.running.address, timeout=8) as connection:
                connection.sendall(head.encode() + large[: len(large) - len(small)])
                # The router has read it by the time it has not room for as much again.
                eventually(lambda: world.caller().infer(large[:-2])[0] == 503, "the body is held")
            eventually(lambda: world.caller().infer(small)[0] == 200, "the room is given back")


# --- deeds -------------------------------------------------------------------------------------------------------------


def test_a_deed_told_again_is_not_done_again(world: ServingWorld) -> None:
    job = world.job(1)
    first = world.running.runtime.deploy(world.warrant("serving.deploy", job), job)
    again = replace(job, attempt=2)
    assert world.running.runtime.deploy(world.warrant("serving.deploy", again), again) == first
    eventually(lambda: world.door.kinds(ENDPOINT) == ["step", "completed"], "one deployment is told")


def test_a_deployment_whose_record_is_lost_is_told_by_what_stands(
    world: ServingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, other = world.job(1), world.job(2)
    with monkeypatch.context() as patch:
        patch.setattr(Effect, "record", lambda *_: (_ for _ in ()).throw(Unavailable("the disk is full")))
        with pytest.raises(Unavailable):
            world.running.runtime.deploy(world.warrant("serving.deploy", job), job)
    standing = world.running.runtime.stands(TENANT, ENDPOINT, job.operation_id, job.step)
    assert standing is not None
    assert (dict(standing.weights), set(standing.digests)) == ({"1": 100}, {"code", "environment"})
    assert world.running.runtime.stands(TENANT, ENDPOINT, other.operation_id, other.step) is None


def test_a_warrant_is_good_for_one_deed_on_one_endpoint(world: ServingWorld) -> None:
    job = world.job(1)
    runtime = world.running.runtime
    right = world.warrant("serving.deploy", job)
    for envelope, reason in (
        (b"", "forged"),
        (world.world.tampered(right, adapter="other"), "other-adapter"),
        (world.world.tampered(right, resources=job.resources() | {"endpoint": f"{TENANT}/other"}), "other-resource"),
        (world.world.tampered(right, parameters_digest_hex="0" * 64), "other-parameter"),
    ):
        with pytest.raises(WarrantRefused) as refused:
            runtime.deploy(envelope, job)
        assert refused.value.reason == reason
    world.world.now_ms += 300_000
    with pytest.raises(WarrantRefused) as refused:
        runtime.deploy(right, job)
    assert refused.value.reason == "expired"
    runtime.deploy(fresh := world.warrant("serving.deploy", job), job)
    with pytest.raises(WarrantRefused) as refused:
        runtime.deploy(fresh, job)
    assert refused.value.reason == "spent"


def test_what_cannot_be_deployed_is_refused_and_changes_nothing(world: ServingWorld) -> None:
    world.deploy(1)
    other = world.job(2)
    other.model["model.safetensors"].path.write_bytes(b"other")
    with pytest.raises(InputRefused):
        world.running.runtime.deploy(world.warrant("serving.deploy", other), other)
    with pytest.raises(Conflict):
        world.deploy(2, strategy="canary", steps=[100], fallback=f"{TENANT}/credit-risk@7")
    with pytest.raises(InputRefused):
        world.deploy(2, alarms=[{"kind": "drift"}])
    changed = world.model(reference=True)
    with pytest.raises(Conflict):
        world.deploy(1, files=changed)
    assert world.figures()["weights"] == {"1": 100}
    assert world.caller().infer()[0] == 200


def test_a_tenant_has_its_share_of_endpoints_and_replicas_and_no_more(tmp_path: Path) -> None:
    with serving_world(tmp_path, max_endpoints=2, max_replicas=3) as world:
        world.deploy(1, replicas={"min": 1, "max": 2, "idle_s": 0})
        with pytest.raises(Conflict, match="would have 4 replicas at most") as refused:
            world.deploy(2, replicas={"min": 1, "max": 2, "idle_s": 0})
        assert refused.value.code == "conflict.share"
        # The same version again takes the place of itself, and what is retired takes none.
        world.deploy(1, replicas={"min": 1, "max": 3, "idle_s": 0})
        world.retire()
        world.deploy(2, replicas={"min": 1, "max": 2, "idle_s": 0})
        assert world.caller().infer()[0] == 200


def test_deployments_at_once_share_what_a_tenant_has_and_one_that_fails_gives_it_back(tmp_path: Path) -> None:
    with serving_world(tmp_path, max_endpoints=2, max_replicas=3) as world:
        deploy = world.running.runtime.deploy

        def job(name: str, **changes: Any) -> DeploymentJob:
            endpoint, usual = f"{TENANT}/{name}", world.job(1, **changes)
            return replace(usual, endpoint=endpoint, parameters={**usual.parameters, "endpoint": endpoint})

        def at_once(*jobs: DeploymentJob) -> list[Any]:
            together = threading.Barrier(len(jobs))

            def come(one: DeploymentJob) -> Any:
                warrant = world.warrant("serving.deploy", one)
                together.wait(30)
                try:
                    return deploy(warrant, one)
                except Conflict as refused:
                    return refused.code

            with ThreadPoolExecutor(len(jobs)) as coming:
                return list(coming.map(come, jobs))

        two = {"replicas": {"min": 1, "max": 2, "idle_s": 0}}
        ends = at_once(*(job(name, **two) for name in ("a", "b", "c")))
        assert ends.count("conflict.share") == 2
        files = world.model()
        files["model.safetensors"] = write_input(files["model.safetensors"].path, b"nothing of a model")
        with pytest.raises(JobFailed):
            deploy(world.warrant("serving.deploy", broken := job("broken", files=files)), broken)
        # What failed took nothing, and one replica is left, on one endpoint.
        ends = at_once(*(job(name) for name in ("d", "e", "f")))
        assert ends.count("conflict.share") == 2


def test_a_model_that_cannot_be_served_fails_the_deployment_and_nothing_else(world: ServingWorld) -> None:
    world.deploy(1)
    files = world.model()
    file = files["model.safetensors"]
    data = file.path.read_bytes()[:-4] + b"\x00\x00\xc0\x7f"  # Not a number.
    file.path.write_bytes(data)
    files["model.safetensors"] = write_input(file.path, data)
    with pytest.raises(JobFailed, match="not finite"):
        world.deploy(2, files=files)
    assert world.figures()["weights"] == {"1": 100}


def test_what_stands_nowhere_cannot_be_shifted_retired_or_looked_at(world: ServingWorld) -> None:
    for act in (lambda: world.shift({"1": 100}), world.retire, world.figures):
        with pytest.raises(NotFound):
            act()
    world.deploy(1)
    with pytest.raises(Conflict):
        world.shift({"1": 50, "2": 50})
    for weights in ({"1": 99}, {"1": 100, "x": 0}, {}):
        with pytest.raises(InputRefused):
            world.shift(weights)


# --- traffic -----------------------------------------------------------------------------------------------------------


def test_a_canary_advances_by_itself_and_each_step_is_told(world: ServingWorld) -> None:
    world.deploy(1)
    world.deploy(2, strategy="canary", steps=[10, 50, 100], bake_s=1, fallback=FIRST, alarms=[NEVER])
    caller = world.caller()
    chosen = Counter(caller.infer()[2]["licet-version"] for _ in range(50))
    assert chosen == {"1": 45, "2": 5}
    eventually(lambda: world.figures()["rollout"]["state"] == "completed", "the canary completes")
    assert {caller.infer()[2]["licet-version"] for _ in range(10)} == {"2"}
    eventually(lambda: len(world.door.kinds(ENDPOINT)) == 6, "all is told")
    assert [(event["kind"], event["weights"]) for event in world.door.events[ENDPOINT]][2:] == [
        ("step", {"1": 90, "2": 10}),
        ("step", {"1": 50, "2": 50}),
        ("step", {"2": 100}),
        ("completed", {"2": 100}),
    ]
    # The version before stays warm: traffic may have to return to it.
    assert world.figures()["versions"]["1"]["replicas"]["ready"] == 1


def test_an_alarm_returns_all_traffic_and_is_told_and_attested(world: ServingWorld) -> None:
    world.deploy(1)
    tight = {"kind": "p95-latency", "threshold_us": 1, "window_s": 10, "min_count": 20}
    world.deploy(2, strategy="canary", steps=[50, 100], bake_s=3600, fallback=FIRST, alarms=[tight])
    load = Load(world)
    eventually(lambda: world.figures()["weights"] == {"1": 100}, "traffic returns")
    eventually(lambda: world.door.envelopes, "the return is attested")
    load.end()
    assert set(load.statuses) == {200}
    assert load.versions.count("2") < 500
    assert load.versions[-1] == "1"
    event = world.door.events[ENDPOINT][-1]
    assert (event["kind"], event["weights"]) == ("rolled-back", {"1": 100})
    assert event["cause"]["kind"] == "p95-latency"
    assert event["cause"]["value"] > event["cause"]["threshold"] == 1
    envelope = dsse.Envelope.from_json(world.door.envelopes[0])
    dsse.verify_envelope(envelope, world.world.keystore.trust_root.keys("attestation"))
    said = statement.Statement.from_bytes(envelope.payload)
    assert said.predicate_type == statement.DEPLOYMENT
    assert said.predicate["cause"] == event["cause"]
    assert said.subject[0].name == f"{TENANT}/credit-risk@2"
    # What was rolled back cannot be reached by its number, and stops.
    assert world.caller().infer(path=f"/v2/models/{ENDPOINT}/versions/2/infer")[0] == 404
    eventually(lambda: world.figures()["versions"]["2"]["replicas"]["all"] == 0, "its replica stops")


TIGHT = {"kind": "p95-latency", "threshold_us": 1, "window_s": 60, "min_count": 20}
SECOND = f"{TENANT}/credit-risk@2"


def test_a_newer_deployment_leaves_the_version_that_serves_on_guard(world: ServingWorld) -> None:
    world.deploy(1)
    world.deploy(2, strategy="blue-green", fallback=FIRST, alarms=[TIGHT])
    second = world.figures()["rollout"]["operation"]
    assert world.figures()["guards"] == []  # The first answers no more, and is watched by nothing.
    world.deploy(3, strategy="shadow", fallback=SECOND, alarms=[NEVER])
    (guard,) = world.figures()["guards"]
    assert guard == {
        "operation": second,
        "version": "2",
        "fallback": "1",
        "state": "held",
        "alarms": ["p95-latency"],
    }
    assert world.figures()["versions"]["1"]["replicas"]["ready"] == 1  # Warm: traffic may have to return to it.
    caller = world.caller()
    for _ in range(20):
        assert caller.infer()[0] == 200
    eventually(lambda: world.figures()["weights"] == {"1": 100}, "traffic returns")
    eventually(lambda: world.door.kinds(ENDPOINT)[-1] == "rolled-back", "it is told")
    assert world.door.events[ENDPOINT][-1]["operation_id"] == second
    assert [one["version"] for one in world.figures()["guards"]] == ["1"]


def test_what_traffic_returns_to_is_on_guard_again_and_has_a_way_back_of_its_own(world: ServingWorld) -> None:
    late = TIGHT | {"min_count": 25}
    world.deploy(1)
    world.deploy(2, strategy="blue-green", fallback=FIRST, alarms=[late])
    world.deploy(3, strategy="blue-green", fallback=SECOND, alarms=[NEVER])
    caller = world.caller()
    assert {caller.infer()[2]["licet-version"] for _ in range(30)} == {"3"}
    assert dict(world.shift({"2": 100}).weights) == {"2": 100}
    assert dict(world.shift({"1": 100}).weights) == {"1": 100}
    world.shift({"2": 100})
    world.stop()
    world.start()  # The guard is on the disk.
    caller = world.caller()
    for _ in range(25):
        assert caller.infer()[0] == 200
    eventually(lambda: world.figures()["weights"] == {"1": 100}, "traffic returns")


def test_what_an_alarm_ended_is_given_no_traffic_but_by_a_fresh_deployment(world: ServingWorld) -> None:
    world.deploy(1)
    world.deploy(2, strategy="blue-green", fallback=FIRST, alarms=[TIGHT])
    caller = world.caller()
    for _ in range(20):
        caller.infer()
    eventually(lambda: world.figures()["weights"] == {"1": 100}, "traffic returns")
    for weights in ({"2": 100}, {"1": 99, "2": 1}):
        with pytest.raises(Conflict, match="deploy it anew"):
            world.shift(weights)
    with pytest.raises(Conflict, match="the fallback"):
        world.deploy(3, strategy="blue-green", fallback=SECOND, alarms=[NEVER])
    world.deploy(2, strategy="blue-green", fallback=FIRST, alarms=[NEVER])
    assert world.figures()["weights"] == {"2": 100}
    assert dict(world.shift({"1": 50, "2": 50}).weights) == {"1": 50, "2": 50}


def test_a_large_request_does_not_keep_others_from_being_looked_at(world: ServingWorld) -> None:
    world.deploy(1, files=world.model(reference=True), max_request_bytes=8 << 20)
    rows = world.running._endpoints[ENDPOINT]._versions[1].panel._rows
    caller = world.caller()
    assert caller.infer(body()[:-1] + b" " * (4 << 20) + b"}")[0] == 200
    assert caller.infer()[0] == 200
    eventually(lambda: rows.seen == 1, "the small one is looked at")
    assert caller.infer(body(rows=2000))[0] == 200
    eventually(lambda: rows.seen > 1, "the one of many rows is looked at")
    assert rows.seen <= 1 + 256


def test_inputs_that_drifted_return_traffic(world: ServingWorld) -> None:
    files = world.model(reference=True)
    world.deploy(1)
    drift = {"kind": "drift", "alpha_micro": 10_000, "window_s": 60, "min_count": 60}
    world.deploy(2, files=files, strategy="blue-green", fallback=FIRST, alarms=[drift])
    caller = world.caller()
    for at in range(120):
        caller.infer(body(income=at * 53 % 90 / 10, ratio=at * 37 % 100 / 100))
    time.sleep(0.5)
    assert world.figures()["weights"] == {"2": 100}  # Like those of training.
    load = Load(world, income=0.1, ratio=0.99)
    eventually(lambda: world.figures()["weights"] == {"1": 100}, "traffic returns")
    load.end()
    eventually(lambda: world.door.kinds(ENDPOINT)[-1] == "rolled-back", "it is told")
    assert world.door.events[ENDPOINT][-1]["cause"]["kind"] == "drift"


def test_a_shadow_is_given_copies_and_its_answers_reach_nobody(world: ServingWorld) -> None:
    world.deploy(1)
    assert world.deploy(2, strategy="shadow", fallback=FIRST, alarms=[NEVER]).shadow == "2"
    caller = world.caller()
    assert {caller.infer()[2]["licet-version"] for _ in range(40)} == {"1"}

    def answered() -> bool:
        shadow = world.figures()["versions"]["2"]
        # On a machine that is busy with other things, copies that would have had to wait are dropped.
        return bool(shadow["latency"]["ok"] + shadow["not_mirrored"] == 40 and shadow["latency"]["ok"])

    eventually(answered, "the shadow answered all copies")
    eventually(lambda: world.door.told(ENDPOINT) == ({"ok": 40}, 0), "only what callers asked is counted")
    assert caller.infer(path=f"/v2/models/{ENDPOINT}/versions/2/infer")[0] == 404
    world.shift({"1": 100})
    mirrored = world.figures()["versions"]["2"]["mirrored"]
    caller.infer()
    assert world.figures()["versions"]["2"]["mirrored"] == mirrored


def test_no_request_is_lost_in_shifts_under_load(world: ServingWorld) -> None:
    world.deploy(1)
    world.deploy(2, strategy="blue-green", fallback=FIRST, bake_s=3600, alarms=[NEVER])
    load = Load(world)
    for number in range(20):
        world.shift({"1": 100} if number % 2 else {"1": 30, "2": 70})
    load.end()
    assert set(load.statuses) == {200}
    assert set(load.versions) == {"1", "2"}


def test_what_a_shift_wakes_stays_up_whatever_else_is_noted_meanwhile(world: ServingWorld) -> None:
    world.deploy(1)
    world.deploy(2, strategy="blue-green", fallback=FIRST, bake_s=3600, alarms=[NEVER])

    def replicas() -> tuple[int, int]:
        told = world.figures()["versions"]["2"]["replicas"]
        return told["all"], told["ready"]

    eventually(lambda: len(world.door.kinds(ENDPOINT)) == 3, "both deployments are told")
    world.door.telling.clear()
    world.shift({"1": 100})
    eventually(lambda: replicas() == (0, 0), "what has no traffic any more sleeps")
    with ThreadPoolExecutor() as beside:
        shifted = beside.submit(world.shift, {"1": 30, "2": 70})
        eventually(lambda: replicas() == (1, 0), "it is woken")
        # That the shift before is told now is noted on the disk, and traffic follows what stands there.
        world.door.telling.set()
        assert dict(shifted.result().weights) == {"1": 30, "2": 70}
    assert replicas() == (1, 1)
    assert world.figures()["versions"]["2"]["replaced"] == 0


def test_retiring_answers_what_is_under_way_and_takes_nothing_new(world: ServingWorld) -> None:
    world.deploy(1, batch={"max_rows": 16, "max_wait_ms": 400})  # So that something is under way for a while.
    caller = world.caller()
    caller.infer()
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(world.caller().infer()[0]))
    thread.start()
    eventually(lambda: world.figures()["versions"]["1"]["in_flight"] == 1, "a request is under way")
    outcome = world.retire()
    thread.join()
    assert answers == [200]
    assert (dict(outcome.weights), dict(outcome.replicas)) == ({}, {})
    assert caller.infer()[1]["code"] == "not-deployed"
    assert not list(world.data_dir.rglob("*.safetensors"))
    world.deploy(1)
    assert caller.infer()[0] == 200


# --- load --------------------------------------------------------------------------------------------------------------


def test_a_version_that_may_sleeps_when_idle_and_wakes_for_a_request(world: ServingWorld) -> None:
    world.deploy(1, replicas={"min": 0, "max": 1, "idle_s": 1})
    caller = world.caller()
    assert caller.infer()[0] == 200
    eventually(lambda: world.figures()["versions"]["1"]["replicas"]["all"] == 0, "it sleeps")
    assert caller.ask("GET", f"/v2/models/{ENDPOINT}/ready")[0] == 200
    assert caller.infer()[0] == 200


def test_replicas_are_added_when_requests_wait(world: ServingWorld) -> None:
    # One at a time goes to a replica for a tenth of a second, so that requests must wait.
    world.deploy(1, replicas={"min": 1, "max": 3, "idle_s": 0}, batch={"max_rows": 64, "max_wait_ms": 200})
    version = world.running._endpoints[ENDPOINT]._versions[1]
    version._capacity = 1
    version._replicas[0]._capacity = 1
    load = Load(world, callers=4)
    eventually(lambda: world.figures()["versions"]["1"]["replicas"]["ready"] == 3, "three replicas answer")
    load.end()
    assert set(load.statuses) == {200}


def test_more_than_can_wait_is_turned_away_at_once(world: ServingWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world.deploy(1, batch={"max_rows": 64, "max_wait_ms": 500})
    version = world.running._endpoints[ENDPOINT]._versions[1]
    version._replicas[0]._capacity = 1
    monkeypatch.setattr("licet_adapters.serving.version._MAX_WAITING", 1)
    load = Load(world, callers=5)
    eventually(lambda: load.statuses[503], "some are turned away")
    load.end()
    assert set(load.statuses) == {200, 503}
    assert load.statuses[200] >= 2


def test_numbers_and_batches_have_no_gap_over_an_orderly_restart(world: ServingWorld) -> None:
    world.deploy(1)
    token = world.door.allow(ENDPOINT)
    for _ in range(3):
        assert world.caller(token).infer()[0] == 200
    world.stop()
    assert world.door.told(ENDPOINT) == ({"ok": 3}, 0)
    world.start()
    assert world.caller(token).infer()[2]["licet-invocation"] == "4"
    eventually(lambda: world.door.told(ENDPOINT) == ({"ok": 4}, 0), "nothing is lost")
