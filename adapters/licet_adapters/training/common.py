"""What training and checks share: constants, and how a job's reports and end become ours.

Rules kept here:

- What a job reports is parsed as a stranger's: integers only, bounded names and counts.
- A job's own refusal keeps its code; one that begins with ``input.`` is the asker's to mend, any other is the job's failure.
"""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING, Any

from licet_adapters.errors import AdapterError, InputRefused, JobFailed
from licet_adapters.ports import InputFile, Metric, SandboxReport

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from licet_adapters.sandbox import JobEnd

TRAIN_INPUT = "train.csv"
HELD_OUT_INPUT = "held-out.csv"
SPEC_DOCUMENT = "spec.json"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")
_CODE = re.compile(r"(input|job)\.[a-z-]{1,32}\Z")
_MAX_VALUES = 64
_MAX_INTEGER = 2**53 - 1
_MAX_MESSAGE_CHARS = 300


class Reports:
    """Takes the lines a job reports.

    Args:
        on_metric: Called with every metric.

    Attributes:
        metrics: The last metric; empty if there was none.
        resumed_from_step: As the job said.
        refusal: The job's own reason why it cannot go on.
        loop_us: Time in the training loop, as the job measured it.
        seen: The devices that the job saw, and the CUDA version of its torch; None if it told of none.
    """

    def __init__(self, on_metric: Callable[[Metric], None]) -> None:
        self._on_metric = on_metric
        self.metrics: list[Metric] = []
        self.resumed_from_step = 0
        self.loop_us = 0
        self.seen: tuple[tuple[str, ...], str] | None = None
        self.refusal: AdapterError | None = None

    def take(self, line: dict[str, Any]) -> None:
        """Take one line.

        Raises:
            JobFailed: It is not one of the lines a job reports.
        """
        match line:
            case {"metric": {"step": step, "epoch": epoch, "values_micro": dict() as values}}:
                if len(values) > _MAX_VALUES or not all(_NAME.match(name) for name in values):
                    raise _odd()
                figures = {name: _natural(value, least=-_MAX_INTEGER) for name, value in values.items()}
                metric = Metric(step=_natural(step), epoch=_natural(epoch), values_micro=figures)
                self.metrics = [metric]
                self._on_metric(metric)
            case {"resumed": {"step": step}}:
                self.resumed_from_step = _natural(step)
            case {"loop": {"wall_us": wall_us}}:
                self.loop_us = _natural(wall_us)
            case {"devices": {"uuids": list() as uuids, "cuda": str() as cuda}}:
                if len(uuids) > _MAX_VALUES or not all(isinstance(uuid, str) for uuid in uuids):
                    raise _odd()
                self.seen = tuple(uuid[:_MAX_MESSAGE_CHARS] for uuid in uuids), cuda[:_MAX_MESSAGE_CHARS]
            case {"error": {"code": str() as code, "message": str() as message}}:
                if not _CODE.match(code):
                    raise _odd()
                kind = InputRefused if code.startswith("input.") else JobFailed
                self.refusal = kind(message[:_MAX_MESSAGE_CHARS], code=code)
            case _:
                raise _odd()

    def require_success(self, end: JobEnd) -> None:
        """Return if the job ended well.

        Raises:
            InputRefused: The job refused what it was given.
            JobFailed: It failed otherwise.
        """
        if end.status == 0:
            return
        if self.refusal is not None:
            raise self.refusal
        # Bubblewrap gives a signal's number as a shell does.
        killed_by = -end.status if end.status < 0 else end.status - 128
        if killed_by in {signal.SIGKILL, signal.SIGXCPU, signal.SIGXFSZ}:
            raise JobFailed(
                f"the job was killed by {signal.Signals(killed_by).name}: it broke a limit", code="job.killed"
            )
        last = end.stderr_tail.strip().rpartition("\n")[2]
        raise JobFailed(f"the job ended with status {end.status}: {last[:_MAX_MESSAGE_CHARS]}", code="job.failed")


def require_inputs(inputs: Mapping[str, InputFile], names: tuple[str, ...]) -> None:
    """Return if ``inputs`` are exactly ``names``.

    Raises:
        InputRefused: They are not; so held-out rows cannot slip into training.
    """
    if set(inputs) != set(names):
        raise InputRefused(f"the inputs must be exactly {', '.join(names)}", code="input.names")


def report_to_record(report: SandboxReport) -> dict[str, Any]:
    """A sandbox report as canonical JSON."""
    return {"kind": report.kind, "checks": dict(report.checks), "notes": list(report.notes)}


def report_from_record(record: Mapping[str, Any]) -> SandboxReport:
    """The reverse of ``report_to_record``."""
    return SandboxReport(kind=record["kind"], checks=record["checks"], notes=tuple(record["notes"]))


def _natural(value: Any, *, least: int = 0) -> int:
    if type(value) is not int or not least <= value <= _MAX_INTEGER:
        raise _odd()
    return value


def _odd() -> JobFailed:
    return JobFailed("the job reported a line that is not a report", code="job.report")
