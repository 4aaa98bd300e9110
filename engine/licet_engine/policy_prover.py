"""The worker's prover: has policies examined that are in force and were not, such as those that a tenant comes with.

Rules kept here:

- One at a time, by all slots of a machine together, in a process as for what is published; with less of a claim to the processor than that, for
  nobody waits for it.
- The same bundle is proved once, whichever tenants have it: the attestation of each says when that was.
- What could not be told (it takes too long, the process was killed, the solver is not there) is not attested. It is told in the log, and tried
  again after a while. What was refuted is attested as such, and told.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from licet_attestations.isolation_pair import BUNDLE_SUBJECT
from licet_attestations.statement import TEST_RESULT, Statement, Subject
from licet_engine.domain.refs import now_ms
from licet_engine.lifecycle import examiner
from licet_engine.lifecycle.deed import Door
from licet_engine.lifecycle.publication import examination_told
from licet_engine.settings import Settings
from licet_engine.workbench.examination import BUNDLE_FILE
from licet_engine.workbench.verdict import proved, summary

logger = logging.getLogger(__name__)

RETRY_S: Final = 600
"""After how long it is tried again to prove what could not be told of."""
_MAX_KEPT: Final = 64

Attest = Callable[[str, bytes], bytes]
"""Has a tenant's statement signed."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What was found of a bundle, and when."""

    report: dict[str, Any]
    began_ms: int
    ended_ms: int


class PolicyProver:
    """Proves what is due, until the process ends.

    Args:
        settings: Of the installation.
        door: The internal door of the api.
        attest: Has a statement signed.
    """

    def __init__(self, settings: Settings, door: Door, attest: Attest) -> None:
        self._settings = settings
        self._door = door
        self._attest = attest
        self._found: dict[str, _Found] = {}
        self._put_off: dict[str, int] = {}
        self._thread = threading.Thread(target=self._run, name="licet-policy-prover", daemon=True)

    def start(self) -> None:
        """Begin, if it is wanted here."""
        if self._settings.prove_every_s:
            self._thread.start()

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            try:
                while self.turn():
                    pass
            except Exception as error:  # noqa: BLE001  # Whatever it was: this thread is the only one that does it, and it is due still.
                logger.warning("policies cannot be proved now", extra={"reason": f"{type(error).__name__}: {error}"})
            pause.wait(self._settings.prove_every_s)

    def turn(self) -> bool:
        """Have the next bundle examined that is due; whether there was one."""
        at_ms = now_ms()
        self._put_off = {name: until_ms for name, until_ms in self._put_off.items() if until_ms > at_ms}
        lock = os.open(self._settings.worker_data / "proving.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False  # Another slot's worker is at it.
            due: dict[str, str] = self._door.call("unproved_next", put_off=sorted(self._put_off))
            if not due:
                return False
            self._prove(due["tenant"], due["body"].encode())
            return True
        finally:
            os.close(lock)

    def _prove(self, tenant: str, body: bytes) -> None:
        bundle_hex = hashlib.sha256(body).hexdigest()
        found = self._found.get(bundle_hex)
        if found is None:
            self._put_off[bundle_hex] = now_ms() + RETRY_S * 1000  # Should it not come back, or not be told.
            found = self._examine(body)
            if proved(found.report) is None:
                told = {"tenant": tenant, "bundle": bundle_hex, "found": _why(found.report)}
                logger.error("whether policies in force keep the invariants cannot be told", extra=told)
                return
            while len(self._found) >= _MAX_KEPT:
                del self._found[next(iter(self._found))]
            self._found[bundle_hex] = found
        envelope = self._attest(tenant, statement(tenant, bundle_hex, found).to_bytes())
        digest: Any = self._door.call("unproved_end", envelope=envelope.decode())["digest"]
        self._put_off.pop(bundle_hex, None)
        told = {"tenant": tenant, "bundle": bundle_hex, "attestation": str(digest)}
        if proved(found.report):
            logger.info("policies in force are proved", extra=told)
        else:
            logger.critical("policies in force break an invariant", extra=told | {"found": _why(found.report)})

    def _examine(self, body: bytes) -> _Found:
        began_ms = now_ms()
        with tempfile.TemporaryDirectory(prefix="licet-proving-", dir=self._settings.worker_data) as folder:
            Path(folder, BUNDLE_FILE).write_bytes(body)
            examined = examiner.run(Path(folder), longest_s=self._settings.examination_s, kind="bundle")
        return _Found(dict(examined.report), began_ms, now_ms())


def statement(tenant: str, bundle_hex: str, found: _Found) -> Statement:
    """in-toto test-result of what was proved of a bundle in force.

    Source: github.com/in-toto/attestation spec/predicates/test-result.md.
    """
    holds = bool(proved(found.report))
    predicate = {
        "tenant": tenant,
        "result": "PASSED" if holds else "FAILED",
        "configuration": [],
        "passedTests": ["proofs"] if holds else [],
        "failedTests": [] if holds else ["proofs"],
        **examination_told(found.report, began_ms=found.began_ms, ended_ms=found.ended_ms),
    }
    return Statement((Subject(BUNDLE_SUBJECT, bundle_hex),), TEST_RESULT, predicate)


def _why(report: dict[str, Any]) -> str:
    said = "; ".join(str(one["message"]) for one in report.get("findings", ())[:3])
    return f"{summary(report)}: {said}"
