"""Watches a running job: reads what it reports, holds it to its bounds, and sees it dead.

Rules kept here:

- Every byte read is bounded: a line, all lines, and the kept end of what the job wrote to its standard streams.
- ``should_stop`` is asked several times a second whatever the job does; a silent job can be stopped too.
- When ``follow`` returns or raises, the job's first process has ended, and with it all of them.
"""

from __future__ import annotations

import json
import os
import selectors
import time
from typing import TYPE_CHECKING, Any

from licet_adapters.errors import JobFailed
from licet_adapters.sandbox_outputs import measure_outputs
from licet_adapters.sandbox_process import end

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from licet_adapters.sandbox_limits import Limits

MAX_LINE_BYTES = 64 << 10
_STDERR_BYTES = 16 << 10
_READ_BYTES = 64 << 10
_POLL_S = 0.1
_MEASURE_EVERY_S = 0.5
_DRAIN_S = 5.0


class Watch:
    """One running job.

    Args:
        process: Its first process.
        report_fd: Where it reports, for reading.
        error_fd: Its standard streams, for reading.
        output_dir: Where it writes.
        limits: Its bounds.
        on_line: Called with every object it reports.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        *,
        report_fd: int,
        error_fd: int,
        output_dir: Path,
        limits: Limits,
        on_line: Callable[[dict[str, Any]], None],
    ) -> None:
        self._process = process
        self._report_fd = report_fd
        self._error_fd = error_fd
        self._output_dir = output_dir
        self._limits = limits
        self._on_line = on_line
        self._pending = b""
        self._reported_bytes = 0
        self._errors = b""

    @property
    def stderr_tail(self) -> str:
        """The end of what it wrote to its standard streams."""
        return self._errors.decode("utf-8", "replace")

    def follow(self, should_stop: Callable[[], bool]) -> bool:
        """Follow the job to its end; return whether it was stopped because ``should_stop`` said so.

        Raises:
            JobFailed: It broke a bound.
        """
        try:
            return self._follow(should_stop)
        finally:
            # Killing bubblewrap's first process kills all: each dies with its parent, and with the first of its namespace.
            end(self._process)

    def _follow(self, should_stop: Callable[[], bool]) -> bool:
        started_s = asked_s = measured_s = time.monotonic()
        ended_s: float | None = None
        with selectors.DefaultSelector() as selector:
            selector.register(self._report_fd, selectors.EVENT_READ, self._read_report)
            selector.register(self._error_fd, selectors.EVENT_READ, self._read_errors)
            # Both pipes closed while it runs: it has nothing more to say, and is given the rest of its time.
            while selector.get_map() or ended_s is None:
                self._read(selector)
                now_s = time.monotonic()
                if ended_s is None and self._process.poll() is not None:
                    ended_s = now_s
                self._require_time(now_s - started_s, 0.0 if ended_s is None else now_s - ended_s)
                if now_s - asked_s >= _POLL_S:
                    asked_s = now_s
                    if ended_s is None and should_stop():
                        return True
                if now_s - measured_s >= _MEASURE_EVERY_S:
                    measured_s = now_s
                    self._measure()
        if self._pending:
            raise JobFailed("the job's report ends within a line", code="job.report")
        self._measure()
        return False

    @staticmethod
    def _read(selector: selectors.BaseSelector) -> None:
        if not selector.get_map():
            time.sleep(_POLL_S / 10)
            return
        for key, _ in selector.select(_POLL_S):
            if not key.data():
                selector.unregister(key.fd)

    def _require_time(self, running_s: float, draining_s: float) -> None:
        if running_s > self._limits.wall_s:
            raise JobFailed(f"the job took longer than {self._limits.wall_s} s", code="job.time")
        if draining_s > _DRAIN_S:
            raise JobFailed("the job ended, but something of it holds its pipes", code="job.pipes")

    def _measure(self) -> None:
        count, total_bytes = measure_outputs(self._output_dir)
        if count > self._limits.output_files or total_bytes > self._limits.output_bytes:
            raise JobFailed(
                f"the job wrote {count} files of {total_bytes} bytes; at most {self._limits.output_files} of "
                f"{self._limits.output_bytes} are taken",
                code="job.outputs",
            )

    def _read_report(self) -> bool:
        data = os.read(self._report_fd, _READ_BYTES)
        self._reported_bytes += len(data)
        if self._reported_bytes > self._limits.report_bytes:
            raise JobFailed(f"the job reported more than {self._limits.report_bytes} bytes", code="job.report")
        *lines, self._pending = (self._pending + data).split(b"\n")
        if max(map(len, (*lines, self._pending))) > MAX_LINE_BYTES:
            raise JobFailed(f"the job reported a line of more than {MAX_LINE_BYTES} bytes", code="job.report")
        for line in lines:
            self._on_line(_parse(line))
        return bool(data)

    def _read_errors(self) -> bool:
        data = os.read(self._error_fd, _READ_BYTES)
        self._errors = (self._errors + data)[-_STDERR_BYTES:]
        return bool(data)


def _parse(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise JobFailed("the job reported a line that is not JSON", code="job.report") from error
    if not isinstance(value, dict):
        raise JobFailed("the job reported a line that is not an object", code="job.report")
    return value
