"""The port of serving: deployments, and changes of an endpoint's traffic."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from licet_adapters.errors import InputRefused
from licet_adapters.ports.base import (
    MODEL_FILES,
    InputFile,
    Parameters,
    SandboxReport,
    check_digest_hex,
    check_tenant,
    check_version,
    version_number,
)

CONTROL_SOCKET = "router.sock"
"""Name of the socket at which the router takes deeds, below ``AdapterContext.run_dir``."""
REFERENCE_FILE = "reference.json"
"""The training reference beside a deployed model: what drift is measured against. See ``licet_adapters.serving.reference``."""
_ENDPOINT = re.compile(r"([a-z][a-z0-9-]{1,38}[a-z0-9])/([a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)\Z")
_WHOLE_PERCENT = 100
_MAX_WEIGHTED = 16


def check_endpoint(endpoint: str, tenant: str) -> str:
    """Return ``endpoint`` if it is the ref of an endpoint of ``tenant`` (``northbank/credit``).

    Raises:
        InputRefused: It is not.
    """
    match = _ENDPOINT.match(endpoint)
    if match is None or match[1] != check_tenant(tenant):
        raise InputRefused("not an endpoint of this tenant", code="input.endpoint")
    return endpoint


MAX_CAUSE_CHARS = 200
"""Of any one text in what is told of a change of traffic."""


def check_weights(weights: object) -> dict[str, int]:
    """Return ``weights`` if they divide an endpoint's traffic: version numbers as text to whole percent, 100 in sum.

    Raises:
        InputRefused: They do not.
    """
    if not isinstance(weights, Mapping) or not 1 <= len(weights) <= _MAX_WEIGHTED:
        raise InputRefused(f"weights name 1 to {_MAX_WEIGHTED} versions", code="input.weights")
    for number, percent in weights.items():
        if not isinstance(number, str) or not re.fullmatch(r"[1-9][0-9]{0,8}", number):
            raise InputRefused("weights go by version number, as text", code="input.weights")
        if type(percent) is not int or not 0 <= percent <= _WHOLE_PERCENT:
            raise InputRefused("a weight is a whole percentage, 0 to 100", code="input.weights")
    if sum(weights.values()) != _WHOLE_PERCENT:
        raise InputRefused("the weights do not add up to 100", code="input.weights")
    return dict(weights)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeploymentJob:
    """One attempt at deploying a model version on an endpoint.

    Attributes:
        tenant: Owner of endpoint and model.
        endpoint: Ref of the endpoint (``northbank/credit``).
        operation_id: The accepted operation.
        step: Its step.
        attempt: 1, 2, ...
        version: Ref of the model version (``northbank/credit-risk@2``).
        parameters: The operation's: strategy, steps, fallback, replicas, batch, bounds and alarms, as decided; the
            members ``endpoint`` and ``version`` repeat those above. See ``licet_adapters.serving.plan``.
        model: ``model.safetensors`` and ``architecture.json`` by name, and perhaps ``reference.json``.
    """

    tenant: str
    endpoint: str
    operation_id: str
    step: str
    attempt: int
    version: str
    parameters: Parameters
    model: Mapping[str, InputFile]

    def __post_init__(self) -> None:
        check_endpoint(self.endpoint, self.tenant)
        check_version(self.version, self.tenant)
        if (self.parameters.get("endpoint"), self.parameters.get("version")) != (self.endpoint, self.version):
            raise InputRefused("the operation's parameters name another endpoint or version", code="input.parameters")
        if set(self.model) - {REFERENCE_FILE} != set(MODEL_FILES):
            raise InputRefused(
                f"a deployment has exactly the files {', '.join(MODEL_FILES)} and perhaps {REFERENCE_FILE}",
                code="input.files",
            )

    @property
    def number(self) -> int:
        """The version's number."""
        return version_number(self.version)

    def resources(self) -> dict[str, str]:
        """What the warrant must name: endpoint and version, and every file by digest."""
        files = {f"model:{name}": check_digest_hex(file.digest_hex) for name, file in self.model.items()}
        return {"endpoint": self.endpoint, "version": self.version} | files


@dataclass(frozen=True, kw_only=True, slots=True)
class TrafficChange:
    """One attempt at changing an endpoint's traffic, or at retiring it.

    Attributes:
        tenant: Owner of the endpoint.
        endpoint: Its ref.
        operation_id: The accepted operation.
        step: Its step.
        attempt: 1, 2, ...
        parameters: The operation's; ``endpoint`` repeats the one above. To shift: ``weights`` and ``shadow``.
    """

    tenant: str
    endpoint: str
    operation_id: str
    step: str
    attempt: int
    parameters: Parameters

    def __post_init__(self) -> None:
        check_endpoint(self.endpoint, self.tenant)
        if self.parameters.get("endpoint") != self.endpoint:
            raise InputRefused("the operation's parameters name another endpoint", code="input.parameters")

    @property
    def weights(self) -> dict[str, int]:
        """How the traffic is to be divided, as decided."""
        return check_weights(self.parameters.get("weights"))

    @property
    def shadow(self) -> str:
        """Number of the version that is to be given copies of requests, as text; empty for none."""
        shadow = self.parameters.get("shadow", "")
        if not isinstance(shadow, str) or (shadow and not re.fullmatch(r"[1-9][0-9]{0,8}", shadow)):
            raise InputRefused("`shadow` is a version number as text, or empty", code="input.shadow")
        return shadow

    def resources(self) -> dict[str, str]:
        """What the warrant must name: the endpoint."""
        return {"endpoint": self.endpoint}


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingOutcome:
    """How an endpoint stands after a deployment or a change.

    Attributes:
        weights: Version number, as text, to whole percent; empty after a retirement.
        shadow: Number of the version that is given copies, as text; empty for none.
        replicas: Version number, as text, to how many replicas stand ready.
        sandbox: How the replicas are confined.
        digests: ``code`` and ``environment``, and of a deployment ``reference``, what live data is compared with: SHA-256 in hex.
    """

    weights: Mapping[str, int]
    shadow: str
    replicas: Mapping[str, int]
    sandbox: SandboxReport
    digests: Mapping[str, str]


class ServingRuntime(Protocol):
    """Adapter ``local-serving`` and its peers; operations ``serving.deploy``, ``serving.shift``, ``serving.retire``.

    An invocation is admitted under a session warrant of its own (``serving.invoke``), by whatever takes the request.
    """

    def deploy(self, warrant: bytes, job: DeploymentJob) -> ServingOutcome:
        """Start the version's replicas and begin to give it traffic as ``job.parameters`` say; return when both stand.

        What follows by itself (further steps of a canary, a return to the fallback on an alarm) is in the parameters, so
        this one warrant permits it.

        Raises:
            WarrantRefused: See the guard. Nothing was done.
            InputRefused: A file is not what its digest names, or the parameters are not understood.
            Conflict: This number stands deployed with other content, the fallback is not deployed, or a newer attempt began.
            JobFailed: The model server does not come up.
            Unavailable: No sandbox, or the runtime cannot be reached now.
        """
        ...

    def shift(self, warrant: bytes, change: TrafficChange) -> ServingOutcome:
        """Divide the traffic as ``change.parameters`` say, now; an advance that was under way ends.

        Requests in flight end on the version they began on.

        Raises:
            WarrantRefused: See the guard. Nothing was done.
            InputRefused: The weights or the shadow are not understood.
            NotFound: No such endpoint.
            Conflict: A version that is to have traffic is not deployed.
        """
        ...

    def retire(self, warrant: bytes, change: TrafficChange) -> ServingOutcome:
        """Take no more requests, end those in flight, and stop every replica of the endpoint.

        Raises:
            WarrantRefused: See the guard. Nothing was done.
            NotFound: No such endpoint.
        """
        ...

    def stands(self, tenant: str, endpoint: str, operation_id: str, step: str) -> ServingOutcome | None:
        """Tell whether a deployment or a change was done, by its operation and step (no warrant: nothing is touched).

        It is asked where no warrant can be had any more for an attempt whose end nobody saw. What is under way is waited for.

        Returns:
            How the endpoint stood then, or stands; None if it was not done.

        Raises:
            Unavailable: The runtime cannot be reached now.
        """
        ...

    def status(self, tenant: str, endpoint: str) -> Mapping[str, Any]:
        """Return how the endpoint stands, as canonical JSON: traffic, replicas, figures (telemetry: no warrant).

        Raises:
            NotFound: No such endpoint of this tenant.
        """
        ...
