"""What came of the scheduled probes, as the worker writes it down and the others see it: one small file beside the signs of life.

Rules kept here:

- What was found is an alarm until a later run held, and is named for a month after that. That a run could not be made, or that none ended in
  time, is told as well: no alarm is no sign that all is well.
- A report that cannot be read is an alarm.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

Outcome = Literal["running", "held", "found", "failed"]
"""Under way; everything was tried and denied; something came through or was told apart; or it could not all be tried."""
State = Literal["ok", "weak", "broken"]

_MAX_BYTES: Final = 256 << 10
_MAX_NAMED: Final = 5
_GRACE_MS: Final = 15 * 60_000
"""How much longer than the time between two runs a run may take."""
_REMEMBERED_MS: Final = 30 * 86_400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReport:
    """The newest run, and what is remembered of those before.

    Attributes:
        outcome: Of the newest run.
        began_at_ms: When it began.
        ended_at_ms: When it ended; 0 while it is under way.
        reason: Why it failed; empty if it did not.
        tried: How many probes were decided on.
        findings: Those that came through or were told apart, in the newest run that had any.
        found_at_ms: When that ended; 0 if there was none.
        held_at_ms: When the newest run ended that held; 0 if there was none.
        failures: Runs in a row that failed.
        attested: The digests of the newest attestations, by the tenant in whose log they stand.
    """

    outcome: Outcome
    began_at_ms: int
    ended_at_ms: int = 0
    reason: str = ""
    tried: int = 0
    findings: tuple[str, ...] = ()
    found_at_ms: int = 0
    held_at_ms: int = 0
    failures: int = 0
    attested: tuple[tuple[str, str], ...] = ()

    def write(self, path: Path) -> None:
        """Write it down, whole or not at all, for the api to read."""
        part = path.with_name(f".tmp-{secrets.token_hex(8)}")
        part.write_text(json.dumps({"v": 1, **asdict(self)}), encoding="utf-8")
        part.chmod(0o644)  # The folder is closed to all but the processes.
        part.replace(path)


def read_report(path: Path) -> ProbeReport | None:
    """The report; None where no run has begun yet.

    Raises:
        OSError: It is closed to this user.
        ValueError: It is none.
    """
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(_MAX_BYTES))
    except FileNotFoundError:
        return None
    try:
        if value.pop("v") != 1 or value["outcome"] not in {"running", "held", "found", "failed"}:
            raise ValueError("not a report of probes")
        findings = tuple(str(name) for name in value.pop("findings"))
        attested = tuple((str(tenant), str(digest)) for tenant, digest in value.pop("attested"))
        numbers = ("began_at_ms", "ended_at_ms", "tried", "found_at_ms", "held_at_ms", "failures")
        if not all(type(value[name]) is int for name in numbers) or type(value["reason"]) is not str:
            raise ValueError("not a report of probes")
        return ProbeReport(findings=findings, attested=attested, **value)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError("not a report of probes") from error


def is_due(report: ProbeReport | None, *, every_s: int, retry_s: int, now_ms: int) -> bool:
    """Whether a run is to begin now, if none is under way. A clock that was set back makes it due."""
    if report is None or report.outcome == "running":
        return True
    wait_s = min(retry_s, every_s) if report.outcome == "failed" else every_s
    return not 0 <= now_ms - report.ended_at_ms < wait_s * 1000


def judge(path: Path, *, every_s: int, now_ms: int) -> tuple[State, str]:  # noqa: PLR0911  # One return for each thing that may be wrong.
    """How it is about the scheduled probes, and in words."""
    try:
        report = read_report(path)
    except (OSError, ValueError) as error:
        return "broken", f"{path} cannot be read ({type(error).__name__})"
    if report is None:
        return "weak", "none has run yet"
    names = ", ".join(report.findings[:_MAX_NAMED])
    if len(report.findings) > _MAX_NAMED:
        names += f" and {len(report.findings) - _MAX_NAMED} more"
    if report.found_at_ms > report.held_at_ms:
        return "broken", f"came through, or told apart: {names}"
    if report.failures:
        return "weak", f"failed {report.failures} times in a row: {report.reason}"
    if not 0 <= now_ms - max(report.held_at_ms, report.began_at_ms) <= every_s * 1000 + _GRACE_MS:
        return "weak", "none has ended in time"
    if report.found_at_ms and now_ms - report.found_at_ms < _REMEMBERED_MS:
        return "weak", f"held of late; within a month came through, or told apart: {names}"
    if not report.held_at_ms:
        return "weak", "the first is under way"
    return "ok", f"{report.tried} tried across tenants, each denied"
