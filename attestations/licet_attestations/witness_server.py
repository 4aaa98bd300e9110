"""``python -m licet_attestations.witness_server FOLDER``: a witness on HTTP, for an auditor's own machine.

Rules kept here:

- One door: ``POST PREFIX/add-checkpoint``. Whoever can reach it may ask; what counts is the log's signature in what they send.
- Bounded: connections at a time, the time of each, the bytes of a request. Whoever sends a byte now and then is cut off.
- Plain HTTP: put a proxy with a certificate before it, unless it and the log are on one machine.

Source: C2SP tlog-witness (v0).
"""

from __future__ import annotations

import contextlib
import logging
import re
import signal
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any

import click

from licet_attestations.errors import LicetAttestationError
from licet_attestations.vkey import LOG_KIND, VerifierKey
from licet_attestations.witness import MAX_REQUEST_BYTES, TEXT_TYPE, Reply, Witness, WitnessError

if TYPE_CHECKING:
    from types import FrameType

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 64
CONNECTION_S = 30.0
"""A connection lives so long, however many requests it brings."""
_MAX_LOGS_BYTES = 4 * 1024 * 1024
_PATH = re.compile(r"[A-Za-z0-9._~/-]{0,128}/add-checkpoint")
_LENGTH = re.compile(r"0|[1-9][0-9]{0,7}")
COULD_NOT_RUN = 2


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "licet-witness"
    sys_version = ""
    timeout = 10.0  # For each read and write; the connection as a whole has a deadline of its own.
    server: WitnessServer

    def do_POST(self) -> None:  # As http.server calls it.
        """Answer a request to cosign."""
        length = self.headers.get("Content-Length", "")
        if self.headers.get("Transfer-Encoding") is not None or not _LENGTH.fullmatch(length):
            self._refuse(Reply(411, "the length of the body must be given\n"))
        elif int(length) > MAX_REQUEST_BYTES:
            self._refuse(Reply(413, f"a request has at most {MAX_REQUEST_BYTES} bytes\n"))
        elif _PATH.fullmatch(self.path) is None:
            self._refuse(Reply(404, "the one door here is POST /add-checkpoint\n"))
        else:
            body = self.rfile.read(int(length))
            if len(body) != int(length):
                self.close_connection = True
                return
            reply = self.server.witness.add_checkpoint(body)
            logger.info("answered %d", reply.status)
            self._send(reply)

    def do_GET(self) -> None:  # As above.
        """There is nothing to read here."""
        self._refuse(Reply(404, "the one door here is POST /add-checkpoint\n"))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # The base class's name.
        """Say nothing of what a caller sent."""

    def _refuse(self, reply: Reply) -> None:
        self.close_connection = (
            True  # The body was not read: what follows on this connection would be taken for a request.
        )
        self._send(reply)

    def _send(self, reply: Reply) -> None:
        body = reply.body.encode()
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type or TEXT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


class WitnessServer(ThreadingMixIn, TCPServer):
    """Serves one witness.

    Args:
        address: Host and port.
        witness: What answers.
        connection_s: How long a connection may live.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], witness: Witness, connection_s: float = CONNECTION_S) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.witness = witness
        self._connection_s = connection_s
        self._places = threading.Semaphore(MAX_CONNECTIONS)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """See ``TCPServer``: one connection, if there is a place for it."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """See ``ThreadingMixIn``: one connection, cut off when its time is over."""

        def cut() -> None:
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(self._connection_s, cut)
        timer.daemon = True
        timer.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            timer.cancel()
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """See ``TCPServer``: callers that break off are no news."""
        del request, client_address
        logger.debug("a connection broke")


def read_logs(path: Path) -> list[VerifierKey]:
    """The logs in a file, a ``vkey`` a line; blank lines and those that begin with # are passed over.

    Raises:
        FormatError: A line is none.
        OSError: The file cannot be read.
    """
    with path.open("rb") as stream:
        text = stream.read(_MAX_LOGS_BYTES).decode("utf-8", "replace")
    lines = (line.strip() for line in text.split("\n"))
    return [VerifierKey.from_text(line, LOG_KIND) for line in lines if line and not line.startswith("#")]


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65_535:  # noqa: PLR2004  # The highest port.
        raise click.BadParameter(f"{text!r} is not HOST:PORT", param_hint="--listen")
    return host.removeprefix("[").removesuffix("]"), int(port)


def serve(witness: Witness, address: tuple[str, int]) -> None:
    """Serve until the process is told to stop."""
    with WitnessServer(address, witness) as server:

        def stop(_number: int, _frame: FrameType | None) -> None:
            threading.Thread(target=server.shutdown, daemon=True).start()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        host, port = server.server_address[:2]
        shown = f"[{host!s}]" if ":" in str(host) else str(host)
        click.echo(f"witness {witness.verifier_key.to_text()}")
        click.echo(f"listening on http://{shown}:{port}/add-checkpoint")
        server.serve_forever(poll_interval=0.2)


@click.command(name="witness")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--init", "name", metavar="NAME", help="Make a new witness of this name (such as witness.example/w1).")
@click.option("--log", "logs", multiple=True, metavar="VKEY", help="Key of a log that it knows. Repeatable.")
@click.option("--logs", "files", multiple=True, type=click.Path(path_type=Path), help="File of such, one a line.")
@click.option("--listen", default="127.0.0.1:8450", show_default=True, metavar="HOST:PORT", help="Where it answers.")
def witness_command(
    folder: Path, name: str | None, logs: tuple[str, ...], files: tuple[Path, ...], listen: str
) -> None:
    """Run a witness of your own: it cosigns checkpoints that extend the last it saw. FOLDER holds its key and its state.

    Run it on a machine that whoever runs the log cannot reach. Never restore FOLDER from a backup: begin a new witness.
    """
    try:
        if name is not None:
            click.echo(Witness.create(folder, name).to_text())
            return
        known = [VerifierKey.from_text(text, LOG_KIND) for text in logs]
        known += [log for path in files for log in read_logs(path)]
        if not known:
            raise WitnessError("it knows no log: name one with --log or --logs (licet log vkey TENANT shows the key)")
        witness = Witness(folder, known, lambda: int(time.time()))
        serve(witness, _address(listen))
    except FileExistsError as error:
        click.echo(f"error: {folder} has a witness already; it was left as it was", err=True)
        raise click.exceptions.Exit(COULD_NOT_RUN) from error
    except (LicetAttestationError, OSError) as error:
        reason = f"{error.filename or listen}: {error.strerror}" if isinstance(error, OSError) else str(error)
        click.echo(f"error: {reason}", err=True)
        raise click.exceptions.Exit(COULD_NOT_RUN) from error


if __name__ == "__main__":
    witness_command(prog_name="python -m licet_attestations.witness_server")
