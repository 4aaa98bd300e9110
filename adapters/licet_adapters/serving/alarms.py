"""The alarms of a deployment: what is watched, and when one fires. Pure; time and figures are handed in.

Rules kept here:

- An alarm that has not enough to go by (``min_count``) does not fire, and does not say that all is well either.
- The first that fires is told with its figures, all whole numbers, so that it can stand in the log.
- What a caller does wrong says nothing of the version: malformed requests count in no alarm.
- However many features and alarms there are, drift is looked at once a second at most, over one window, on a bounded
  number of values, and beside the loop that answers requests. Windows take turns.
- What an alarm compares with must be there when the deployment is made; one that could never fire is refused then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from licet_adapters.errors import InputRefused
from licet_adapters.ports import MAX_CAUSE_CHARS
from licet_adapters.serving.drift import MAX_CELLS, FeatureDrift, RowWindow, alpha_of_look, compare, drifted
from licet_adapters.serving.histogram import Outcome, Tally, Window, percentile_us
from licet_adapters.serving.plan import (
    NEEDS_REFERENCE,
    Alarm,
    ConfidenceAlarm,
    DriftAlarm,
    ErrorAlarm,
    LatencyAlarm,
    StalenessAlarm,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from licet_adapters.jobs.oip import Floats
    from licet_adapters.serving.reference import Reference

_MICRO = 1_000_000
_P95_PERMILLE = 950
_LOOK_EVERY_S = 1.0

Found: TypeAlias = dict[str, FeatureDrift]


class Pending(Protocol):
    """What is computed elsewhere; a future."""

    def done(self) -> bool:
        """Whether there is a result."""
        ...

    def result(self) -> Found:
        """The result."""
        ...


class _Computed:
    """Something that was computed here and now."""

    def __init__(self, compute: Callable[[], Found]) -> None:
        self._result = compute()

    def done(self) -> bool:
        return True

    def result(self) -> Found:
        return self._result


@dataclass(slots=True)
class _Looks:
    """The looks of one drift alarm: how many, at how many rows the last was, and when."""

    count: int = 0
    seen: int = 0
    at_s: float = -math.inf


@dataclass(frozen=True, kw_only=True, slots=True)
class Fired:
    """An alarm that fired.

    Attributes:
        kind: Which.
        value: What was found, in the unit of the threshold.
        threshold: What it was held against.
        window_s: Over how long.
        count: On how many requests or rows.
        detail: More to tell: the features that drifted.
    """

    kind: str
    value: int
    threshold: int
    window_s: int
    count: int
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        """As canonical JSON."""
        cause: dict[str, Any] = {
            "kind": self.kind,
            "value": self.value,
            "threshold": self.threshold,
            "window_s": self.window_s,
            "count": self.count,
        }
        detail = self.detail
        if len(detail) > MAX_CAUSE_CHARS:
            # Columns are named by tenants, and may have long names.
            detail = detail[: MAX_CAUSE_CHARS - 3] + "..."
        return cause | ({"detail": detail} if detail else {})


def require_evaluable(alarms: Sequence[Alarm], reference: Reference | None) -> None:
    """Return if every alarm has what it compares with.

    Raises:
        InputRefused: One could never fire; code ``input.alarm``.
    """
    for alarm in alarms:
        if alarm.kind not in NEEDS_REFERENCE:
            continue
        if reference is None:
            raise InputRefused(
                f"the alarm {alarm.kind} compares with training, and the deployment has no reference.json",
                code="input.alarm",
            )
        if alarm.kind == "staleness" and reference.data_as_of_ms is None:
            raise InputRefused("the alarm staleness needs `data_as_of_ms` in reference.json", code="input.alarm")
        if alarm.kind == "confidence-shift" and reference.confidence_mean is None:
            raise InputRefused(
                "the alarm confidence-shift needs `confidence_mean_micro` in reference.json", code="input.alarm"
            )


class AlarmPanel:
    """The alarms of one deployment and what they watch.

    Args:
        alarms: As decided.
        reference: Of training; None if the deployment has none.
        names: The model's features, in the order of its rows.
    """

    def __init__(self, alarms: Sequence[Alarm], reference: Reference | None, names: Sequence[str]) -> None:
        require_evaluable(alarms, reference)
        self._alarms = tuple(alarms)
        self._reference = reference
        self._names = tuple(names)
        self._windows = {
            alarm.window_s: Window(alarm.window_s) for alarm in alarms if isinstance(alarm, LatencyAlarm | ErrorAlarm)
        }
        self._rows = RowWindow(len(names))
        self._drift = [(alarm, _Looks()) for alarm in alarms if isinstance(alarm, DriftAlarm)]
        self._looked_s = -math.inf
        # The look under way: the alarms it is for, each with its share of alpha, and on how many rows.
        self._under_way: tuple[Pending, list[tuple[DriftAlarm, float]], int] | None = None
        self.last_drift: Found = {}

    @property
    def watches_rows(self) -> bool:
        """Whether rows are compared with anything; if not, none need be read."""
        return self._reference is not None

    def record(self, now_s: float, latency_us: float, outcome: Outcome) -> None:
        """Take note of a request; one that was the caller's fault is none."""
        if outcome == "client-error":
            return
        for window in self._windows.values():
            window.add(now_s, latency_us, outcome)

    def record_rows(self, now_s: float, rows: Floats, probabilities: Floats) -> None:
        """Take note of rows (float32 ``[n, features]``) and the probabilities they were given (``[n]``)."""
        self._rows.add(now_s, rows, probabilities)

    def evaluate(
        self, now_s: float, now_ms: int, beside: Callable[[Callable[[], Found]], Pending] | None = None
    ) -> Fired | None:
        """The first alarm that fires, if any.

        Args:
            now_s: Of the clock that ``record`` was told; it never goes back.
            now_ms: The time of day, for the age of data.
            beside: Has something computed elsewhere; what drifted is then told by a later call. None: at once, here.
        """
        sums: dict[int, Tally] = {}
        for alarm in self._alarms:
            if isinstance(alarm, LatencyAlarm | ErrorAlarm):
                if alarm.window_s not in sums:
                    sums[alarm.window_s] = self._windows[alarm.window_s].sum(now_s)
                fired = _on_requests(alarm, sums[alarm.window_s])
            elif isinstance(alarm, DriftAlarm):
                continue
            elif isinstance(alarm, ConfidenceAlarm):
                fired = self._on_confidence(alarm, now_s)
            else:
                fired = self._on_age(alarm, now_ms)
            if fired is not None:
                return fired
        return self._on_drift(now_s, beside)

    def mean_confidence_micro(self, now_s: float, window_s: int) -> int | None:
        """Mean confidence of the last rows, or None if there were none."""
        confidence = self._rows.confidence_since(now_s - window_s)
        return round(float(confidence.mean()) * _MICRO) if len(confidence) else None

    def _on_drift(self, now_s: float, beside: Callable[[Callable[[], Found]], Pending] | None) -> Fired | None:
        if self._under_way is None and now_s - self._looked_s >= _LOOK_EVERY_S:
            self._look(now_s, beside or _Computed)
        if self._under_way is None or not self._under_way[0].done():
            return None
        (pending, alarms, rows), self._under_way = self._under_way, None
        self.last_drift = pending.result()
        for alarm, alpha in alarms:
            found = drifted(self.last_drift, alpha, alarm.effect_min_micro / _MICRO)
            if found:
                names = ", ".join(sorted(found, key=lambda name: -found[name].gap)[:5])
                return Fired(
                    kind=alarm.kind,
                    value=len(found),
                    threshold=0,
                    window_s=alarm.window_s,
                    count=rows,
                    detail=f"features drifted: {names}",
                )
        return None

    def _look(self, now_s: float, beside: Callable[[Callable[[], Found]], Pending]) -> None:
        """Begin a look over the window that has waited longest, for all alarms over it that have enough to go by."""
        due = [(alarm, looks) for alarm, looks in self._drift if self._is_due(alarm, looks, now_s)]
        if not due or self._reference is None:
            return
        window_s = min(due, key=lambda one: one[1].at_s)[0].window_s
        rows = self._rows.rows_since(now_s - window_s, max(1, MAX_CELLS // len(self._names)))
        alarms = []
        for alarm, looks in due:
            if alarm.window_s == window_s:
                looks.count, looks.seen, looks.at_s = looks.count + 1, self._rows.seen, now_s
                alarms.append((alarm, alpha_of_look(alarm.alpha_micro / _MICRO, looks.count)))
        self._looked_s = now_s
        self._under_way = beside(partial(compare, rows, self._reference, self._names)), alarms, len(rows)

    def _is_due(self, alarm: DriftAlarm, looks: _Looks, now_s: float) -> bool:
        # Half of what is needed must be new, or one look would be spent on what the last has seen.
        if looks.count and self._rows.seen - looks.seen < max(1, alarm.min_count // 2):
            return False
        return self._rows.count_since(now_s - alarm.window_s) >= alarm.min_count

    def _on_confidence(self, alarm: ConfidenceAlarm, now_s: float) -> Fired | None:
        confidence = self._rows.confidence_since(now_s - alarm.window_s)
        if len(confidence) < alarm.min_count or self._reference is None or self._reference.confidence_mean is None:
            return None
        shift = abs(float(confidence.mean()) - self._reference.confidence_mean)
        return _above(alarm.kind, round(shift * _MICRO), alarm.threshold_micro, alarm.window_s, len(confidence))

    def _on_age(self, alarm: StalenessAlarm, now_ms: int) -> Fired | None:
        if self._reference is None or self._reference.data_as_of_ms is None:
            return None
        age_s = (now_ms - self._reference.data_as_of_ms) // 1000
        return _above(alarm.kind, age_s, alarm.max_age_s, 0, 1)


def _on_requests(alarm: LatencyAlarm | ErrorAlarm, tally: Tally) -> Fired | None:
    if tally.count < alarm.min_count:
        return None
    if isinstance(alarm, ErrorAlarm):
        share = tally.failed * _MICRO // tally.count
        return _above(alarm.kind, share, alarm.threshold_micro, alarm.window_s, tally.count)
    value = percentile_us(tally.counts, _P95_PERMILLE) or 0
    return _above(alarm.kind, value, alarm.threshold_us, alarm.window_s, tally.count)


def _above(kind: str, value: int, threshold: int, window_s: int, count: int) -> Fired | None:
    if value <= threshold:
        return None
    return Fired(kind=kind, value=value, threshold=threshold, window_s=window_s, count=count)
