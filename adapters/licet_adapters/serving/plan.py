"""The parameters of a deployment, as they were decided: strategy, bounds and alarms.

Rules kept here:

- What is not understood is refused, never left aside: an unknown member could be an alarm that somebody counts on.
- Every number is bounded; all are integers (fractions in micro).
- A canary ends at 100; nothing returns to a fallback that is not named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from licet_adapters.errors import InputRefused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from licet_adapters.ports import Parameters

Percent = Annotated[int, Field(ge=1, le=100)]
_WHOLE = 100


def check_steps(steps: Sequence[int]) -> None:
    """Check the steps of a canary.

    Raises:
        ValueError: They do not rise, or do not end at 100.
    """
    if not steps or steps[-1] != _WHOLE or list(steps) != sorted(set(steps)):
        raise ValueError("the steps of a canary rise and end at 100, as 10, 50, 100 do")


class _Decided(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Replicas(_Decided):
    """How many replicas a version has.

    Attributes:
        min: At least; 0 with ``idle_s``: none while nothing is asked of it.
        max: At most.
        idle_s: After how long without a request the last replica is stopped; 0: never.
    """

    min: int = Field(default=1, ge=0, le=32)
    max: int = Field(default=2, ge=1, le=32)
    idle_s: int = Field(default=0, ge=0, le=86_400)

    @model_validator(mode="after")
    def _fits(self) -> Replicas:
        if self.min > self.max:
            raise ValueError("`min` is more than `max`")
        if (self.min == 0) != (self.idle_s > 0):
            raise ValueError("a minimum of 0 goes with `idle_s`, and only with it")
        return self


class Batch(_Decided):
    """How requests are computed together.

    Attributes:
        max_rows: Rows at once.
        max_wait_ms: How long a request waits for others.
    """

    max_rows: int = Field(default=32, ge=1, le=4096)
    max_wait_ms: int = Field(default=2, ge=0, le=1000)


class _Alarm(_Decided):
    window_s: int = Field(default=60, ge=1, le=86_400)
    min_count: int = Field(default=50, ge=1, le=1_000_000)


class LatencyAlarm(_Alarm):
    """Fires when the 95th percentile of the latency in the window is above the threshold."""

    kind: Literal["p95-latency"]
    threshold_us: int = Field(ge=1, le=600_000_000)


class ErrorAlarm(_Alarm):
    """Fires when the share of requests that failed (not by the caller's fault) is above the threshold."""

    kind: Literal["error-rate"]
    threshold_micro: int = Field(ge=0, le=1_000_000)


class DriftAlarm(_Alarm):
    """Fires when the rows of the window are not like the training rows.

    Attributes:
        alpha_micro: Chance that this alarm fires though nothing drifted, in one life of the router: looks are counted in its
            memory, and after a start it looks with the whole of it again.
        effect_min_micro: How large the difference must be to matter.
    """

    kind: Literal["drift"]
    alpha_micro: int = Field(default=10_000, ge=1, le=500_000)
    effect_min_micro: int = Field(default=100_000, ge=0, le=1_000_000)


class ConfidenceAlarm(_Alarm):
    """Fires when the mean confidence moved by more than the threshold from that on training rows."""

    kind: Literal["confidence-shift"]
    threshold_micro: int = Field(ge=1, le=1_000_000)


class StalenessAlarm(_Alarm):
    """Fires when the newest data behind the model is older than this."""

    kind: Literal["staleness"]
    max_age_s: int = Field(ge=1, le=10 * 366 * 86_400)


Alarm = Annotated[
    LatencyAlarm | ErrorAlarm | DriftAlarm | ConfidenceAlarm | StalenessAlarm, Field(discriminator="kind")
]
NEEDS_REFERENCE = frozenset({"drift", "confidence-shift", "staleness"})
"""Kinds of alarm that compare with training."""


class DeploymentPlan(_Decided):
    """How a version is brought into traffic, and what brings it out again.

    Attributes:
        endpoint: Ref of the endpoint.
        version: Ref of the model version.
        model_digest_hex: What content of the version was decided on.
        region: Where it runs.
        strategy: ``canary`` by ``steps``; ``blue-green``: all at once, the version before kept warm; ``shadow``: copies
            only; ``direct``: all at once.
        steps: Weights of a canary, rising, the last 100.
        bake_s: How long each step is held without an alarm.
        fallback: Ref of the version that traffic returns to on an alarm; empty: there is none.
        replicas: How many.
        batch: How requests are computed together.
        timeout_ms: How long a request may take.
        max_request_bytes: Largest body.
        alarms: What ends it.
        source: Where whoever asks for the deployment got the files from; bound by the warrant, and not read here.
    """

    endpoint: str
    version: str
    model_digest_hex: str = Field(pattern=r"^[0-9a-f]{64}$")
    region: str = Field(default="", max_length=64)
    strategy: Literal["canary", "blue-green", "shadow", "direct"]
    steps: list[Percent] = Field(default=[], max_length=50)
    bake_s: int = Field(default=0, ge=0, le=604_800)
    fallback: str = ""
    replicas: Replicas = Replicas()
    batch: Batch = Batch()
    timeout_ms: int = Field(default=2000, ge=10, le=120_000)
    max_request_bytes: int = Field(default=1 << 20, ge=256, le=64 << 20)
    alarms: list[Alarm] = Field(default=[], max_length=16)
    source: dict[str, JsonValue] = Field(default={}, max_length=32)

    @model_validator(mode="after")
    def _is_whole(self) -> DeploymentPlan:
        if self.strategy == "canary":
            check_steps(self.steps)
            if not self.fallback:
                raise ValueError("a canary needs a `fallback`: the version that has the rest of the traffic")
        elif self.steps not in ([], [_WHOLE]):
            raise ValueError("only a canary has steps")
        if self.fallback == self.version:
            raise ValueError("a version is not its own fallback")
        if self.fallback and self.fallback.rpartition("@")[0] != self.version.rpartition("@")[0]:
            raise ValueError("the fallback is a version of another model")
        return self

    @property
    def weights(self) -> list[int]:
        """The new version's weight at each step; none for a shadow."""
        if self.strategy == "shadow":
            return []
        return list(self.steps) if self.strategy == "canary" else [_WHOLE]


def parse_plan(parameters: Parameters) -> DeploymentPlan:
    """Read the parameters of an ``endpoint.deploy``.

    Raises:
        InputRefused: Which member is wrong, and how; code ``input.plan``.
    """
    try:
        return DeploymentPlan.model_validate(dict(parameters))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise InputRefused(
            f"the deployment's parameters: {f'{where}: ' if where else ''}{message}", code="input.plan"
        ) from error
