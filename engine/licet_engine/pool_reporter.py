"""Tells the api which devices a worker's machine has: a thread of the worker's, beside the courier.

Rule kept here: whatever goes wrong is told in the log and tried again, for nothing else would tell the api.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Final

from licet_adapters.ports import Device
from licet_engine.lifecycle.deed import Door

logger = logging.getLogger(__name__)

_REPORT_EVERY_S: Final = 30.0


class PoolReporter:
    """Tells the api which devices this worker has, again and again, on a thread of its own.

    Args:
        door: Of the api.
        worker: Of which machine: its workers share what it has.
        find: Finds the devices; may take its time.
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
                found = [asdict(device) for device in self._find()]
                self._door.call("devices", worker=self._worker, devices=found)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is tried again, and must be.
                logger.warning("devices cannot be reported", extra={"reason": f"{type(error).__name__}: {error}"})
            pause.wait(_REPORT_EVERY_S)
