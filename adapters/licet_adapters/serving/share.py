"""What a tenant may have on one router: so many endpoints, and so many replicas on all of them together.

Rules kept here:

- What is to be deployed counts from before its deployment waits for anything until it ends, however that is: of those that come
  at once, none passes by what another has not taken yet.
- A version that is deployed again takes the place of itself; what is retired takes none.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from licet_adapters.errors import Conflict

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from licet_adapters.ports import DeploymentJob
    from licet_adapters.serving.endpoint import Endpoint
    from licet_adapters.serving.plan import DeploymentPlan


class Shares:
    """The shares of all tenants; used on the event loop alone.

    Args:
        endpoints: The router's; it changes.
        max_endpoints: Of a tenant.
        max_replicas: Of all versions on a tenant's endpoints together, as many as each may have at most.
    """

    def __init__(self, endpoints: Mapping[str, Endpoint], *, max_endpoints: int, max_replicas: int) -> None:
        self._endpoints = endpoints
        self._max_endpoints, self._max_replicas = max_endpoints, max_replicas
        # Deployments under way, with the replicas that each may have at most.
        self._under_way: list[tuple[DeploymentJob, int]] = []

    @contextlib.contextmanager
    def taken(self, job: DeploymentJob, plan: DeploymentPlan) -> Iterator[None]:
        """Have what is to be deployed count while in the block.

        Raises:
            Conflict: Its tenant would have more than its share; code ``conflict.share``.
        """
        self._require(job, plan.replicas.max)
        entry = (job, plan.replicas.max)
        self._under_way.append(entry)
        try:
            yield
        finally:
            self._under_way = [one for one in self._under_way if one is not entry]

    def _require(self, job: DeploymentJob, replicas: int) -> None:
        standing: dict[tuple[str, int], int] = {}
        for endpoint in self._endpoints.values():
            if endpoint.state.tenant == job.tenant and not endpoint.state.is_retired:
                for version in endpoint.versions():
                    standing[endpoint.state.endpoint, version.number] = version.plan.replicas.max
        standing[job.endpoint, job.number] = replicas
        for other, replicas_max in self._under_way:
            if other.tenant == job.tenant:
                place = (other.endpoint, other.number)
                standing[place] = max(replicas_max, standing.get(place, 0))
        for what, wanted, limit in (
            ("endpoints", len({endpoint for endpoint, _ in standing}), self._max_endpoints),
            ("replicas at most, on all endpoints together", sum(standing.values()), self._max_replicas),
        ):
            if wanted > limit:
                raise Conflict(
                    f"with this deployment {job.tenant} would have {wanted} {what}, and a tenant has {limit} here: retire"
                    " what is not needed, or deploy with fewer replicas",
                    code="conflict.share",
                )
