"""What the router asks and reports, at the internal door of the api: sessions, invocations, traffic, and how endpoints do.

Rules kept here:

- Who may open a session and how invocations are accounted for stand in ``sessions.py`` and ``invocations.py``.
- What the router did by itself becomes facts in one transaction with its log entry. Everything may be reported again after
  a lost answer.
- How an endpoint is doing is told by the router, so that nobody needs a door into its process.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final

from sqlalchemy import Engine

from licet_adapters.errors import AdapterError
from licet_adapters.ports import MAX_CAUSE_CHARS, check_weights
from licet_engine.domain.errors import InvalidInput
from licet_engine.domain.rates import Buckets
from licet_engine.domain.refs import now_ms
from licet_engine.lifecycle.asking import Desk
from licet_engine.lifecycle.endpoints import (
    CHANGES,
    MAX_NUMBER,
    ON_ENDPOINT,
    VERSION_NUMBER,
    WORD,
    over,
    own_entry,
    own_name,
)
from licet_engine.lifecycle.facts import View
from licet_engine.lifecycle.invocations import InvocationAccounts
from licet_engine.lifecycle.operations import Operations
from licet_engine.lifecycle.outbox import mailing_of, message_rows
from licet_engine.lifecycle.sessions import Sessions
from licet_engine.lifecycle.tenants import Tenants
from licet_engine.log.errors import SubmissionConflict
from licet_engine.log.sequencer import Sequencer
from licet_engine.log.submission import Insert, Submission, Update
from licet_engine.store import tables

EVENTS: Final = ("step", "completed", "rolled-back", "failed")
_ENDS: Final = frozenset({"rolled-back", "failed"})
"""What an alarm does: traffic returned; or there was nowhere to return to, and the version answers on, without a guard."""
_OVER: Final = frozenset({"retired", "failed", "rolled-back"})
"""States in which a deployment stays."""
_MAX_CAUSE_MEMBERS: Final = 16
_MAX_STATUS: Final = 10_000


class RouterDoor:
    """What the internal door offers to the router.

    Args:
        engine: Of the store.
        sequencer: Through which everything gets into the logs.
        tenants: What is in force, and who a token speaks for.
        desk: Where questions are answered.
        operations: Gathers what the signer needs for a warrant.
        per_token: Rates at which sessions are opened, of tokens; all that are nobody's have one together.
        per_tenant: The same, of tenants.

    Attributes:
        accounts: Of invocations.
    """

    def __init__(
        self,
        engine: Engine,
        sequencer: Sequencer,
        tenants: Tenants,
        desk: Desk,
        operations: Operations,
        *,
        per_token: Buckets,
        per_tenant: Buckets,
    ) -> None:
        self._sequencer, self._tenants = sequencer, tenants
        self._sessions = Sessions(tenants, desk, operations, per_token=per_token, per_tenant=per_tenant)
        self.accounts = InvocationAccounts(engine, sequencer)
        self._lock = threading.Lock()
        self._status: OrderedDict[tuple[str, str], tuple[int, dict[str, Any]]] = OrderedDict()

    def handlers(self) -> dict[str, Callable[[dict[str, Any]], Any]]:
        """The methods by name; parameters and results are canonical JSON."""
        return {
            "account": lambda p: {"last": self.accounts.last(p["tenant"], p["endpoint"])},
            "session": lambda p: self._sessions.open(p["token_hash_hex"], p["endpoint"]),
            "invocations": lambda p: {"last": self.accounts.take(p["tenant"], p["endpoint"], p["batch"])},
            "status": lambda p: self.take_status(p["tenant"], p["endpoint"], p["figures"]),
            "traffic": lambda p: self.traffic(p["tenant"], p["endpoint"], p["event"]),
        }

    # --- status ----------------------------------------------------------------------------------------------------

    def take_status(self, tenant: str, endpoint: str, figures: Any) -> dict[str, Any]:
        """Keep how an endpoint is doing, in memory: telemetry, and gone with this process."""
        own_name(tenant, endpoint)
        if not isinstance(figures, dict):
            raise InvalidInput("figures is an object")
        with self._lock:
            self._status[tenant, endpoint] = (now_ms(), figures)
            self._status.move_to_end((tenant, endpoint))
            while len(self._status) > _MAX_STATUS:
                self._status.popitem(last=False)
        return {}

    def status(self, tenant: str, endpoint: str) -> tuple[int, dict[str, Any]] | None:
        """When the router last told how an endpoint is doing, and what; None if it did not since this process began."""
        with self._lock:
            return self._status.get((tenant, endpoint))

    # --- traffic ---------------------------------------------------------------------------------------------------

    def traffic(self, tenant: str, endpoint: str, event: Any) -> dict[str, Any]:
        """Take note of a change of traffic that the router made by itself; one that is known is answered alike.

        Raises:
            InvalidInput: It is no such event, or of no deployment of this endpoint.
        """
        name = own_name(tenant, endpoint)
        sent = _event(event)

        def make() -> Submission:
            with self._tenants.view(tenant) as found:
                row = found[0].endpoint(name) if found is not None else None
                if found is None or row is None:
                    raise InvalidInput(f"{endpoint} was never deployed")
                view, in_force = found
                if view.has_moved_by_itself(name, sent["operation_id"], serial=sent["serial"]):
                    raise _KnownAlready
                return _move(view, row, endpoint, sent, in_force.facts_version)

        try:
            receipt = self._sequencer.append_fresh(make, again_on=(SubmissionConflict,))
        except _KnownAlready:
            return {"serial": sent["serial"]}
        for changed, version in receipt.facts_versions.items():
            self._tenants.seen(changed, version)
        return {"serial": sent["serial"]}


class _KnownAlready(Exception):
    """The event was taken note of before; never leaves this module."""


# --- the parts of a submission ----------------------------------------------------------------------------------------


def _event(sent: Any) -> dict[str, Any]:
    match sent:
        case {
            "kind": str(kind),
            "operation_id": str(operation),
            "weights": dict(weights),
            "shadow": str(shadow),
            "cause": dict(cause),
            "at_ms": int(at_ms),
            "serial": int(serial),
        }:
            pass
        case _:
            raise InvalidInput("an event has kind, operation_id, weights, shadow, cause, at_ms and serial")
    if (
        kind not in EVENTS
        or not WORD.fullmatch(operation)
        or not 0 <= serial <= MAX_NUMBER
        or not 0 <= at_ms <= MAX_NUMBER
    ):
        raise InvalidInput(f"an event is one of {', '.join(EVENTS)}, of an operation, with a time and a serial number")
    try:
        weights = check_weights(weights) if weights else {}
    except AdapterError as error:
        raise InvalidInput(f"event: {error}") from error
    if shadow and not VERSION_NUMBER.fullmatch(shadow):
        raise InvalidInput("event: shadow is a version number, or empty")
    told = [*cause, *(value for value in cause.values() if isinstance(value, str))]
    plain = all(isinstance(value, (str, int)) for value in cause.values())
    if len(cause) > _MAX_CAUSE_MEMBERS or not plain or any(len(text) > MAX_CAUSE_CHARS for text in told):
        raise InvalidInput("event: cause has a few members of text and integers")
    return {
        "kind": kind,
        "operation_id": operation,
        "weights": {number: percent for number, percent in weights.items() if percent},
        "shadow": shadow,
        "cause": cause,
        "at_ms": at_ms,
        "serial": serial,
    }


def _move(view: View, row: tables.Endpoint, endpoint: str, event: Mapping[str, Any], facts_version: int) -> Submission:
    tenant, name = row.tenant_id, row.name
    deployments = view.deployments(name)
    own = next((d for d in deployments if d.id == event["operation_id"]), None)
    operation = view.operation(event["operation_id"])
    if operation is None or operation.resource != endpoint or operation.action not in CHANGES:
        raise InvalidInput(f"no operation {event['operation_id']} was accepted on {endpoint}")
    fixed = {"v": 1, "type": "traffic", "endpoint": endpoint, **event}
    values: dict[str, Any] = {"weights": event["weights"], "shadow": event["shadow"], "updated_at_ms": event["at_ms"]}
    companions: list[Insert | Update] = [
        Insert(tables.TrafficEvent, [{"tenant_id": tenant, "endpoint": name, **event}]),
        # What was retired meanwhile stays without traffic.
        Update(
            tables.Endpoint,
            {"tenant_id": tenant, "name": name, "state": row.state},
            values if row.state != "retired" else {"updated_at_ms": event["at_ms"]},
        ),
    ]
    for deployment in deployments:
        state = _state_after(deployment, own, event)
        change: dict[str, Any] = {} if state == deployment.state else {"state": state}
        if deployment is own and event["kind"] in _ENDS and deployment.state not in _OVER:
            change |= {"cause": event["cause"]} | ({"ended_at_ms": event["at_ms"]} if state in _OVER else {})
            told = over(endpoint, deployment, event["kind"], event["weights"], event["cause"])
            companions += message_rows(tenant, mailing_of(view), (told,), event["at_ms"], deployment.decision_id)
        if change:
            companions.append(Update(tables.Deployment, {"tenant_id": tenant, "id": deployment.id}, change))
    return Submission(
        entries=[own_entry(tenant, "traffic", fixed)],
        expect={tenant: facts_version},
        companions=companions,
        bump=(tenant,),
    )


def _state_after(deployment: tables.Deployment, own: tables.Deployment | None, event: Mapping[str, Any]) -> str:
    number = str(deployment.version)
    if deployment.state in _OVER:
        return deployment.state
    if own is not None and deployment.id == own.id and event["kind"] != "failed":
        shadowed = "shadow" if own.strategy == "shadow" else "live"
        return {"step": "baking", "completed": shadowed}.get(event["kind"], str(event["kind"]))
    if deployment.state not in ON_ENDPOINT or not event["weights"]:
        # Of a retirement the operation itself says what it ends.
        return deployment.state
    # What is held warm for a return is on the endpoint still, without traffic.
    return "live" if event["weights"].get(number) else "shadow" if event["shadow"] == number else "superseded"
