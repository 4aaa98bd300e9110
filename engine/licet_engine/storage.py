"""Whether the places where adapters keep things can be reached, as the worker finds it and the others see it.

Rules kept here:

- The worker alone has credentials, so it alone asks, now and then, in a thread of its own: a place that hangs holds up
  nothing else.
- What it finds is one file: while it is there, something is away. That it is there the api sees; what stands in it, for
  whoever looks after the installation, is the worker's to read.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from licet_adapters.errors import AdapterError
from licet_adapters.ports import Checkable, LockKeeper

logger = logging.getLogger(__name__)

CHECK_EVERY_S: Final = 10.0
LOCKS_EVERY_S: Final = 3600.0
LOCKS_AT_ONCE: Final = 1000
_MOST_NAMED: Final = 5
_MAX_REPORT_BYTES: Final = 64 << 10
_MAX_TOLD_CHARS: Final = 1000


class StorageWatch:
    """Asks the adapters that can be asked whether their place is there, and writes down which is away.

    Args:
        adapters: By name.
        report: The file to write.
    """

    def __init__(self, adapters: Mapping[str, Any], report: Path) -> None:
        self._adapters = {name: adapter for name, adapter in adapters.items() if isinstance(adapter, Checkable)}
        self._report = report
        self._told: dict[str, str] = {}

    def start(self) -> None:
        """Look now and then, until the process ends."""
        threading.Thread(target=self._go_on, name="licet-storage-watch", daemon=True).start()

    def _go_on(self) -> None:
        pause = threading.Event()
        while True:
            try:
                self.look()
            except OSError as error:  # The disk is full, perhaps; that is told elsewhere.
                logger.warning("what is known of the storage cannot be written", extra={"reason": str(error.strerror)})
            if not self._adapters:
                return
            pause.wait(CHECK_EVERY_S)

    def look(self) -> None:
        """Ask each once, and write down what was found."""
        faults: dict[str, dict[str, str]] = {}
        for name, adapter in self._adapters.items():
            try:
                adapter.check()
            except AdapterError as error:
                faults[name] = {"code": error.code, "told": str(error)[:_MAX_TOLD_CHARS]}
            except Exception as error:  # noqa: BLE001  # Anybody's adapter: what it cannot say is no yes.
                faults[name] = {"code": "adapter.broken", "told": f"its check failed: {type(error).__name__}"}
        codes = {name: fault["code"] for name, fault in faults.items()}
        if codes != self._told:
            for name in sorted(codes.keys() | self._told.keys()):
                told = {"adapter": name, "code": codes.get(name, "")}
                logger.warning("the storage is away" if name in codes else "the storage is there again", extra=told)
            self._told = codes
        if not faults:
            self._report.unlink(missing_ok=True)
            return
        _write(self._report, faults)


class LockWatch:
    """Looks for the locks that adapters had set on what is held, and writes down which are not there.

    That one is missing takes nothing away from anybody: it is told to whoever looks after the installation, and to nobody else.

    Args:
        adapters: By name.
        report: The file to write.
        every_s: How often.
    """

    def __init__(self, adapters: Mapping[str, Any], report: Path, every_s: float = LOCKS_EVERY_S) -> None:
        self._adapters = {name: adapter for name, adapter in adapters.items() if isinstance(adapter, LockKeeper)}
        self._report = report
        self._every_s = every_s
        self._faults: dict[str, dict[str, str]] = {}

    def start(self) -> None:
        """Look now and then, until the process ends."""
        threading.Thread(target=self._go_on, name="licet-lock-watch", daemon=True).start()

    def _go_on(self) -> None:
        pause = threading.Event()
        while True:
            try:
                self.look()
            except OSError as error:
                logger.warning("what is known of locks cannot be written", extra={"reason": str(error.strerror)})
            if not self._adapters:
                return
            pause.wait(self._every_s)

    def look(self) -> None:
        """Ask each once, and write down what was found."""
        for name, adapter in self._adapters.items():
            try:
                missing = adapter.missing_locks(LOCKS_AT_ONCE)
            except Exception as error:  # noqa: BLE001  # Anybody's adapter: what was known stands, for that it is mended is not known.
                logger.warning("locks cannot be looked for", extra={"adapter": name, "reason": type(error).__name__})
                continue
            self._faults.pop(name, None)
            if missing:
                told = "; ".join(missing[:_MOST_NAMED]) + (" ..." if len(missing) > _MOST_NAMED else "")
                logger.error("holds are missing in the store", extra={"adapter": name, "missing": len(missing)})
                told = f"{len(missing)} of what is held lost its lock: {told}"
                self._faults[name] = {"code": "locks.missing", "told": told[:_MAX_TOLD_CHARS]}
        if self._faults:
            _write(self._report, self._faults)
        else:
            self._report.unlink(missing_ok=True)


def _write(report: Path, faults: Mapping[str, Mapping[str, str]]) -> None:
    part = report.with_name(f".tmp-{secrets.token_hex(8)}")
    part.write_text(json.dumps({"v": 1, "faults": faults}, sort_keys=True), encoding="utf-8")
    part.replace(report)


def is_away(report: Path) -> bool:
    """Whether something was away when the worker last looked."""
    return report.exists()


def faults_of(report: Path) -> dict[str, str]:
    """What is away or wrong, adapter to reason; empty if nothing is.

    Raises:
        OSError: The report is closed to this user.
        ValueError: It is none.
    """
    try:
        with report.open("rb") as file:
            value = json.loads(file.read(_MAX_REPORT_BYTES))
    except FileNotFoundError:
        return {}
    match value:
        case {"v": 1, "faults": dict(faults)}:
            return {str(name): str(fault["told"]) for name, fault in faults.items()}
    raise ValueError("not a report")
