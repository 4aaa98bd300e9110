"""The signer as a process of its own, and the calls that reach it."""

from __future__ import annotations

import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, cast

import pytest

from licet_attestations import canonical, merkle, rpc
from licet_attestations.errors import SignerRefused, SignerUnavailable
from licet_attestations.signer.client import SignerClient
from licet_attestations.signer.server import API_METHODS, WORKER_METHODS
from licet_attestations.signer.server import handlers as signer_handlers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from licet_attestations.signer.rules import SignerRules

SIGNER = [sys.executable, "-m", "licet_attestations.signer"]


class Signer:
    """A signer process on a folder, and a client of it."""

    def __init__(self, folder: Path) -> None:
        self.data, self.socket = folder / "data", folder / "run" / "signer.sock"
        init = [*SIGNER, "--data", str(self.data), "--init", "--instance", "test", "--origin", "log.test"]
        subprocess.run(init, check=True, capture_output=True)
        self.client = SignerClient(self.socket)
        self.start()

    def start(self) -> None:
        arguments = [*SIGNER, "--data", str(self.data), "--socket", str(self.socket)]
        self.process = subprocess.Popen(arguments, stderr=subprocess.PIPE)
        for _ in range(200):
            try:
                self.client.public()
            except SignerUnavailable:
                time.sleep(0.05)
            else:
                return
        raise AssertionError("the signer does not answer")

    def stop(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        code = self.process.wait(10)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


@pytest.fixture
def signer(tmp_path: Path) -> Iterator[Signer]:
    running = Signer(tmp_path)
    yield running
    if running.process.poll() is None:
        assert running.stop(signal.SIGTERM) == 0
        assert not running.socket.exists()


def test_it_serves_on_a_private_socket(signer: Signer) -> None:
    assert stat.S_IMODE(signer.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(signer.socket.parent.stat().st_mode) == 0o700
    assert signer.client.public().to_json() == (signer.data / "trust-root.json").read_bytes()


def test_a_second_signer_on_the_same_folder_is_refused(signer: Signer) -> None:
    other = [*SIGNER, "--data", str(signer.data), "--socket", str(signer.socket.with_name("other.sock"))]
    found = subprocess.run(other, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "another signer" in found.stderr


def test_a_killed_signer_remembers_the_last_checkpoint(signer: Signer) -> None:
    leaves = [merkle.leaf_hash(bytes([number])) for number in range(5)]
    signer.client.sign_checkpoint("northbank", 5, merkle.root(leaves), [])
    signer.stop(signal.SIGKILL)
    with pytest.raises(SignerUnavailable):
        signer.client.public()
    signer.start()  # Over the socket that the killed one left.
    assert signer.client.last_checkpoint("northbank") == (5, merkle.root(leaves))
    with pytest.raises(SignerRefused) as refused:
        signer.client.sign_checkpoint("northbank", 4, merkle.root(leaves[:4]), [])
    assert refused.value.code == "signer.fork"


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"tenant": "northbank", "size": "5", "root": "00" * 32, "proof": []},
        {"tenant": "northbank", "size": True, "root": "00" * 32, "proof": []},
        {"tenant": "northbank", "size": 5, "root": "zz", "proof": []},
        {"tenant": "northbank", "size": 5, "root": "00", "proof": []},
        {"tenant": "northbank", "size": 5, "root": "00" * 32, "proof": [1]},
        {"tenant": "northbank", "size": 5, "root": "00" * 32, "proof": ["00" * 32] * 65},
        {"tenant": "northbank", "size": 5, "root": "00" * 32, "proof": [], "more": 1},
    ],
)
def test_params_of_another_shape_are_refused(signer: Signer, params: dict[str, Any]) -> None:
    with pytest.raises(rpc.RpcFault) as refused:
        rpc.call(signer.socket, "sign_checkpoint", params)
    assert refused.value.code == "attestation.format"
    assert signer.client.last_checkpoint("northbank")[0] == 0


def test_an_unknown_method_is_refused(signer: Signer) -> None:
    for method in ("_keys", "trust_root", "__init__", ""):
        with pytest.raises(rpc.RpcFault) as refused:
            rpc.call(signer.socket, method, {})
        assert refused.value.code == "unknown-method"


def test_open_keys_refuse_the_start(signer: Signer) -> None:
    signer.stop(signal.SIGTERM)
    (signer.data / "keys" / "warrant.json").chmod(0o640)
    arguments = [*SIGNER, "--data", str(signer.data), "--socket", str(signer.socket)]
    found = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "chmod" in found.stderr


def test_a_passphrase_comes_by_descriptor(tmp_path: Path) -> None:
    def run(passphrase: bytes, *arguments: str) -> subprocess.CompletedProcess[str]:
        reader, writer = os.pipe()
        os.write(writer, passphrase)
        os.close(writer)
        command = [*SIGNER, "--data", str(tmp_path / "d"), "--passphrase-fd", str(reader), *arguments]
        try:
            return subprocess.run(command, pass_fds=[reader], capture_output=True, text=True, check=False)
        finally:
            os.close(reader)

    assert run(b"secret\n", "--init").returncode == 0
    refused = run(b"another\n", "--socket", str(tmp_path / "r" / "s.sock"))
    assert refused.returncode == 1
    assert "passphrase" in refused.stderr


# --- the calls themselves --------------------------------------------------------------------------------------------


def fail(error: Exception) -> Callable[[dict[str, Any]], Any]:
    def handler(_: dict[str, Any]) -> Any:
        raise error

    return handler


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / ("deep-" * 20) / ("deeper-" * 10) / "echo.sock"  # Longer than a socket's name may be.
    handlers: dict[str, rpc.Handler] = {
        "echo": lambda params: params,
        "break": fail(ZeroDivisionError("secret")),
        "refuse": fail(SignerRefused("no", code="signer.no")),
        "float": lambda _: 1.5,
    }
    server = rpc.RpcServer(path, handlers, {os.geteuid()}, max_connections=4, max_message_bytes=4096, timeout_s=0.5)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield path
    server.close()
    thread.join(5)
    assert not thread.is_alive()
    assert not path.exists()


def connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(5)
    with rpc._address(path) as address:
        sock.connect(address)
    return sock


def test_what_is_sent_comes_back(echo: Path) -> None:
    params = {"text": "naïve ☂", "list": [1, None, True], "bytes": rpc.encode_bytes(b"\x00\xff")}
    assert rpc.call(echo, "echo", params) == params
    assert rpc.decode_bytes(params["bytes"]) == b"\x00\xff"


def test_of_texts_that_mean_the_same_bytes_one_is_taken() -> None:
    assert rpc.encode_bytes(b"wrapped") == "d3JhcHBlZA=="
    assert rpc.decode_bytes("d3JhcHBlZA==") == b"wrapped"
    for other in ("d3JhcHBlZB==", "d3JhcHBlZP==", "d3JhcHBlZA", "d3JhcHBlZA=\n", 7, None):
        with pytest.raises(rpc.FormatError):
            rpc.decode_bytes(other)


def test_an_error_travels_by_its_code_and_a_defect_tells_nothing(echo: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(rpc.RpcFault, match="no") as refused:
        rpc.call(echo, "refuse", {})
    assert refused.value.code == "signer.no"
    for method in ("break", "float"):
        with pytest.raises(rpc.RpcFault) as broken:
            rpc.call(echo, method, {})
        assert (broken.value.code, str(broken.value)) == ("internal", "internal error")
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    "frame",
    [
        struct.pack(">I", 5000),
        struct.pack(">I", 2) + b"{]",
        struct.pack(">I", 4) + b"null",
        struct.pack(">I", 26) + b'{"method":1,"params":{}   }',
        struct.pack(">I", 31) + b'{"method":"echo","params":1.5}  ',
    ],
)
def test_a_malformed_frame_is_answered_and_leaves_the_service_well(echo: Path, frame: bytes) -> None:
    with connect(echo) as sock:
        sock.sendall(frame)
        length = int.from_bytes(sock.recv(4), "big")
        answer = canonical.loads(sock.recv(length))
    assert answer["error"]["code"] in ("malformed", "unknown-method")
    assert rpc.call(echo, "echo", {}) == {}


def test_a_silent_peer_is_dropped_and_others_are_served(echo: Path) -> None:
    with connect(echo) as slow:
        slow.sendall(struct.pack(">I", 100) + b"{")
        assert rpc.call(echo, "echo", {"a": 1}) == {"a": 1}
        assert slow.recv(1) == b""  # Dropped at its deadline.


def test_too_large_a_request_is_not_sent(echo: Path) -> None:
    with pytest.raises(rpc.FormatError):
        rpc.call(echo, "echo", {"text": "x" * 5000}, max_message_bytes=4096)
    with pytest.raises((rpc.RpcFault, rpc.RpcUnavailable)):
        rpc.call(echo, "echo", {"text": "x" * 5000})


def test_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run" / "s.sock"
    server = rpc.RpcServer(path, {"echo": lambda params: params}, {os.geteuid() + 1})
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with pytest.raises(rpc.RpcFault) as refused:
            rpc.call(path, "echo", {})
        assert refused.value.code == "forbidden"
    finally:
        server.close()
        thread.join(5)


def test_a_user_may_call_its_own_methods_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "run" / "s.sock"
    handlers: dict[str, rpc.Handler] = {"mine": lambda _: "done", "theirs": lambda _: pytest.fail("it was called")}
    server = rpc.RpcServer(path, handlers, {os.geteuid(): {"mine"}, os.geteuid() + 1: {"theirs"}})
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        assert rpc.call(path, "mine", {}) == "done"
        with pytest.raises(rpc.RpcFault, match="may not call this method") as refused:
            rpc.call(path, "theirs", {})
        assert refused.value.code == "forbidden"
    finally:
        server.close()
        thread.join(5)


@pytest.mark.parametrize("arguments", [["--api-uid", "1"], ["--api-uid", "1", "--worker-uid", "1"]])
def test_callers_that_cannot_be_told_apart_are_refused(tmp_path: Path, arguments: list[str]) -> None:
    command = [*SIGNER, "--data", str(tmp_path), "--socket", str(tmp_path / "s.sock"), *arguments]
    found = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert found.returncode == 2
    assert "all users must be different ones" in found.stderr


def test_no_user_is_both_the_one_who_has_logs_signed_and_the_one_who_acts_on_them() -> None:
    assert {"public"} == API_METHODS & WORKER_METHODS
    assert WORKER_METHODS & {"sign_checkpoint", "last_checkpoint"} == set()
    assert set(signer_handlers(cast("SignerRules", None))) == API_METHODS | WORKER_METHODS


def test_an_open_folder_and_a_taken_socket_refuse_the_start(echo: Path, tmp_path: Path) -> None:
    with pytest.raises(rpc.RpcUnavailable, match="listening"):
        rpc.RpcServer(echo, {}, {os.geteuid()})
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    with pytest.raises(rpc.RpcUnavailable, match="chmod"):
        rpc.RpcServer(tmp_path / "open" / "s.sock", {}, {os.geteuid()})


def test_no_server_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(rpc.RpcUnavailable):
        rpc.call(tmp_path / "absent.sock", "echo", {})
