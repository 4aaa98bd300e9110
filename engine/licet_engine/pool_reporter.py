"""Tells the api which devices a worker's machine has: a thread of the worker's, beside the courier.

Rules kept here:

- Whatever goes wrong is told in the log and tried again, for nothing else would tell the api.
- Where nothing can be told, no device is reported as gone: runs are at work on them.
- A machine is named by what was chosen at random for its data folder. Its host name alone, which another may have too,
  stands before it for people.
"""

from __future__ import annotations

import contextlib
import logging
import platform
import re
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from licet_adapters.errors import Unavailable
from licet_adapters.ports import Device
from licet_attestations.signer.files import create_durably
from licet_engine.lifecycle.deed import Door

logger = logging.getLogger(__name__)

_REPORT_EVERY_S: Final = 30.0
_MAX_HOST_CHARS: Final = 40


class PoolReporter:
    """Tells the api which devices this worker has, again and again, on a thread of its own.

    Args:
        door: Of the api.
        worker: Of which machine: its workers share what it has.
        find: Finds the devices; may take its time, and raises ``Unavailable`` where they cannot be told.
    """

    def __init__(self, door: Door, worker: str, find: Callable[[], Sequence[Device]]) -> None:
        self._door = door
        self._worker = worker
        self._find = find
        self._thread = threading.Thread(target=self._run, name="licet-devices", daemon=True)

    def start(self) -> None:
        """Begin; it goes on until the process ends."""
        self._thread.start()

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            try:
                self._door.call("devices", worker=self._worker, devices=self._look())
            except Exception as error:  # noqa: BLE001 - whatever it is, it is tried again, and must be.
                logger.warning("devices cannot be reported", extra={"reason": f"{type(error).__name__}: {error}"})
            pause.wait(_REPORT_EVERY_S)

    def _look(self) -> list[dict[str, Any]] | None:
        """What there is; None where it cannot be told now."""
        try:
            return [asdict(device) for device in self._find()]
        except Unavailable as error:
            logger.warning("which devices there are cannot be told", extra={"reason": str(error)})
            return None


def machine_name(folder: Path) -> str:
    """The name of the machine whose workers keep their files in ``folder``; chosen once."""
    path = folder / "machine-id"
    host = re.sub(r"[^A-Za-z0-9.-]", "-", platform.node())[:_MAX_HOST_CHARS] or "machine"
    # Another slot's worker may be the first; then its choice stands.
    with contextlib.suppress(FileExistsError):
        create_durably(path, f"{host}-{secrets.token_hex(8)}".encode())
    return path.read_text(encoding="ascii")
