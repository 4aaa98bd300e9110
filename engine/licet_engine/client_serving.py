"""Endpoints in the Python client: the verbs that go to the api, and invocations, which go to the router.

Rules kept here:

- The token goes to the api and to the router that the caller named, and nowhere that an answer names.
- Values of an inference are floats; they are never decided on, and never logged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Unpack

from licet_engine.client_nouns import Sent, Verbs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from licet_engine.client_values import Answer

DEFAULT_SERVING_URL = "http://127.0.0.1:8001"


@dataclass(frozen=True, slots=True)
class Invocation:
    """What an endpoint answered.

    Attributes:
        outputs: By name: shape, datatype and data, as the Open Inference Protocol has them.
        version: Number of the version that answered.
        number: Of this invocation in the endpoint's account.
        session: Id of the decision under which it was permitted.
        body: The whole answer.
    """

    outputs: Mapping[str, Mapping[str, Any]]
    version: str
    number: int
    session: str
    body: Mapping[str, Any] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """As the command line tells it."""
        return {
            "version": self.version,
            "invocation": self.number,
            "session": self.session,
            "response": dict(self.body),
        }


class EndpointVerbs(Verbs):
    """Endpoints."""

    def deploy(
        self,
        ref: str,
        version: str,
        *,
        alarms: Sequence[Mapping[str, Any]],
        strategy: str | None = None,
        steps: Sequence[int] | None = None,
        bake_s: int | None = None,
        region: str | None = None,
        replicas: Mapping[str, int] | None = None,
        batch: Mapping[str, int] | None = None,
        timeout_ms: int | None = None,
        max_request_bytes: int | None = None,
        **sent: Unpack[Sent],
    ) -> Answer:
        """Put a model version on the endpoint ``ref``, watched by ``alarms``."""
        return self._act(
            "endpoint.deploy",
            ref,
            sent,
            version=version,
            alarms=[dict(alarm) for alarm in alarms],
            strategy=strategy,
            steps=None if steps is None else list(steps),
            bake_s=bake_s,
            region=region,
            replicas=None if replicas is None else dict(replicas),
            batch=None if batch is None else dict(batch),
            timeout_ms=timeout_ms,
            max_request_bytes=max_request_bytes,
        )

    def shift_traffic(
        self,
        ref: str,
        weights: Mapping[str, int],
        *,
        shadow: str | None = None,
        reason: str | None = None,
        **sent: Unpack[Sent],
    ) -> Answer:
        """Divide the traffic: version number, as text, to percent."""
        return self._act("endpoint.shift-traffic", ref, sent, weights=dict(weights), shadow=shadow, reason=reason)

    def roll_back(self, ref: str, *, reason: str | None = None, **sent: Unpack[Sent]) -> Answer:
        """Return all traffic to the version before."""
        return self._act("endpoint.roll-back", ref, sent, reason=reason)

    def retire(self, ref: str, **sent: Unpack[Sent]) -> Answer:
        """Drain it and stop everything of it."""
        return self._act("endpoint.retire", ref, sent)

    def read(self, ref: str, **sent: Unpack[Sent]) -> Answer:
        """What is known of it, as the answer's ``result["endpoint"]``."""
        return self._act("endpoint.read", ref, sent)

    def show(self, ref: str) -> dict[str, Any]:
        """An endpoint with its events and invocations, and how the router says it is doing."""
        tenant, _, name = ref.partition("/")
        return self._client.get_json("/v1/endpoints", tenant, name)

    def may_invoke(self, ref: str, **sent: Unpack[Sent]) -> Answer:
        """Ask whether it may be invoked; nothing is put to it."""
        return self._act("endpoint.invoke", ref, sent)

    def invoke(self, ref: str, body: Mapping[str, Any], *, version: int | None = None) -> Invocation:
        """Put an inference request to an endpoint, at the router.

        Args:
            ref: ``tenant/endpoint``.
            body: The request as the Open Inference Protocol has it: ``inputs`` with name, shape, datatype and data.
            version: Which version is to answer; as the traffic is divided, if left out.

        Raises:
            Denied: It may not be invoked, or is not there: which of the two, nobody is told.
        """
        return self._client.infer(ref, body, version=version)


def rows_request(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """An inference request for rows of named numbers: one tensor for each column."""
    names = list(rows[0]) if rows else []
    return {
        "inputs": [
            {"name": name, "shape": [len(rows)], "datatype": "FP32", "data": [float(row[name]) for row in rows]}
            for name in names
        ]
    }
