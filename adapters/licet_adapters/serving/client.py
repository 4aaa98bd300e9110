"""The adapter ``local-serving`` as the worker has it: it forwards to the router's process, which verifies and acts.

Rules kept here:

- Nothing is decided or checked here that the router does not check itself.
- Errors come back as what they were, by their code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from licet_adapters.errors import (
    AdapterError,
    Conflict,
    InputRefused,
    IntegrityError,
    JobFailed,
    NotFound,
    RefusalCode,
    Unavailable,
    WarrantRefused,
)
from licet_adapters.ports import CONTROL_SOCKET, AdapterContext, DeploymentJob, ServingOutcome, TrafficChange
from licet_adapters.training.common import report_from_record
from licet_attestations import rpc

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NAME = "local-serving"
_TIMEOUT_S = 200.0
_STATUS_TIMEOUT_S = 10.0
_KINDS: Mapping[str, type[AdapterError]] = {
    "input": InputRefused,
    "model": InputRefused,
    "conflict": Conflict,
    "not-found": NotFound,
    "integrity": IntegrityError,
    "job": JobFailed,
}


class LocalServing:
    """Adapter ``local-serving``.

    Args:
        context: What every adapter is given; ``run_dir`` says where the router listens.
        control_socket: Where the router listens, if not there.

    Raises:
        AdapterError: Neither says where.
    """

    def __init__(self, context: AdapterContext, *, control_socket: Path | None = None) -> None:
        if control_socket is None:
            if context.run_dir is None:
                raise AdapterError("local-serving is not told where the router listens", code="adapter.broken")
            control_socket = context.run_dir / CONTROL_SOCKET
        self._socket = control_socket

    def deploy(self, warrant: bytes, job: DeploymentJob) -> ServingOutcome:
        """See ``ServingRuntime``."""
        model = {
            name: {"path": str(file.path.absolute()), "digest_hex": file.digest_hex} for name, file in job.model.items()
        }
        return _outcome(
            self._call("deploy", warrant=rpc.encode_bytes(warrant), **_members(job), version=job.version, model=model)
        )

    def shift(self, warrant: bytes, change: TrafficChange) -> ServingOutcome:
        """See ``ServingRuntime``."""
        return _outcome(self._call("shift", warrant=rpc.encode_bytes(warrant), **_members(change)))

    def retire(self, warrant: bytes, change: TrafficChange) -> ServingOutcome:
        """See ``ServingRuntime``."""
        return _outcome(self._call("retire", warrant=rpc.encode_bytes(warrant), **_members(change)))

    def stands(self, tenant: str, endpoint: str, operation_id: str, step: str) -> ServingOutcome | None:
        """See ``ServingRuntime``."""
        told = self._call("stands", tenant=tenant, endpoint=endpoint, operation_id=operation_id, step=step)
        return _outcome(told["outcome"]) if told["outcome"] is not None else None

    def status(self, tenant: str, endpoint: str) -> Mapping[str, Any]:
        """See ``ServingRuntime``."""
        told: Mapping[str, Any] = self._call("status", tenant=tenant, endpoint=endpoint)
        return told

    def _call(self, method: str, **params: Any) -> Any:
        timeout_s = _STATUS_TIMEOUT_S if method == "status" else _TIMEOUT_S
        try:
            return rpc.call(self._socket, method, params, timeout_s)
        except rpc.RpcUnavailable as error:
            raise Unavailable(f"the router does not answer: {error}") from error
        except rpc.RpcFault as fault:
            raise _error(fault) from fault


def _members(asked: DeploymentJob | TrafficChange) -> dict[str, Any]:
    return {
        "tenant": asked.tenant,
        "endpoint": asked.endpoint,
        "operation_id": asked.operation_id,
        "step": asked.step,
        "attempt": asked.attempt,
        "parameters": dict(asked.parameters),
    }


def _outcome(record: Mapping[str, Any]) -> ServingOutcome:
    return ServingOutcome(**(dict(record) | {"sandbox": report_from_record(record["sandbox"])}))


def _error(fault: rpc.RpcFault) -> AdapterError:
    family, _, reason = fault.code.partition(".")
    if family == "warrant":
        return WarrantRefused(cast("RefusalCode", reason), str(fault))
    kind = _KINDS.get(family, Unavailable)
    return kind(str(fault), code=fault.code)
