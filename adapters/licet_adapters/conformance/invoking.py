"""The internal door of the api, as far as a router needs it: over a world's real signer and real log.

Nothing here pretends: a session stands on a decision in the world's log. What is told is verified as the api would:
numbers without gaps, each batch and each event once.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

from licet_adapters.errors import InputRefused
from licet_adapters.ports import check_endpoint
from licet_attestations import canonical
from licet_attestations.rpc import RpcFault, RpcUnavailable

if TYPE_CHECKING:
    from licet_adapters.conformance.world import World


_LONGEST_S = 30.0


class WorldDoor:
    """The door of one world.

    Args:
        world: Whose log and time.

    Attributes:
        allowed: Pairs of token and endpoint that policy permits.
        tokens: Tokens that are somebody's.
        is_away: The api does not answer.
        telling: While it is not set, what is told of traffic is not answered.
        asked: How often a session was asked for.
        events: What was told of traffic, by endpoint.
        batches: What was told of invocations, by endpoint.
        envelopes: What was attested.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._lock = threading.Lock()
        self.allowed: set[tuple[str, str]] = set()
        self.tokens: set[str] = set()
        self.is_away = False
        self.telling = threading.Event()
        self.telling.set()
        self.asked = 0
        self.events: dict[str, list[dict[str, Any]]] = {}
        self.batches: dict[str, list[dict[str, Any]]] = {}
        self.envelopes: list[bytes] = []

    def allow(self, endpoint: str) -> str:
        """A fresh token that may invoke ``endpoint``."""
        token = secrets.token_urlsafe(24)
        self.tokens.add(token)
        self.allowed.add((token, endpoint))
        return token

    def call(self, method: str, **params: Any) -> Any:
        """As the api's internal door."""
        if self.is_away:
            raise RpcUnavailable("the api is away")
        if method == "traffic" and not self.telling.wait(_LONGEST_S):
            raise RpcUnavailable("the api does not answer")
        with self._lock:
            return getattr(self, f"_{method}")(**params)

    def told(self, endpoint: str) -> tuple[Counter[str], int]:
        """All that was told of an endpoint's invocations: by status, and how many were lost."""
        with self._lock:
            found: Counter[str] = Counter()
            lost = 0
            for batch in self.batches.get(endpoint, []):
                lost += batch["lost"]
                for group in batch["groups"]:
                    found[group["status"]] += group["count"]
            return found, lost

    def kinds(self, endpoint: str) -> list[str]:
        """The kinds of the events that were told of an endpoint, in order."""
        with self._lock:
            return [event["kind"] for event in self.events.get(endpoint, [])]

    def _session(self, token_hash_hex: str, endpoint: str) -> dict[str, Any]:
        self.asked += 1
        token = next((one for one in self.tokens if hashlib.sha256(one.encode()).hexdigest() == token_hash_hex), None)
        if token is None:
            raise RpcFault("unauthenticated", "this token is nobody's")
        try:
            check_endpoint(endpoint, endpoint.partition("/")[0])
        except InputRefused as error:
            raise RpcFault("invalid-input", str(error)) from error
        if (token, endpoint) not in self.allowed:
            return {"allowed": False, "decision": secrets.token_hex(16)}
        parameters = {"endpoint": endpoint}
        tenant, operation_id = endpoint.partition("/")[0], secrets.token_hex(16)
        record = self._world.decide(
            "endpoint.invoke",
            operation_id=operation_id,
            resources={"endpoint": endpoint},
            parameters=parameters,
            tenant=tenant,
            step="session",
        )
        material = self._world.log(record, tenant=tenant)
        material |= {"salt": material["salt"].hex(), "proof": [part.hex() for part in material["proof"]]}
        return {
            "allowed": True,
            "tenant": tenant,
            "principal": f"Person::{tenant}/ana",
            "decision": canonical.loads(record)["id"],
            "operation_id": operation_id,
            "parameters": parameters,
            **material,
        }

    def _account(self, tenant: str, endpoint: str) -> dict[str, Any]:
        if not endpoint.startswith(f"{tenant}/"):
            raise RpcFault("invalid", "an endpoint of another tenant")
        known = self.batches.get(endpoint)
        return {"last": known[-1]["last"] if known else 0}

    def _invocations(self, tenant: str, endpoint: str, batch: dict[str, Any]) -> dict[str, Any]:
        if not endpoint.startswith(f"{tenant}/"):
            raise RpcFault("invalid", "an endpoint of another tenant")
        known = self.batches.setdefault(endpoint, [])
        if known and _key(batch) == _key(known[-1]):
            if batch != known[-1]:
                raise RpcFault("invalid", "a batch told again is another one")
            return {}
        expected = known[-1]["last"] + 1 if known else 1
        counted = sum(group["count"] for group in batch["groups"]) + batch["lost"]
        if batch["first"] != expected or counted != batch["last"] - batch["first"] + 1:
            raise RpcFault("invalid", f"a gap in the numbers: {expected} was to come, {batch['first']} came")
        known.append(batch)
        return {}

    def _traffic(self, tenant: str, endpoint: str, event: dict[str, Any]) -> dict[str, Any]:
        if not endpoint.startswith(f"{tenant}/"):
            raise RpcFault("invalid", "an endpoint of another tenant")
        known = self.events.setdefault(endpoint, [])
        if known and event["serial"] <= known[-1]["serial"]:
            return {}
        if event["serial"] != (known[-1]["serial"] + 1 if known else 1):
            raise RpcFault("invalid", "an event is missing")
        known.append(event)
        return {}

    def _attest(self, tenant: str, operation: str, envelope: str) -> dict[str, Any]:
        del tenant, operation
        if envelope.encode() not in self.envelopes:
            self.envelopes.append(envelope.encode())
        return {}


def _key(batch: dict[str, Any]) -> tuple[Any, ...]:
    return batch["router"], batch["epoch"], batch["first"]
