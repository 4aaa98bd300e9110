"""A way to a PostgreSQL server that is cut at a commit. Found through ``sys.path`` by ``conftest.py``."""

from __future__ import annotations

import contextlib
import selectors
import shutil
import socket
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Final, Literal

Cut = Literal["unsent", "unheard", "raced", "late"]
"""How a commit is cut: the server never has it; its answer is never heard; the client hangs up as it is sent; it comes after the client
hung up, as from a network that still held it."""
CUTS: Final[tuple[Cut, ...]] = ("unsent", "unheard", "raced", "late")

_COMMIT: Final = b"Q\x00\x00\x00\x0bCOMMIT\x00"
_NAME: Final = ".s.PGSQL.5432"
_LATE_S: Final = 0.3
_HEARD_WITHIN_S: Final = 10.0
_CHUNK: Final = 1 << 16


class CommitCutter:
    """Passes everything on between a socket of its own and a server's, but for the commits that it is to cut.

    Attributes:
        folder: Of its socket; what a client names as host.
        cuts: How many commits were cut, by how.
    """

    def __init__(self, server: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="lcut"))
        self.cuts: Counter[Cut] = Counter()
        self._server = str(server / _NAME)
        self._lock = threading.Lock()  # Guards the four below.
        self._how: Cut = "unsent"
        self._passing = 0
        self._cutting = 0
        self._closed_for_s = 0.0
        self._closed_until_s = 0.0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.folder / _NAME))
        self._listener.listen(64)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def arm(self, how: Cut, *, after: int, times: int = 1, closed_for_s: float = 0.0) -> None:
        """Cut commits.

        Args:
            how: In which way.
            after: How many are let through first.
            times: How many are cut, one after the other.
            closed_for_s: For how long after a cut nobody is let in.
        """
        with self._lock:
            self._how, self._passing, self._cutting, self._closed_for_s = how, after, times, closed_for_s

    def disarm(self) -> None:
        """Cut nothing any more, and let in who comes."""
        with self._lock:
            self._cutting, self._closed_until_s = 0, 0.0

    def close(self) -> None:
        """Take nobody any more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
        shutil.rmtree(self.folder)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server, contextlib.suppress(OSError):
            with self._lock:
                if time.monotonic() < self._closed_until_s:
                    return
            server.connect(self._server)
            with selectors.DefaultSelector() as selector:
                selector.register(client, selectors.EVENT_READ, server)
                selector.register(server, selectors.EVENT_READ, client)
                while True:
                    for key, _ in selector.select():
                        source, target = key.fileobj, key.data
                        assert isinstance(source, socket.socket)
                        data = source.recv(_CHUNK)
                        if not data:
                            return
                        if source is client and data == _COMMIT and (how := self._next()) is not None:
                            self._cut(how, client, server)
                            return
                        target.sendall(data)

    def _next(self) -> Cut | None:
        with self._lock:
            if not self._cutting:
                return None
            if self._passing:
                self._passing -= 1
                return None
            self._cutting -= 1
            self._closed_until_s = time.monotonic() + self._closed_for_s
            self.cuts[self._how] += 1
            return self._how

    @staticmethod
    def _cut(how: Cut, client: socket.socket, server: socket.socket) -> None:
        match how:
            case "unsent":
                pass
            case "unheard":
                server.sendall(_COMMIT)
                server.settimeout(_HEARD_WITHIN_S)
                server.recv(_CHUNK)  # It was made, or refused; nobody is told.
            case "raced":
                server.sendall(_COMMIT)
            case "late":
                client.shutdown(socket.SHUT_RDWR)
                time.sleep(_LATE_S)
                server.sendall(_COMMIT)
                server.settimeout(_HEARD_WITHIN_S)
                server.recv(_CHUNK)
