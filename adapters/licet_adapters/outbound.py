"""One HTTP request to an address that somebody else named: bounded, pinned, and to nowhere it must not go.

Rules kept here:

- https, with the certificate verified for the name. Plain http is for this machine alone, and where it is called unsafe.
- The name is looked up once, in bounded time; every address it has must be public, or in a network that the operator allows.
  The connection is made to an address that was looked at, so a second look-up cannot name another.
- No proxy, no redirect, no cookie, no user or password in the address.
- The whole request, and what is read of the answer, are bounded in time and size.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from licet_adapters.errors import InputRefused, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_MOST_ADDRESSES = 3
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_UNICAST = ipaddress.ip_network("2000::/3")
"""Of IPv6, all that is public: whatever lies outside is special, or was, or will be."""

_ODD: Final = tuple(
    map(
        ipaddress.ip_network,
        # A cloud's own service under a public address; protocol assignments, relays, and ranges of IPv6 that were or are for tests.
        ("168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24", "3ffe::/16", "3fff::/20"),
    )
)
"""What counts as public by its number, and is no receiver's."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered: status, the first bytes of the body, and headers by lower-case name."""

    status: int
    body: bytes
    headers: Mapping[str, str]


def parse_networks(text: str) -> tuple[Network, ...]:
    """The networks in a list with commas between."""
    return tuple(ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip())


def is_allowed(address: Address, networks: Sequence[Network]) -> bool:
    """Whether an address may be connected to: it is public, or in a network that is allowed."""
    plain = _unwrapped(address)
    if any(plain.version == network.version and plain in network for network in networks):
        return True
    is_special = (
        plain.is_multicast or plain.is_reserved or (plain.version == _UNICAST.version and plain not in _UNICAST)
    )
    is_odd = any(plain.version == network.version and plain in network for network in _ODD)
    return plain.is_global and not is_special and not is_odd


def _unwrapped(address: Address) -> Address:
    """The IPv4 address that an IPv6 address leads to, where it does."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address.sixtofour is not None:
            return address.sixtofour
        if address.teredo is not None:
            return address.teredo[1]
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def request(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    body: bytes | None = None,
    networks: Sequence[Network],
    unsafe_http: bool,
    timeout_s: float,
    max_bytes: int,
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """Make one request.

    Args:
        method: Of HTTP.
        url: Where to.
        headers: Beside those that HTTP wants.
        body: What is sent.
        networks: Allowed beside the public ones.
        unsafe_http: Whether plain http to this machine is meant.
        timeout_s: For the look-up of the name, and as much for all the rest.
        max_bytes: Read of the answer's body; the rest is left.
        tls: How certificates are verified; against the machine's authorities by default.

    Raises:
        InputRefused: The address is none that may be asked. Nothing was sent.
        Unavailable: No answer, or none in time.
    """
    try:
        parts = urlsplit(url)
        named = parts.port
    except ValueError as error:
        raise InputRefused("the address has no valid host or port", code="outbound.address") from error
    host, is_tls = parts.hostname or "", parts.scheme == "https"
    if parts.scheme not in {"http", "https"} or not host or "@" in parts.netloc:
        raise InputRefused("the address must be https://HOST[:PORT]/PATH", code="outbound.address")
    port = named or (443 if is_tls else 80)
    addresses = _look_up(host, port, networks, timeout_s)
    if not is_tls and not (unsafe_http and all(address.is_loopback for address in addresses)):
        raise InputRefused("plain http is for this machine alone, and where it is called unsafe", code="outbound.http")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        with _connected(addresses, port, timeout_s) as plain, _deadline(plain, timeout_s):
            channel = _secured(plain, host, tls) if is_tls else plain
            with channel:
                connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
                connection.sock = channel
                connection.request(method, path, body, {"Host": _host_header(host, parts.port), **headers})
                answer = connection.getresponse()
                return Answer(answer.status, answer.read(max_bytes), {k.lower(): v for k, v in answer.getheaders()})
    except ssl.SSLCertVerificationError as error:
        raise Unavailable("the certificate is not the receiver's", code="outbound.certificate") from error
    except TimeoutError as error:
        raise Unavailable(f"no answer within {timeout_s:g} s", code="outbound.timeout") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unavailable(f"no answer ({type(error).__name__})", code="outbound.broken") from error


def _secured(plain: socket.socket, host: str, tls: ssl.SSLContext | None) -> ssl.SSLSocket:
    return (tls or ssl.create_default_context()).wrap_socket(plain, server_hostname=host)


def _host_header(host: str, port: int | None) -> str:
    shown = f"[{host}]" if ":" in host else host
    return shown if port is None else f"{shown}:{port}"


def _look_up(host: str, port: int, networks: Sequence[Network], timeout_s: float) -> list[Address]:
    found = _resolve(host, port, timeout_s)
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    refused = [address for address in addresses if not is_allowed(address, networks)]
    if refused or not addresses:
        raise InputRefused(
            "the host has an address that is not public, and in no network of LICET_OUTBOUND_NETWORKS",
            code="outbound.private",
        )
    return list(dict.fromkeys(addresses))


def _resolve(host: str, port: int, timeout_s: float) -> list[Any]:
    """Every address of a name. The resolver cannot be interrupted: it is waited for, and then left to end by itself."""
    found: list[Any] = []
    faults: list[Exception] = []

    def ask() -> None:
        try:
            found.extend(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            faults.append(error)

    # A thread of its own for each, so that names which hang wait behind nobody's.
    asking = threading.Thread(target=ask, name="licet-look-up", daemon=True)
    asking.start()
    asking.join(timeout_s)
    if faults:
        raise Unavailable("the name of the host has no address", code="outbound.name") from faults[0]
    if not found:
        raise Unavailable(f"the name of the host was not found within {timeout_s:g} s", code="outbound.name")
    return found


@contextlib.contextmanager
def _connected(addresses: Sequence[Address], port: int, timeout_s: float) -> Iterator[socket.socket]:
    """A connection to one of these very addresses."""
    fault: OSError | None = None
    tried = addresses[:_MOST_ADDRESSES]
    for address in tried:
        try:
            found = socket.create_connection((str(address), port), timeout=timeout_s / len(tried))
        except OSError as error:
            fault = error
            continue
        found.settimeout(timeout_s)
        with found:
            yield found
        return
    raise fault or OSError("no address")


@contextlib.contextmanager
def _deadline(channel: socket.socket, timeout_s: float) -> Iterator[None]:
    """Whoever sends a byte now and then is cut off all the same."""
    is_over = threading.Event()
    # A copy of the descriptor: TLS takes the original away, and what is shut down is the connection itself.
    twin = channel.dup()

    def cut() -> None:
        is_over.set()
        with contextlib.suppress(OSError):
            twin.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(timeout_s, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
        if is_over.is_set():
            raise TimeoutError
    except (OSError, http.client.HTTPException) as error:
        if is_over.is_set():
            raise TimeoutError from error
        raise
    finally:
        timer.cancel()
        twin.close()
