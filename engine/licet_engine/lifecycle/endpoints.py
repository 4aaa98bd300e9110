"""What the verbs on endpoints share: states, which version is the main one, what the router answered.

Rules kept here: an operation on an endpoint is decided again on what its parameters say, on the facts of now; it changes by
itself what it would be proposed from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from licet_adapters.ports import ServingOutcome
from licet_attestations import canonical
from licet_engine.domain.errors import Conflict, InvalidInput
from licet_engine.domain.refs import Ref, parse_ref
from licet_engine.lifecycle.facts import View
from licet_engine.lifecycle.verbs import Event
from licet_engine.log.submission import NewEntry
from licet_engine.store.tables import Deployment, Endpoint, Operation

if TYPE_CHECKING:
    from licet_engine.lifecycle.deed import Deed, Stands

CHANGES: Final = frozenset({"endpoint.deploy", "endpoint.shift-traffic", "endpoint.roll-back", "endpoint.retire"})
"""The actions that change an endpoint."""

ON_ENDPOINT: Final = frozenset({"baking", "live", "shadow", "superseded"})
"""States of a deployment whose replicas the router has, or can start again."""

WHOLE: Final = 100
WORD: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")
"""What the router names: itself, its lives, sessions, operations."""
VERSION_NUMBER: Final = re.compile(r"[1-9][0-9]{0,8}")
MAX_NUMBER: Final = 2**53 - 1
"""Of what the router counts: as far as every reader of JSON counts exactly."""
MAX_VERSIONS: Final = 16


def main_version(row: Endpoint | None) -> str:
    """Number of the version that takes most of an endpoint's traffic; empty for none."""
    if row is None or row.state != "live" or not row.weights:
        return ""
    return max(row.weights, key=lambda number: (row.weights[number], int(number)))


def name_of(operation: Operation) -> str:
    """Name of the endpoint that an operation is on."""
    return operation.resource.partition("/")[2]


def own_name(tenant: str, endpoint: str) -> str:
    """Name of an endpoint that the router names as a tenant's.

    Raises:
        InvalidInput: It is another's.
    """
    ref = parse_ref(endpoint)
    if ref.tenant != tenant:
        raise InvalidInput(f"{endpoint} is not {tenant}'s")
    return ref.name


def own_entry(tenant: str, kind: str, fixed: Mapping[str, Any]) -> NewEntry:
    """An entry of a tenant's log about an endpoint of its own, which bears the time of the log."""
    return NewEntry(tenant, kind, tenant, tenant, lambda time_ms: canonical.dumps({**fixed, "time_ms": time_ms}))


def over(
    endpoint: str, deployment: Deployment, state: str, weights: Mapping[str, int], cause: Mapping[str, Any]
) -> Event:
    """What webhooks are told of a deployment that ended other than it should.

    Args:
        endpoint: As ``TENANT/NAME``.
        deployment: The one that is over.
        state: ``rolled-back``, or ``failed`` where there was no version before to which traffic could return.
        weights: How the traffic is divided now; empty where nothing answers.
        cause: Why.
    """
    tenant = deployment.tenant_id
    return Event(
        f"endpoint.{state}",
        {
            "endpoint": endpoint,
            "operation": f"{tenant}/{deployment.id}",
            "version": f"{tenant}/{deployment.model}@{deployment.version}",
            "weights": dict(weights),
            "cause": dict(cause),
        },
    )


def not_live(row: Endpoint, ref: Ref, view: View) -> Conflict | None:
    """Why traffic cannot be moved there now, if so."""
    if row.state != "live":
        return Conflict(f"{ref} is {row.state}: it has no traffic")
    if view.has_open_operation(str(ref)):
        return Conflict(f"an operation on {ref} is at work: wait until it has ended")
    return None


def told(outcome: ServingOutcome) -> dict[str, Any]:
    """What the router answered, as it is kept."""
    return {
        "weights": dict(outcome.weights),
        "shadow": outcome.shadow,
        "replicas": dict(outcome.replicas),
        "sandbox": {
            "kind": outcome.sandbox.kind,
            "checks": dict(outcome.sandbox.checks),
            "notes": list(outcome.sandbox.notes),
        },
        "digests": dict(outcome.digests),
    }


def stands_on(deed: Deed, step: str) -> Stands:
    """What the router did for a step of this operation, if it did: what stands there stands, whoever is asked afterwards."""

    def stands() -> dict[str, Any] | None:
        done = deed.adapters.serving.stands(deed.tenant, deed.parameters["endpoint"], deed.id, step)
        return None if done is None else told(done)

    return stands
