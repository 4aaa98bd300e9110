"""Calls between the processes of one machine: framed canonical JSON over a Unix socket, the peer known by the kernel.

A frame is a 4-byte big-endian length and that many bytes of canonical JSON. A request is ``{"method", "params"}``; an
answer ``{"ok": ...}`` or ``{"error": {"code", "message"}}``. Bytes travel as base64 text. A request may name the trace it
belongs to (``"traceparent"``, as W3C writes it); its answer then says when it was served (``"served_us"``: two times in
microseconds since the epoch), unless the server exports traces itself.

Rules kept here:

- The peer's user id (SO_PEERCRED) is checked before one byte is read, and it may call only the methods that are its own.
- The folder of the socket is 0700 and the socket 0600 (with ``shared_gid``: 2710 and 0660 of that group).
- Every message is bounded in size, every exchange in time, and the connections in number; a slow or silent peer costs
  one thread until its deadline, never the service.
- A server that closes finishes the calls it has begun, within a bound.
- An exception without a ``code`` is a defect of ours: it is logged here and answered as ``internal``, telling nothing.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import logging
import os
import re
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from licet_attestations import canonical
from licet_attestations.errors import FormatError, LicetAttestationError

if TYPE_CHECKING:
    from pathlib import Path

DEFAULT_MAX_MESSAGE_BYTES = 16 * 1024 * 1024
DEFAULT_TIMEOUT_S = 30.0
_IDLE_TIMEOUT_S = 60.0
_MAX_DIRECT_PATH_BYTES = 100  # sun_path holds 108, the final NUL included.
_SHARED_MODE = 0o2710
_LENGTH = struct.Struct(">I")
_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid.

_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_DRAIN_S = 5.0

Handler = Callable[[dict[str, Any]], Any]
Around = Callable[[str, str], contextlib.AbstractContextManager[Any]]
"""What a call of that method, in that trace, is served within."""


class Observer(Protocol):
    """Is told of the calls that this process makes."""

    def traceparent(self) -> str:
        """The trace that a call belongs to; empty for none."""
        ...

    def called(
        self, path: Path, method: str, outcome: str, duration_s: float, served_us: tuple[int, int] | None
    ) -> None:
        """A call ended: ``ok``, or with that code; ``served_us`` is when the other side says that it served it."""
        ...


class _Observing:
    observer: Observer | None = None


def observe(observer: Observer | None) -> None:
    """Have the calls of this process observed from now on."""
    _Observing.observer = observer


_log = logging.getLogger(__name__)


class RpcFault(LicetAttestationError):  # The other side's answer, not this side's failure.
    """The other side answered with an error: nothing was done, or what ``code`` says."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class RpcUnavailable(LicetAttestationError):  # As above.
    """The other side cannot be reached, or broke off: whether the call was carried out is not known."""

    code = "rpc.unavailable"


def encode_bytes(data: bytes) -> str:
    """Return ``data`` as base64 text."""
    return base64.b64encode(data).decode("ascii")


def decode_bytes(text: Any) -> bytes:
    """Return the bytes that ``text`` holds as base64.

    Raises:
        FormatError: It is not the base64 text that `encode_bytes` makes of any bytes.
    """
    if not isinstance(text, str):
        raise FormatError("base64 text is needed")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FormatError("not base64 text") from error
    # The last character may have bits that mean nothing: a stored file that was changed there is to be noticed, too.
    if encode_bytes(data) != text:
        raise FormatError("not the base64 text of its bytes")
    return data


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    """Give an address for ``path`` that fits into ``sun_path``, however deep the folder lies."""
    if len(os.fsencode(path)) <= _MAX_DIRECT_PATH_BYTES:
        yield str(path)
        return
    # A folder of another user may be passed through, and not read.
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


class _Closed(Exception):  # Not an error: the peer is done.
    """The peer closed between two messages."""


def _receive_exactly(sock: socket.socket, size: int, deadline_s: float, *, may_be_closed: bool = False) -> bytes:
    received = bytearray()
    while len(received) < size:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the peer was too slow")
        sock.settimeout(left_s)
        part = sock.recv(min(size - len(received), 1 << 20))
        if not part:
            if may_be_closed and not received:
                raise _Closed
            raise ConnectionError("the peer closed within a message")
        received += part
    return bytes(received)


def _receive(sock: socket.socket, max_bytes: int, timeout_s: float, idle_timeout_s: float) -> Any:
    length_bytes = _receive_exactly(sock, _LENGTH.size, time.monotonic() + idle_timeout_s, may_be_closed=True)
    (length,) = _LENGTH.unpack(length_bytes)
    if length > max_bytes:
        raise FormatError(f"a message of {length} bytes is over the limit of {max_bytes}")
    return canonical.loads(_receive_exactly(sock, length, time.monotonic() + timeout_s), max_bytes=max_bytes)


def _frame(value: Any, max_bytes: int) -> bytes:
    data = canonical.dumps(value)
    if len(data) > max_bytes:
        raise FormatError(f"a message of {len(data)} bytes is over the limit of {max_bytes}")
    return _LENGTH.pack(len(data)) + data


def _send(sock: socket.socket, frame: bytes, timeout_s: float) -> None:
    sock.settimeout(timeout_s)
    sock.sendall(frame)


class RpcServer:
    """Answers calls on one socket, one bounded thread for each connection.

    Args:
        path: The socket; its folder is made if it is missing.
        handlers: Method name to a function of the params; it returns canonical JSON.
        allowed: User ids that may call; where it is a mapping, each to the methods it may call.
        shared_gid: Group that may reach the socket, where callers run as other users; None: only this user.
        max_connections: More wait in the kernel's queue.
        max_message_bytes: Bound of a request and of an answer.
        timeout_s: To receive one request, and to send one answer.
        around: What calls are served within, where this process exports traces itself.

    Raises:
        RpcUnavailable: The folder is open to others, or another server is listening.
    """

    def __init__(
        self,
        path: Path,
        handlers: Mapping[str, Handler],
        allowed: Collection[int] | Mapping[int, Collection[str]],
        *,
        shared_gid: int | None = None,
        max_connections: int = 64,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        around: Around | None = None,
    ) -> None:
        self._around = around
        self._busy = threading.Condition()
        self._calls = 0
        self._path = path
        self._handlers = dict(handlers)
        methods = allowed if isinstance(allowed, Mapping) else dict.fromkeys(allowed, self._handlers)
        self._methods = {uid: frozenset(names) for uid, names in methods.items()}
        self._max_message_bytes = max_message_bytes
        self._timeout_s = timeout_s
        self._slots = threading.BoundedSemaphore(max_connections)
        self._closing = threading.Event()
        self._listener = self._listen(shared_gid, max_connections)

    def serve_forever(self) -> None:
        """Accept and answer until ``close`` is called (from another thread or a signal handler)."""
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                if self._closing.is_set():
                    break
                raise
            while not self._slots.acquire(timeout=0.5):
                if self._closing.is_set():
                    connection.close()
                    break
            else:
                threading.Thread(target=self._serve_connection, args=(connection,), daemon=True).start()
        self._listener.close()
        self._path.unlink(missing_ok=True)
        with self._busy:
            self._busy.wait_for(lambda: not self._calls, _DRAIN_S)

    def close(self) -> None:
        """Stop accepting; ``serve_forever`` returns once the calls that were begun are answered, or soon after."""
        self._closing.set()
        # Whoever waits for a connection is woken at once; where the system does not do so, by its time-out.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)

    def _listen(self, shared_gid: int | None, backlog: int) -> socket.socket:
        directory = self._path.parent
        with contextlib.suppress(FileExistsError):
            directory.mkdir(parents=True, mode=0o700)
        found = directory.stat()
        if found.st_uid != os.geteuid() or (shared_gid is None and stat.S_IMODE(found.st_mode) & 0o077):
            raise RpcUnavailable(f"{directory}: the folder of a socket must be this user's alone: chmod 0700 it")
        # One that root prepared is left as it is: its owner may hand its group on without being in it, but not set it.
        if shared_gid is not None and (found.st_gid, stat.S_IMODE(found.st_mode)) != (shared_gid, _SHARED_MODE):
            os.chown(directory, -1, shared_gid)
            directory.chmod(_SHARED_MODE)
        if self._path.exists():
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                with _address(self._path) as address:
                    probe.connect(address)
                raise RpcUnavailable(f"{self._path}: another server is listening here")
            self._path.unlink()  # Left by one that was killed.
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with _address(self._path) as address:
            listener.bind(address)
        # Between bind and chmod the folder's mode keeps everyone else out.
        if shared_gid is None:
            self._path.chmod(0o600)
        else:
            os.chown(self._path, -1, shared_gid)
            self._path.chmod(0o660)
        listener.listen(backlog)
        listener.settimeout(0.5)
        return listener

    def _serve_connection(self, connection: socket.socket) -> None:
        try:
            with connection:
                _, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
                if uid not in self._methods:
                    _log.warning("rpc peer refused: uid=%d path=%s", uid, self._path)
                    self._answer(connection, _error("forbidden", "this user may not call here"))
                    return
                while not self._closing.is_set():
                    try:
                        request = _receive(connection, self._max_message_bytes, self._timeout_s, _IDLE_TIMEOUT_S)
                    except FormatError as error:  # Where the next frame begins is no longer known.
                        self._answer(connection, _error("malformed", str(error)))
                        return
                    with self._busy:
                        self._calls += 1
                    try:
                        self._answer(connection, self._handle(request, uid))
                    finally:
                        with self._busy:
                            self._calls -= 1
                            self._busy.notify_all()
        except (_Closed, OSError):  # The peer is gone or was too slow; it sees that by itself.
            pass
        finally:
            self._slots.release()

    def _answer(self, connection: socket.socket, answer: dict[str, Any]) -> None:
        try:
            frame = _frame(answer, self._max_message_bytes)
        except FormatError:
            _log.exception("rpc answer cannot be sent: path=%s", self._path)
            frame = _frame(_error("internal", "internal error"), self._max_message_bytes)
        _send(connection, frame, self._timeout_s)

    def _handle(self, request: Any, uid: int) -> dict[str, Any]:
        if (
            not isinstance(request, dict)
            or set(request) - {"traceparent"} != {"method", "params"}
            or type(request["params"]) is not dict
        ):
            return _error("malformed", "a request has `method` and `params`")
        trace = request.get("traceparent", "")
        # Where it is no trace, that is as if none had been named: tracing never stops a call.
        if not isinstance(trace, str) or not _TRACEPARENT.fullmatch(trace):
            trace = ""
        handler = self._handlers.get(request["method"]) if isinstance(request["method"], str) else None
        if handler is None:
            return _error("unknown-method", "no such method")
        if request["method"] not in self._methods[uid]:
            _log.warning("rpc method refused: uid=%d method=%s path=%s", uid, request["method"], self._path)
            return _error("forbidden", "this user may not call this method")
        if not trace:
            return self._call(handler, request)
        if self._around is not None:
            with self._around(f"{self._path.stem} {request['method']}", trace):
                return self._call(handler, request)
        began_us = time.time_ns() // 1000
        answer = self._call(handler, request)
        return answer | {"served_us": [began_us, max(began_us, time.time_ns() // 1000)]}

    @staticmethod
    def _call(handler: Handler, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"ok": handler(request["params"])}
        except Exception as error:  # noqa: BLE001  # Whatever a handler raises, the connection is answered.
            code = getattr(error, "code", None)
            if isinstance(code, str):
                return _error(code, str(error))
            _log.exception("rpc handler failed: method=%s", request["method"])
            return _error("internal", "internal error")


def _error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


def call(
    path: Path,
    method: str,
    params: Mapping[str, Any],
    timeout_s: float = DEFAULT_TIMEOUT_S,
    *,
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
) -> Any:
    """Call ``method`` of the server at ``path`` on a connection of its own.

    Args:
        path: The socket.
        method: Name of the method.
        params: Canonical JSON.
        timeout_s: For connecting, sending and the answer, each.
        max_message_bytes: Bound of the request and of the answer.

    Returns:
        What the handler returned.

    Raises:
        RpcFault: The server answered with an error.
        RpcUnavailable: No server, no answer in time, or not an answer.
        FormatError: The request is not canonical JSON, or too large: it was not sent.
    """
    observer = _Observing.observer
    if observer is None:
        answer, _ = _exchange(path, method, {"method": method, "params": dict(params)}, timeout_s, max_message_bytes)
        return answer
    trace = observer.traceparent()
    request = {"method": method, "params": dict(params)} | ({"traceparent": trace} if trace else {})
    began_s = time.monotonic()
    outcome, served_us = "ok", None
    try:
        answer, served_us = _exchange(path, method, request, timeout_s, max_message_bytes)
    except LicetAttestationError as error:
        outcome = str(error.code)
        raise
    finally:
        observer.called(path, method, outcome, time.monotonic() - began_s, served_us)
    return answer


def _exchange(
    path: Path, method: str, value: dict[str, Any], timeout_s: float, max_message_bytes: int
) -> tuple[Any, tuple[int, int] | None]:
    """Send a request and receive its answer; also when it was served, if the server says so."""
    request = _frame(value, max_message_bytes)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout_s)
            with _address(path) as address:
                sock.connect(address)
            try:
                _send(sock, request, timeout_s)
            except (BrokenPipeError, ConnectionResetError):
                _log.debug("rpc peer closed before the request was sent: method=%s", method)
            # A server that refuses this user answers and closes without reading: its answer is still to be read.
            answer = _receive(sock, max_message_bytes, timeout_s, timeout_s)
    except (_Closed, OSError) as error:
        raise RpcUnavailable(f"{path}: no answer to {method}: {error or 'closed'}") from error
    except FormatError as error:
        raise RpcUnavailable(f"{path}: not an answer to {method}: {error}") from error
    served_us = None
    if isinstance(answer, dict) and "served_us" in answer:
        match answer.pop("served_us"):
            case [int(began_us), int(ended_us)] if 0 <= began_us <= ended_us:
                served_us = (began_us, ended_us)
    if isinstance(answer, dict) and set(answer) == {"ok"}:
        return answer["ok"], served_us
    match answer:
        case {"error": {"code": str(code), "message": str(message)}}:
            raise RpcFault(code, message)
    raise RpcUnavailable(f"{path}: not an answer to {method}")
