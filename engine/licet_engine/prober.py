"""The worker's prober: tries, every so often, everything that there is across the canaries' wall, by itself.

Rules kept here:

- One run at a time and one in each interval, in all slots together: by a lock of the kernel's and the report's word.
- It comes by the front door, as anybody does: over HTTP, with a token.
- A run that cannot be made, or not all of it, is written down as such and tried again soon. A run that broke off is one of these.
- The owner itself must be able to read the canary before and after: or a service that denies everybody everything would pass.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import httpx

from licet_engine.canaries import ACTOR, OWNER
from licet_engine.client import LicetClient
from licet_engine.domain.errors import Unavailable
from licet_engine.domain.refs import PLATFORM, now_ms
from licet_engine.evidence.attesting import Attest
from licet_engine.lifecycle.deed import Door
from licet_engine.probe_report import ProbeReport, is_due, read_report
from licet_engine.probing import CANARY, Probed, probe, probes_statement
from licet_engine.processes import alone
from licet_engine.settings import Settings

logger = logging.getLogger(__name__)

RETRY_S: Final = 300
"""After how long a run that failed is made again, where runs are farther apart than that."""
_LOOK_EVERY_S: Final = 5.0
_TIMEOUT_S: Final = 30.0
_REGISTER_WITHIN_S: Final = 120.0
_MAX_REASON_CHARS: Final = 1000
_MAX_NAMED: Final = 20
_EVERY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104  # Looked up, not listened on.
_ROWS: Final = b"canary,label\n1,yes\n2,no\n"
_FAR_MS: Final = 4_000_000_000_000
_CONTROL: Final = "the canary is not as it was"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:_MAX_REASON_CHARS]


class Prober:
    """Makes runs when they are due, until the process ends.

    Args:
        settings: Of the installation.
        door: The internal door of the api.
        attest: Has a statement signed.
    """

    def __init__(self, settings: Settings, door: Door, attest: Attest) -> None:
        self._settings = settings
        self._door = door
        self._attest = attest
        host = _EVERY_ADDRESS.get(settings.host, f"[{settings.host}]" if ":" in settings.host else settings.host)
        self._url = f"http://{host}:{settings.port}"
        self._thread = threading.Thread(target=self._run, name="licet-prober", daemon=True)

    def start(self) -> None:
        """Begin, if probes are scheduled here."""
        if self._settings.probe_every_s:
            self._thread.start()

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            try:
                self.turn()
            except Exception:  # Whatever it was: this thread is the only one that tries.
                logger.exception("probes cannot be tried")
            pause.wait(_LOOK_EVERY_S)

    def turn(self) -> bool:
        """Make a run if one is due and none is under way; whether one was made."""
        if not self._is_due(self._read()):
            return False
        with alone(self._settings.worker_data / "probes.lock") as is_alone:
            # Another slot's worker may be at it, or have been meanwhile.
            before = self._read()
            if not is_alone or not self._is_due(before):
                return False
            self._keep_unreadable()
            self._make_run(before)
            return True

    def _read(self) -> ProbeReport | None:
        """The report; None where there is none that can be read."""
        try:
            return read_report(self._settings.probe_report)
        except (OSError, ValueError):
            return None

    def _keep_unreadable(self) -> None:
        """Put a report aside that cannot be read, before another takes its place. Under the lock."""
        try:
            read_report(self._settings.probe_report)
        except (OSError, ValueError) as error:
            kept = self._settings.probe_report.with_suffix(".unreadable")
            told = {"reason": str(error), "kept": str(kept)}
            logger.error("the report of probes cannot be read; another is begun", extra=told)  # noqa: TRY400  # The reason is all there is to it.
            with contextlib.suppress(OSError):
                self._settings.probe_report.replace(kept)

    def _is_due(self, report: ProbeReport | None) -> bool:
        return is_due(report, every_s=self._settings.probe_every_s, retry_s=RETRY_S, now_ms=now_ms())

    def _make_run(self, before: ProbeReport | None) -> None:
        last = before or ProbeReport(outcome="failed", began_at_ms=0)
        if last.outcome == "running":
            # Who made it died over it. It counts as failed, and is made again now.
            last = replace(last, failures=last.failures + 1, reason="the run before broke off")
            logger.error("a run of probes broke off", extra={"began_at_ms": last.began_at_ms})
        run = replace(last, outcome="running", began_at_ms=now_ms(), ended_at_ms=0)
        run.write(self._settings.probe_report)
        try:
            found = self._tried()
        except Exception as error:  # noqa: BLE001  # Whatever kept it from being made, that is what is to be told.
            ended = replace(run, outcome="failed", failures=run.failures + 1, reason=_reason(error))
        else:
            ended = self._ended(run, found)
            if ended.findings:
                # What came through is told before anything else is tried, and stands whatever becomes of the rest.
                ended.write(self._settings.probe_report)
            try:
                ended = replace(ended, attested=self._attested(found))
            except Exception as error:  # noqa: BLE001  # As above.
                reason = f"not attested: {_reason(error)}"
                is_found = ended.outcome == "found"
                ended = replace(
                    ended, outcome="found" if is_found else "failed", failures=run.failures + 1, reason=reason
                )
        replace(ended, ended_at_ms=now_ms()).write(self._settings.probe_report)
        if ended.outcome == "failed":
            logger.error("probes were not all tried", extra={"reason": ended.reason, "in_a_row": ended.failures})
        elif ended.outcome == "held":
            logger.info("probes held", extra={"tried": ended.tried})

    @staticmethod
    def _ended(run: ProbeReport, found: Probed) -> ProbeReport:
        run = replace(run, tried=found.tried, attested=())
        if findings := (*found.allowed, *found.told_apart):
            logger.critical("a probe across tenants came through", extra={"probes": list(findings[:_MAX_NAMED])})
            return replace(run, outcome="found", findings=findings, found_at_ms=now_ms(), failures=0, reason="")
        if not found.holds:
            reason = f"not tried: {', '.join(found.not_tried[:_MAX_NAMED]) or 'any'}"
            return replace(run, outcome="failed", failures=run.failures + 1, reason=reason)
        return replace(run, outcome="held", held_at_ms=now_ms(), failures=0, reason="")

    def _tried(self) -> Probed:
        """Make a run; return what was found."""
        given = self._door.call("probes_begin")
        with LicetClient(self._url, given[OWNER]) as keeper:
            self._set_canary(keeper, given["region"])
            headers = {"Authorization": f"Bearer {given[ACTOR]}"}
            with httpx.Client(base_url=self._url, headers=headers, timeout=_TIMEOUT_S, trust_env=False) as http:
                found = probe(http, OWNER)
            try:
                is_there = _is_there(keeper)
            except Exception as error:  # noqa: BLE001  # The canary cannot be looked at any more: what was tried may have done that.
                logger.error("the canary cannot be read after the probes", extra={"reason": _reason(error)})  # noqa: TRY400  # As above.
                is_there = False
            if not is_there:
                found.allowed.append(_CONTROL)
        return found

    def _attested(self, found: Probed) -> tuple[tuple[str, str], ...]:
        """Have what was found signed and logged; return under which digests."""
        attested, ended_at_ms = [], now_ms()
        for tenant in (OWNER, PLATFORM):
            envelope = self._attest(tenant, probes_statement(found, tenant, ended_at_ms).to_bytes())
            digest: Any = self._door.call("probes_end", envelope=envelope.decode())["digest"]
            attested.append((tenant, str(digest)))
        return tuple(attested)

    @staticmethod
    def _set_canary(keeper: LicetClient, region: str) -> None:
        """See that there is something to reach for."""
        if _is_there(keeper):
            return
        with tempfile.TemporaryDirectory(prefix="licet-canary-") as folder:
            path = Path(folder) / "canary.csv"
            path.write_bytes(_ROWS)
            body = keeper.upload(path).to_parameters() | {
                "classification": "internal",
                "residency": [region],
                "uses": ["probes"],
                "expires_at_ms": _FAR_MS,
                "label": "label",
            }
        answer = keeper.act("dataset.register", f"{OWNER}/{CANARY}", body).require()
        if answer.operation is not None:
            keeper.wait(answer.operation, timeout_s=_REGISTER_WITHIN_S)
        if not _is_there(keeper):
            raise Unavailable(f"the canary {OWNER}/{CANARY} cannot be read by its own owner, so a denial says nothing")


def _is_there(keeper: LicetClient) -> bool:
    return keeper.ask("dataset.read", f"{OWNER}/{CANARY}").allowed
