"""Attestations: listed, given out with the proof that they are logged, and made of decisions and activations on demand.

Rules kept here:

- They are evidence of their tenant's, and small parts of what an export holds: whoever may have that may have these. Who may read
  a decision may have it attested.
- Whether there is one is told after it was permitted, and alike for what is not there and what is another tenant's.
"""

from __future__ import annotations

import re
from typing import Any, Final

from litestar import Response, get

from licet_engine.api import lists
from licet_engine.api.context import AnyRequest, Context
from licet_engine.api.problems import denied
from licet_engine.domain.errors import InvalidInput
from licet_engine.evidence.attestations import MAX_ROWS

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_MAX_SUBJECT_CHARS: Final = 256


def routes(context: Context) -> list[Any]:
    """Attestations."""
    return [*_given_out(context), *_on_demand(context)]


def _given_out(context: Context) -> list[Any]:
    services = context.services

    @get(
        "/v1/attestations/{tenant:str}",
        tags=["attestation"],
        summary="The newest attestations of a tenant, of one kind or about one thing.",
    )
    async def attestations(
        request: AnyRequest, tenant: str, kind: str = "", about: str = "", limit: int = 50
    ) -> Response[Any]:
        answer = await context.permit(context.identify(request), "evidence.export", tenant, own=None)
        if not answer.decision.allowed:
            return denied(answer)
        bounded = max(1, min(limit, MAX_ROWS))
        about = about[:_MAX_SUBJECT_CHARS]
        found = await context.in_slow_thread(
            lambda: services.attestations.newest(tenant, kind=kind, subject=about, limit=bounded)
        )
        return Response({"items": found})

    @get(
        "/v1/attestations/{tenant:str}/{digest:str}",
        tags=["attestation"],
        summary="An attestation as it was signed, and the proof that it is logged.",
    )
    async def attestation(request: AnyRequest, tenant: str, digest: str) -> Response[Any]:
        answer = await context.permit(context.identify(request), "evidence.export", tenant, own=None)
        if not answer.decision.allowed:
            return denied(answer)
        found = (
            await context.in_thread(services.attestations.read, tenant, digest) if _DIGEST.fullmatch(digest) else None
        )
        if found is None:
            raise InvalidInput(
                "there is no attestation of that digest; licet attestation list names them", code="no-such-attestation"
            )
        return Response(found)

    @get(
        "/v1/trust-root/rotations",
        tags=["log"],
        summary="The signed statements by which earlier trust roots lead to this one, in their order, with the proofs that they are logged.",
    )
    async def rotations() -> dict[str, Any]:
        return {"rotations": await context.in_thread(services.attestations.rotations)}

    return [attestations, attestation, rotations]


def _on_demand(context: Context) -> list[Any]:
    services = context.services

    @get(
        "/v1/attestations/{tenant:str}/decision/{decision:str}",
        tags=["attestation"],
        summary="A signed statement of a decision with its proof, made now if there is none yet.",
    )
    async def of_decision(request: AnyRequest, tenant: str, decision: str) -> Response[Any]:
        identify = context.identify(request)
        who = identify()
        row = await context.in_thread(lists.decision_row, services, who, tenant, decision)
        if row is None:
            return denied(await context.permit_of(identify, "decision.read", tenant, decision, is_found=False))
        answer = await context.permit(identify, "decision.read", tenant, own=row.principal == who.id)
        if not answer.decision.allowed:
            return denied(answer)
        return Response(await context.in_thread(services.attestations.of_decision, tenant, row.leaf_index))

    @get(
        "/v1/attestations/{tenant:str}/policy/{bundle:str}",
        tags=["attestation"],
        summary="A signed statement that policies came into force with its proof, made now if there is none yet.",
    )
    async def of_activation(request: AnyRequest, tenant: str, bundle: str) -> Response[Any]:
        answer = await context.permit(context.identify(request), "evidence.export", tenant, own=None)
        if not answer.decision.allowed:
            return denied(answer)
        return Response(await context.in_thread(services.attestations.of_activation, tenant, bundle))

    @get(
        "/v1/attestations/{tenant:str}/entry/{index:int}",
        tags=["attestation"],
        summary="A signed statement of an entry of the log with its proof: a decision, policies in force, traffic that moved by itself.",
    )
    async def of_entry(request: AnyRequest, tenant: str, index: int) -> Response[Any]:
        answer = await context.permit(context.identify(request), "evidence.export", tenant, own=None)
        if not answer.decision.allowed:
            return denied(answer)
        return Response(await context.in_thread(services.attestations.of_entry, tenant, index))

    return [of_decision, of_activation, of_entry]
