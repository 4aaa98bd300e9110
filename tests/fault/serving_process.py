"""A router in a process of its own, for tests that kill it: signer and door are reached over sockets, as in the field."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import Any

from licet_adapters.ports import CONTROL_SOCKET
from licet_adapters.serving.router import RouterConfig, build_router
from licet_attestations import rpc
from licet_attestations.signer.client import SignerClient


class SocketDoor:
    """The internal door over its socket."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def call(self, method: str, **params: Any) -> Any:
        return rpc.call(self._path, method, params)


def main(folder: str, now_ms: str) -> None:
    """Run on ``folder``, whose sockets are there; say on standard output where requests are taken."""
    root = Path(folder)
    client = SignerClient(root / "run" / "signer.sock")
    config = RouterConfig(data_dir=root / "router", port=0, control_socket=root / "run" / CONTROL_SOCKET)
    router = build_router(config, client.public(), client, SocketDoor(root / "run" / "api.sock"), lambda: int(now_ms))
    signal.signal(signal.SIGTERM, lambda *_: router.ask_to_stop())

    def tell() -> None:
        router.wait_ready(60)
        print(router.address[1], flush=True)  # noqa: T201  # Its one answer.

    threading.Thread(target=tell, daemon=True).start()
    router.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
