"""Whether the places where adapters keep things can be reached, as the worker finds it and the others see it.

Rules kept here:

- The worker alone has credentials, so it alone asks, now and then, in a thread of its own: a place that hangs holds up
  nothing else.
- What it finds is in two files. While the one is there, something is away: that it is there the api sees. While the other is, a lock
  that was set is not there, or could not be looked at. What stands in them is for whoever looks after the installation.
- Nothing is told as mended that was not seen to be: while an adapter does not answer, what was known of its locks stands, also over
  a restart of the worker.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from licet_adapters.errors import AdapterError
from licet_adapters.ports import Checkable, LockKeeper

logger = logging.getLogger(__name__)

CHECK_EVERY_S: Final = 10.0
LOCKS_EVERY_S: Final = 3600.0
LOCKS_AGAIN_S: Final = 60.0
"""After a look that some adapter did not answer."""
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
            except Exception as error:  # noqa: BLE001  # Anybody's adapter: what it cannot say is no yes.
                faults[name] = _fault(error, "its check")
        codes = {name: fault["code"] for name, fault in faults.items()}
        if codes != self._told:
            for name in sorted(codes.keys() | self._told.keys()):
                told = {"adapter": name, "code": codes.get(name, "")}
                logger.warning("the storage is away" if name in codes else "the storage is there again", extra=told)
            self._told = codes
        if not faults:
            self._report.unlink(missing_ok=True)
            return
        _write(self._report, faults, {})


class LockWatch:
    """Looks for the locks that adapters had set on what is held, and writes down which are not there, or cannot be looked at.

    That one is missing takes nothing away from anybody: it is told to whoever looks after the installation, and to nobody else.

    Args:
        adapters: By name.
        report: The file to write; what stands in it already is known.
        every_s: How often.
    """

    def __init__(self, adapters: Mapping[str, Any], report: Path, every_s: float = LOCKS_EVERY_S) -> None:
        self._adapters = {name: adapter for name, adapter in adapters.items() if isinstance(adapter, LockKeeper)}
        self._report = report
        self._every_s = every_s
        self._faults: dict[str, str] = {}
        self._told: dict[str, str] = {}
        try:
            before = read_report(report)
        except (OSError, ValueError) as error:
            logger.warning("what was known of locks cannot be read", extra={"reason": type(error).__name__})
        else:
            self._faults = {name: told for name, told in before.faults.items() if name in self._adapters}

    def start(self) -> None:
        """Look now and then, until the process ends."""
        threading.Thread(target=self._go_on, name="licet-lock-watch", daemon=True).start()

    def _go_on(self) -> None:
        pause = threading.Event()
        while True:
            pause_s = LOCKS_AGAIN_S
            try:
                if self.look():
                    pause_s = self._every_s
            except OSError as error:
                logger.warning("what is known of locks cannot be written", extra={"reason": str(error.strerror)})
            if not self._adapters:
                return
            pause.wait(pause_s)

    def look(self) -> bool:
        """Ask each once, and write down what was found; return whether each answered."""
        unseen: dict[str, dict[str, str]] = {}
        has_answered = True
        for name, adapter in self._adapters.items():
            try:
                found = adapter.look_for_locks(LOCKS_AT_ONCE)
            except Exception as error:  # noqa: BLE001  # Anybody's adapter: what was known stands, for that it is mended is not known.
                has_answered = False
                unseen[name] = fault = _fault(error, "its look for locks")
                if self._told.get(name) != fault["code"]:
                    self._told[name] = fault["code"]
                    extra = {"adapter": name, "code": fault["code"], "reason": fault["told"]}
                    logger.warning("locks cannot be looked for", extra=extra)
                continue
            self._told.pop(name, None)
            self._faults.pop(name, None)
            if found.missing:
                logger.error("holds are missing in the store", extra={"adapter": name, "missing": len(found.missing)})
                self._faults[name] = _counted(found.missing, "of what is held lost its lock")
            if found.unseen:
                told = _counted(found.unseen, "of what is held cannot be looked at")
                logger.warning(
                    "some locks cannot be looked at",
                    extra={"adapter": name, "unseen": len(found.unseen), "reason": told},
                )
                unseen[name] = {"code": "locks.unseen", "told": told}
        if self._faults or unseen:
            missing = {name: {"code": "locks.missing", "told": told} for name, told in self._faults.items()}
            _write(self._report, missing, unseen)
        else:
            self._report.unlink(missing_ok=True)
        return has_answered


def _counted(sentences: Sequence[str], what: str) -> str:
    told = "; ".join(sentences[:_MOST_NAMED]) + (" ..." if len(sentences) > _MOST_NAMED else "")
    return f"{len(sentences)} {what}: {told}"[:_MAX_TOLD_CHARS]


def _fault(error: Exception, what: str) -> dict[str, str]:
    if isinstance(error, AdapterError):
        return {"code": error.code, "told": str(error)[:_MAX_TOLD_CHARS]}
    return {"code": "adapter.broken", "told": f"{what} failed: {type(error).__name__}"}


def _write(report: Path, faults: Mapping[str, Mapping[str, str]], unseen: Mapping[str, Mapping[str, str]]) -> None:
    part = report.with_name(f".tmp-{secrets.token_hex(8)}")
    part.write_text(json.dumps({"v": 1, "faults": faults, "unseen": unseen}, sort_keys=True), encoding="utf-8")
    part.replace(report)


def is_away(report: Path) -> bool:
    """Whether something was away when the worker last looked."""
    return report.exists()


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What stands in one of the files.

    Attributes:
        faults: What is away or wrong, adapter to reason.
        unseen: What could not be looked at, likewise.
    """

    faults: Mapping[str, str]
    unseen: Mapping[str, str]


def read_report(report: Path) -> Report:
    """What stands in a file; nothing where it is not there.

    Raises:
        OSError: The report is closed to this user.
        ValueError: It is none.
    """
    try:
        with report.open("rb") as file:
            value = json.loads(file.read(_MAX_REPORT_BYTES))
    except FileNotFoundError:
        return Report(faults={}, unseen={})
    match value:
        case {"v": 1, "faults": dict(faults), "unseen": dict(unseen)}:
            return Report(faults=_told(faults), unseen=_told(unseen))
        case {"v": 1, "faults": dict(faults)}:  # As an earlier version wrote it.
            return Report(faults=_told(faults), unseen={})
    raise ValueError("not a report")


def _told(part: Mapping[str, Any]) -> dict[str, str]:
    try:
        return {name: str(fault["told"]) for name, fault in part.items()}
    except (KeyError, TypeError) as error:
        raise ValueError("not a report") from error
