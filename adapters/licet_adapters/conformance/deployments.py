"""What a serving runtime is asked for by those who try it: deployments, changes of traffic, and the warrants for them.

Each that is made here is an operation of its own. Alarms never fire, unless others are asked for.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING, Any

from licet_adapters.conformance.tabular import write_model
from licet_adapters.conformance.world import TENANT
from licet_adapters.ports import DeploymentJob, TrafficChange

if TYPE_CHECKING:
    from collections.abc import Mapping

    from licet_adapters.conformance.world import World
    from licet_adapters.ports import InputFile

ENDPOINT = f"{TENANT}/credit"
MODEL = f"{TENANT}/credit-risk"
NEVER: Mapping[str, Any] = {"kind": "p95-latency", "threshold_us": 60_000_000, "window_s": 10, "min_count": 20}
"""An alarm that no answer of a test takes long enough for."""
_ACTIONS = {
    "serving.deploy": "endpoint.deploy",
    "serving.shift": "endpoint.shift-traffic",
    "serving.retire": "endpoint.retire",
}


def deployment(
    world: World, number: int, *, files: Mapping[str, InputFile] | None = None, **changes: Any
) -> DeploymentJob:
    """A deployment of version ``number``: direct, unless changed.

    Args:
        world: Where the model's files are written.
        number: Of the version.
        files: The model's; by default those of the small model.
        changes: Other parameters than the usual.
    """
    version, operation_id = f"{MODEL}@{number}", secrets.token_hex(16)
    parameters: dict[str, Any] = {
        "endpoint": ENDPOINT,
        "version": version,
        "model_digest_hex": hashlib.sha256(version.encode()).hexdigest(),
        "region": "local",
        "strategy": "direct",
        "steps": [],
        "bake_s": 0,
        "fallback": "",
        "replicas": {"min": 1, "max": 1, "idle_s": 0},
        "batch": {"max_rows": 16, "max_wait_ms": 0},
        "timeout_ms": 3000,
        "max_request_bytes": 65_536,
        "alarms": [dict(NEVER)],
    }
    return DeploymentJob(
        tenant=TENANT,
        endpoint=ENDPOINT,
        operation_id=operation_id,
        step="deploy",
        attempt=1,
        version=version,
        parameters=parameters | changes,
        model=write_model(world.directory / "models" / operation_id) if files is None else files,
    )


def traffic_change(**parameters: Any) -> TrafficChange:
    """A change of the endpoint's traffic, or its end."""
    return TrafficChange(
        tenant=TENANT,
        endpoint=ENDPOINT,
        operation_id=secrets.token_hex(16),
        step="change",
        attempt=1,
        parameters={"endpoint": ENDPOINT, **parameters},
    )


def warrant_for(world: World, adapter: str, operation: str, asked: DeploymentJob | TrafficChange) -> bytes:
    """The right warrant for it."""
    return world.warrant_for(_ACTIONS[operation], adapter, operation, asked)
