"""The worker's prover: has policies examined that are in force and were not, such as those that a tenant comes with.

Rules kept here:

- One at a time, by all slots of a machine together, in a process as for what is published; with less of a claim to the processor than that, for
  nobody waits for it, and so with more time.
- Each tenant's are examined for it alone, also where another has the same: when somebody else's were is nothing that its log may tell.
- What could not be told (it takes too long, the process was killed, the solver is not there) is not attested. It is told in the log, and tried
  again later and later. What was refuted is attested as such, and told.
- What keeps one tenant's from being signed or logged keeps nobody else's: it is passed over meanwhile.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import threading
from typing import Any, Final

from licet_adapters.errors import AdapterError
from licet_attestations.isolation_pair import BUNDLE_SUBJECT, ISOLATION_INVARIANT
from licet_attestations.statement import TEST_RESULT, Statement, Subject
from licet_engine.domain.errors import Unavailable
from licet_engine.domain.refs import now_ms
from licet_engine.evidence.attesting import Attest
from licet_engine.lifecycle import examiner
from licet_engine.lifecycle.deed import Door
from licet_engine.lifecycle.publication import examination_told
from licet_engine.processes import alone
from licet_engine.settings import Settings
from licet_engine.unproved import MAX_PUT_OFF
from licet_engine.workbench.examination import BUNDLE_FILE
from licet_engine.workbench.verdict import proved, summary

logger = logging.getLogger(__name__)

RETRY_S: Final = 600
"""After how long it is first tried again to prove what could not be told of; twice as long each time."""
_LONGEST_RETRY_S: Final = 86_400
AGAIN_S: Final = 60
"""After how long it is tried again to have signed and logged what was found."""
_MAX_TOLD: Final = 3
_TIMES_AS_LONG: Final = 4
"""As what is published, an examination may take: others have the processor first."""


class CannotTell(Unavailable):
    """Whether a bundle keeps the invariants could not be told."""


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
        self._put_off: dict[str, int] = {}
        self._untold: dict[str, int] = {}
        self._folder = settings.worker_data / "proving"
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
        if len(self._put_off) >= MAX_PUT_OFF:
            return False
        with alone(self._settings.worker_data / "proving.lock") as is_alone:
            if not is_alone:
                return False  # Another slot's worker is at it.
            due: dict[str, str] = self._door.call("unproved_next", put_off=sorted(self._put_off))
            if not due:
                return False
            self._try(due["tenant"], due["bundle"], due["body"].encode())
            return True

    def _try(self, tenant: str, bundle_hex: str, body: bytes) -> None:
        told: dict[str, Any] = {"tenant": tenant, "bundle": bundle_hex}
        try:
            self._prove(tenant, bundle_hex, body)
        except CannotTell as error:
            # Of the same bytes nothing else will be told for anybody.
            self._untold[bundle_hex] = again = self._untold.get(bundle_hex, 0) + 1
            pause_s = min(RETRY_S << min(again - 1, 16), _LONGEST_RETRY_S)
            self._put_off[bundle_hex] = now_ms() + pause_s * 1000
            logger.error(  # noqa: TRY400  # The reason is all there is to it.
                "whether policies in force keep the invariants cannot be told", extra=told | {"reason": str(error)}
            )
        except Exception as error:  # noqa: BLE001  # Whatever it was, the others' are not to wait for it.
            self._put_off[f"{tenant}/{bundle_hex}"] = now_ms() + AGAIN_S * 1000
            told |= {"reason": f"{type(error).__name__}: {error}"}
            logger.warning("policies in force cannot be proved now", extra=told)

    def _prove(self, tenant: str, bundle_hex: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != bundle_hex:
            raise CannotTell("the policies that are stored are not what their digest says: run licet log fsck")
        began_ms = now_ms()
        report = self._examine(body)
        claim = statement(tenant, bundle_hex, report, began_ms=began_ms, ended_ms=now_ms())
        envelope = self._attest(tenant, claim.to_bytes())
        digest: Any = self._door.call("unproved_end", envelope=envelope.decode())["digest"]
        self._untold.pop(bundle_hex, None)
        told = {"tenant": tenant, "bundle": bundle_hex, "attestation": str(digest)}
        if proved(report):
            logger.info("policies in force are proved", extra=told)
            return
        is_breached = claim.predicate["proofs"].get(ISOLATION_INVARIANT) != "proved"
        level = logging.CRITICAL if is_breached else logging.ERROR
        logger.log(level, "policies in force break an invariant", extra=told | {"found": _why(report)})

    def _examine(self, body: bytes) -> dict[str, Any]:
        """The report of a bundle of which everything could be told.

        Raises:
            CannotTell: Not everything could.
        """
        # One that was broken off left it. Nobody else is at it, by the lock.
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(mode=0o700)
        try:
            (self._folder / BUNDLE_FILE).write_bytes(body)
            longest_s = self._settings.examination_s * _TIMES_AS_LONG
            report = dict(examiner.run(self._folder, longest_s=longest_s, kind="bundle").report)
        except (AdapterError, Unavailable) as error:
            raise CannotTell(str(error)) from error
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
        if proved(report) is None:
            raise CannotTell(_why(report))
        return report


def statement(tenant: str, bundle_hex: str, report: dict[str, Any], *, began_ms: int, ended_ms: int) -> Statement:
    """in-toto test-result of what was proved of a bundle in force.

    Source: github.com/in-toto/attestation spec/predicates/test-result.md.
    """
    holds = bool(proved(report))
    predicate = {
        "tenant": tenant,
        "result": "PASSED" if holds else "FAILED",
        "configuration": [],
        "passedTests": ["proofs"] if holds else [],
        "failedTests": [] if holds else ["proofs"],
        **examination_told(report, began_ms=began_ms, ended_ms=ended_ms),
    }
    return Statement((Subject(BUNDLE_SUBJECT, bundle_hex),), TEST_RESULT, predicate)


def _why(report: dict[str, Any]) -> str:
    said = "; ".join(str(one["message"]) for one in report.get("findings", ())[:_MAX_TOLD])
    return f"{summary(report)}: {said}"
