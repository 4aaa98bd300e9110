"""What operators see of a service at work: health, metrics, traces, logs; and what they must never see there."""

from __future__ import annotations

import gzip
import os
import stat
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families
from service_world import Installation, free_ports, poll, table

TRACE: Final = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT: Final = f"00-{TRACE}-b7ad6b7169203331-01"


class Collector:
    """An OTLP/HTTP collector: what it was sent."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any]] = []
        self.raw = b""
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    data = gzip.decompress(data)
                assert self.path == "/v1/traces"
                collector.raw += data
                for resource in ExportTraceServiceRequest.FromString(data).resource_spans:
                    names = {a.key: a.value.string_value for a in resource.resource.attributes}
                    for scope in resource.scope_spans:
                        collector.spans += [(names["service.name"], span) for span in scope.spans]
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def of(self, trace: str) -> list[tuple[str, Any]]:
        return [(service, span) for service, span in self.spans if span.trace_id.hex() == trace]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture(scope="module")
def watched(collector: Collector) -> Iterator[Installation]:
    # Checkpoints are signed when a warrant needs one, so within its trace; by the clock the notary may come first.
    installation = Installation(otlp_endpoint=collector.url, metrics_port=free_ports(3), checkpoint_interval_s=3600.0)
    try:
        installation.start()
        installation.people("northbank", "us")
        yield installation
    finally:
        installation.stop()


def rows() -> bytes:
    """Rows with a value that stands nowhere else."""
    return table() + b"987654.125,0.5,no,yes\n"


@pytest.fixture(scope="module")
def worked(watched: Installation) -> Installation:
    """An operation under a trace, a look-up that is denied, and nonsense."""
    http = watched.http("northbank/ana")
    body = {"resource": "northbank/loans", "parameters": watched.dataset_body("northbank/ana", rows())}
    answer = http.post("/v1/dataset/register", json=body, headers={"traceparent": TRACEPARENT})
    assert answer.status_code == 202, answer.text
    client = watched.client("northbank/ana")
    ended = client.wait(f"northbank/{answer.json()['operation']['id']}", timeout_s=60)
    assert ended.state == "done"
    assert http.post("/v1/ask", json={"action": "log.read", "resource": "northbank"}).status_code == 200
    assert http.post("/v1/ask", content=b'{"987654.125": nonsense').status_code == 400
    return watched


@pytest.mark.usefixtures("worked")
def test_one_trace_spans_api_worker_and_signer(collector: Collector) -> None:
    expected = {
        ("licet-api", "POST /v1/dataset/register"),
        ("licet-worker", "perform operation"),
        ("licet-signer", "signer mint"),
        ("licet-signer", "signer sign_checkpoint"),
    }

    def names() -> set[tuple[str, str]]:
        return {(service, span.name) for service, span in collector.of(TRACE)}

    # Each process sends its own in batches.
    poll("the spans of three processes", lambda: expected <= names(), 20)
    poll(
        "the api's spans of what the worker asked it",
        lambda: any(name.startswith("api license") for _, name in names()),
        20,
    )

    def roots() -> set[str]:
        found = [span for _, span in collector.of(TRACE)]
        return {span.parent_span_id.hex() for span in found} - {span.span_id.hex() for span in found}

    # Each span hangs on another of the trace, up to the one that the caller named.
    poll("one root", lambda: roots() == {"b7ad6b7169203331"}, 20)
    found = collector.of(TRACE)
    assert all(span.end_time_unix_nano >= span.start_time_unix_nano for _, span in found)


def test_spans_bear_nothing_of_what_was_sent_or_answered(worked: Installation, collector: Collector) -> None:
    assert collector.of(TRACE)
    assert all(not span.attributes and not span.events for _, span in collector.spans)
    secrets = [b"987654", b"northbank", b"loans", b"licet_", *(token.encode() for token in worked.tokens.values())]
    assert not [secret for secret in secrets if secret in collector.raw]


def metrics(installation: Installation, port: int) -> dict[str, list[Any]]:
    token = installation.settings.metrics_token.read_text().strip()
    response = httpx.get(
        f"http://127.0.0.1:{port}/metrics", headers={"Authorization": f"Bearer {token}"}, trust_env=False
    )
    assert response.status_code == 200
    return {family.name: family.samples for family in text_string_to_metric_families(response.text)}


def value(samples: list[Any], name: str, **labels: str) -> float:
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


def test_the_api_counts_what_it_does_without_naming_a_tenant(worked: Installation) -> None:
    port = worked.settings.metrics_port
    found = metrics(worked, port)
    decisions = found["licet_decisions"]
    assert value(decisions, "licet_decisions_total", action="dataset.register", outcome="allow") >= 1
    assert value(decisions, "licet_decisions_total", action="log.read", outcome="deny") >= 1
    requests = found["licet_http_request_duration_seconds"]
    count = "licet_http_request_duration_seconds_count"
    assert value(requests, count, route="/v1/dataset/register", status="202", method="POST") == 1
    assert value(requests, count, route="/v1/ask", status="400") == 1
    assert value(found["licet_operations_ended"], "licet_operations_ended_total", state="done") == 1
    assert value(found["licet_sequencer_group_size"], "licet_sequencer_group_size_count") > 0
    assert value(found["licet_rpc_call_duration_seconds"], "licet_rpc_call_duration_seconds_count", door="signer") > 0
    assert {s.labels["state"] for s in found["licet_operations_open"]} == {"accepted", "running"}
    for gauge in ("queue_depth", "group_duration_seconds"):
        assert f"licet_sequencer_{gauge}" in found
    for gauge in ("licet_requests_active", "licet_requests_waiting", "licet_checkpoint_lag_entries"):
        assert len(found[gauge]) == 1
    assert found["licet_disk_free_bytes"][0].value > 0
    labels = {v for samples in found.values() for s in samples for v in s.labels.values()}
    assert not [label for label in labels if "northbank" in label or label == "ana" or "loans" in label]


def test_the_worker_counts_what_it_performs(worked: Installation) -> None:
    found = metrics(worked, worked.settings.metrics_port + 1)
    performed = found["licet_worker_operation_duration_seconds"]
    assert value(performed, "licet_worker_operation_duration_seconds_count", state="done") == 1
    calls = found["licet_rpc_call_duration_seconds"]
    assert value(calls, "licet_rpc_call_duration_seconds_count", door="signer", method="mint", outcome="ok") > 0


def test_metrics_are_for_operators_alone(worked: Installation) -> None:
    # Of its owner, and of the group of api and worker where these are users of their own.
    assert not stat.S_IMODE(worked.settings.metrics_token.stat().st_mode) & 0o007
    url = f"http://127.0.0.1:{worked.settings.metrics_port}"
    for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": f"Bearer {worked.tokens['northbank/ana']}"}):
        answer = httpx.get(f"{url}/metrics", headers=headers, trust_env=False)
        assert answer.status_code == 401
        assert "licet_decisions" not in answer.text
    assert httpx.get(f"{url}/", trust_env=False).status_code == 404
    assert worked.http(None).get("/metrics").status_code == 404


def test_no_log_of_a_whole_run_holds_a_token_a_key_or_a_row(worked: Installation) -> None:
    output = worked.output()
    assert "request refused" in output  # There is something to look through.
    secrets = [*worked.tokens.values(), worked.settings.metrics_token.read_text().strip(), "987654"]
    keys = [path.read_text() for path in (worked.settings.signer_data / "keys").glob("*.json")]
    secrets += [text.split('"secret":"')[1].split('"')[0][:40] for text in keys]
    assert len(secrets) > 12
    assert not [secret for secret in secrets if secret in output]


@pytest.mark.parametrize("process", ["router", "worker"])
def test_readiness_tells_that_a_process_gives_no_sign_of_life(worked: Installation, process: str) -> None:
    http = worked.http(None)
    assert http.get("/health/ready").json() == {"status": "ready", "faults": [], "degraded": []}
    pid = worked.supervisor.pid(process)
    os.kill(pid, 19)  # SIGSTOP: it is there, and does nothing.
    try:
        old_s = time.time() - 60
        os.utime(worked.settings.database.parent / f"{process}.alive", (old_s, old_s))
        answer = http.get("/health/ready")
        assert (answer.status_code, answer.json()["faults"]) == (503, [process])
        assert http.get("/health/live").status_code == 200
    finally:
        os.kill(pid, 18)  # SIGCONT
    poll("its sign of life", lambda: http.get("/health/ready").status_code == 200)


def test_readiness_tells_that_the_signer_is_away(worked: Installation) -> None:
    http = worked.http(None)
    os.kill(worked.supervisor.pid("signer"), 9)
    poll("a fault of the signer", lambda: "signer" in http.get("/health/ready").json()["faults"], 5)
    poll("the signer started again", lambda: http.get("/health/ready").status_code == 200)
