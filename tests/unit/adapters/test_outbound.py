"""Requests to addresses that somebody else named: where they do not go, and how long they last."""

from __future__ import annotations

import datetime as dt
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from licet_adapters import outbound
from licet_adapters.errors import InputRefused, Unavailable

LOOPBACK = outbound.parse_networks("127.0.0.0/8, ::1/128")
Serve = Callable[[Callable[[socket.socket], None]], int]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server that does one thing with each connection; gives its port."""
    listeners = []

    def start(act: Callable[[socket.socket], None]) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def run() -> None:
            while True:
                try:
                    channel, _ = listener.accept()
                except OSError:
                    return
                with channel:
                    try:
                        act(channel)
                    except OSError:
                        continue

        threading.Thread(target=run, daemon=True).start()
        port: int = listener.getsockname()[1]
        return port

    yield start
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def get(url: str, **changes: object) -> outbound.Answer:
    usual: dict[str, object] = {"headers": {}, "networks": LOOPBACK, "unsafe_http": True, "timeout_s": 2.0}
    return outbound.request("GET", url, **(usual | {"max_bytes": 100} | changes))  # type: ignore[arg-type]  # By name.


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),  # noqa: S104
        *("224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "ff02::1"),
        *("fec0::1", "::7f00:1", "4000::1", "100::1", "2001:db8::1", "240.0.0.1", "192.0.2.1", "198.18.0.1"),
        *("168.63.129.16", "::ffff:168.63.129.16", "192.0.0.8", "192.88.99.1", "3ffe::1", "3fff::1"),
        *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe"),
    ],
)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert not outbound.is_allowed(ipaddress.ip_address(address), ())


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:4700::1111", "64:ff9b::5db8:d822"])
def test_a_public_address_is_allowed(address: str) -> None:
    assert outbound.is_allowed(ipaddress.ip_address(address), ())


def test_a_network_that_the_operator_names_is_allowed_and_no_other() -> None:
    networks = outbound.parse_networks("10.1.0.0/16")
    assert outbound.is_allowed(ipaddress.ip_address("10.1.2.3"), networks)
    assert outbound.is_allowed(ipaddress.ip_address("::ffff:10.1.2.3"), networks)
    assert not outbound.is_allowed(ipaddress.ip_address("10.2.2.3"), networks)


def test_nothing_is_sent_to_this_machine_unless_it_is_allowed(serve: Serve) -> None:
    came = threading.Event()
    port = serve(lambda _: came.set())
    for host in ("127.0.0.1", "localhost", "2130706433", "0x7f.1"):
        with pytest.raises((InputRefused, Unavailable)):
            get(f"http://{host}:{port}/", networks=())
    with pytest.raises(InputRefused, match="unsafe"):
        get(f"http://127.0.0.1:{port}/", unsafe_http=False)
    for url in (f"http://u:p@127.0.0.1:{port}/", f"ftp://127.0.0.1:{port}/", "https:///x"):
        with pytest.raises(InputRefused):
            get(url)
    assert not came.wait(0.2)


def test_a_name_that_leads_to_a_public_and_a_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [(2, 1, 6, "", ("93.184.216.34", 443)), (2, 1, 6, "", ("10.0.0.1", 443))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    with pytest.raises(InputRefused, match="not public"):
        get("https://hooks.example/", networks=())


def test_the_connection_is_made_to_the_address_that_was_looked_at(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = serve(lambda channel: channel.sendall(b"HTTP/1.1 204 No Content\r\n\r\n"))
    asked: list[str] = []

    def look_up(host: str, *_: object, **__: object) -> list[object]:
        # The second look-up of the name would lead elsewhere.
        asked.append(host)
        found = "127.0.0.1" if asked.count("rebinding.example") == 1 or host == "127.0.0.1" else "192.0.2.1"
        return [(2, 1, 6, "", (found, port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert get(f"http://rebinding.example:{port}/").status == 204
    assert asked.count("rebinding.example") == 1


def test_a_name_that_nobody_resolves_in_time_is_given_up_and_waited_for_by_nobody_else(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    known = socket.getaddrinfo

    def look_up(host: str, *more: object, **named: object) -> object:
        if host == "slow.example":
            release.wait(20)
        return known("127.0.0.1" if host == "slow.example" else host, *more, **named)  # type: ignore[arg-type]  # As they came.

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    port = serve(lambda channel: channel.sendall(b"HTTP/1.1 204 No Content\r\n\r\n"))
    begun_s = time.monotonic()
    try:
        with pytest.raises(Unavailable, match=r"not found within 0\.3 s"):
            get(f"http://slow.example:{port}/", timeout_s=0.3)
        assert get(f"http://127.0.0.1:{port}/").status == 204
        assert time.monotonic() - begun_s < 5
    finally:
        release.set()


def test_a_redirect_is_an_answer_and_the_body_is_bounded(serve: Serve) -> None:
    def act(channel: socket.socket) -> None:
        channel.recv(4096)
        channel.sendall(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 100000\r\n\r\n")
        channel.sendall(b"x" * 100_000)

    answer = get(f"http://127.0.0.1:{serve(act)}/in?a=1")
    assert (answer.status, len(answer.body)) == (302, 100)


@pytest.mark.parametrize("drip", [b"", b"H", b"HTTP/1.1 200 OK\r\nX: "])
def test_who_hangs_or_sends_a_byte_now_and_then_is_cut_off_in_time(serve: Serve, drip: bytes) -> None:
    def act(channel: socket.socket) -> None:
        channel.recv(4096)
        channel.sendall(drip)
        for _ in range(100):
            time.sleep(0.05)
            channel.sendall(b"x" if drip else b"")

    begun_s = time.monotonic()
    with pytest.raises(Unavailable, match=r"within 0\.5 s"):
        get(f"http://127.0.0.1:{serve(act)}/", timeout_s=0.5)
    assert time.monotonic() - begun_s < 2.0


@pytest.mark.parametrize("garbage", [b"", b"\x00\xff" * 50, b"HTTP/1.1 abc\r\n\r\n", b"A: " + b"x" * 100_000])
def test_what_is_no_answer_is_unavailable(serve: Serve, garbage: bytes) -> None:
    def act(channel: socket.socket) -> None:
        channel.recv(4096)
        channel.sendall(garbage)

    with pytest.raises(Unavailable):
        get(f"http://127.0.0.1:{serve(act)}/")


def _certificate(folder: Path, name: str) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{name}.pem"
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(pem + made.public_bytes(serialization.Encoding.PEM))
    return path


def test_the_certificate_must_be_of_the_name_and_of_an_authority(serve: Serve, tmp_path: Path) -> None:
    mine, other = _certificate(tmp_path, "localhost"), _certificate(tmp_path, "elsewhere.example")

    def server(path: Path) -> int:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)

        def act(channel: socket.socket) -> None:
            try:
                with context.wrap_socket(channel, server_side=True) as tls:
                    tls.recv(4096)
                    tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            except OSError:
                return

        return serve(act)

    def trusting(path: Path) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(path))

    port = server(mine)
    assert get(f"https://localhost:{port}/", tls=trusting(mine), unsafe_http=False).body == b"ok"
    with pytest.raises(Unavailable, match="certificate"):
        get(f"https://localhost:{port}/")
    with pytest.raises(Unavailable, match="certificate"):
        get(f"https://localhost:{server(other)}/", tls=trusting(other))
