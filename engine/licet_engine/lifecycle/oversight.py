"""What is asked of a tenant as a whole: export evidence, read the log, decisions and lists, destroy the key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from licet_engine.domain.errors import InvalidInput
from licet_engine.domain.refs import Ref
from licet_engine.lifecycle.data import Text
from licet_engine.lifecycle.facts import View
from licet_engine.lifecycle.verbs import Body, Change, Ids, NoBody, Note, Proposal, RefForm, Verb, Who
from licet_engine.store.tables import Operation

if TYPE_CHECKING:
    from licet_engine.lifecycle.deed import Deed


class ExportEvidence(Body):
    """Between which times. All that is logged from the one on and before the other; without, from the beginning and to now."""

    from_ms: Annotated[int, Field(ge=0, lt=1 << 53)] | None = None
    to_ms: Annotated[int, Field(ge=0, lt=1 << 53)] | None = None


class DestroyKey(Body):
    """Why the tenant's key is destroyed: everything stored under it becomes unreadable for good."""

    reason: Text


def ask_export(view: View, who: Who, ref: Ref, body: ExportEvidence, ids: Ids) -> Proposal:
    """One archive with the tenant's log, between two times if they are given, and everything it names."""
    if body.from_ms is not None and body.to_ms is not None and body.from_ms > body.to_ms:
        raise InvalidInput("from_ms is after to_ms: name the earlier time first")
    if body.from_ms is not None and body.from_ms > ids.now_ms:
        raise InvalidInput("from_ms is in the future, of which nothing is logged yet")
    if body.to_ms is not None and body.to_ms > ids.now_ms:
        # This question is logged before the archive is made, which so shows that nothing of the time comes later.
        raise InvalidInput(
            "to_ms is in the future: more of that time may be logged yet; leave it out to export up to now"
        )
    return Proposal(
        resource=view.evidence_entity(),
        parameters={"tenant": ref.tenant, "asked_by": who.id, "from_ms": body.from_ms, "to_ms": body.to_ms},
    )


def do_export(deed: Deed) -> Mapping[str, Any]:
    """Write the archive; its statement is signed under a warrant."""
    return deed.step(
        "export",
        lambda warrant, _attempt: deed.export_evidence(warrant),
        adapter="evidence",
        operation="evidence.export",
        resources={"tenant": deed.tenant},
    )


def finish_export(_view: View, operation: Operation, result: Mapping[str, Any], _now_ms: int) -> Change:
    """The log says what was exported, and under which digest."""
    return Change(notes=(Note("export", {"event": "evidence-exported", "operation": operation.id, **result}),))


def ask_of_log(view: View, _who: Who, ref: Ref, _body: NoBody, _ids: Ids) -> Proposal:
    """The tenant's log, or what stands in it."""
    return Proposal(resource=view.plain_entity("Log", Ref(ref.tenant, "log")))


def ask_of_catalogue(view: View, _who: Who, _ref: Ref, _body: NoBody, _ids: Ids) -> Proposal:
    """What the tenant has: datasets, runs, models, people and the like, by name and state, without what is in them."""
    return Proposal(resource=view.tenant_entity())


def ask_destroy_key(view: View, _who: Who, ref: Ref, body: DestroyKey, _ids: Ids) -> Proposal:
    """The tenant's key is gone, and with it everything that was sealed under it."""
    return Proposal(resource=view.key_entity(), parameters={"tenant": ref.tenant, "reason": body.reason})


def do_destroy_key(deed: Deed) -> Mapping[str, Any]:
    """Have the signer erase the key."""

    def destroy(warrant: bytes, _attempt: int) -> dict[str, Any]:
        deed.signer.destroy_tenant_key(deed.tenant, warrant)
        return {"destroyed": True}

    return deed.step("destroy", destroy, adapter="signer", operation="keys.destroy", resources={"tenant": deed.tenant})


def finish_destroy_key(_view: View, operation: Operation, _result: Mapping[str, Any], _now_ms: int) -> Change:
    """The log says that the key is gone."""
    note = Note("key", {"event": "tenant-key-destroyed", "operation": operation.id, **operation.parameters})
    return Change(notes=(note,))


def _of_log(action: str, summary: str) -> Verb:
    return Verb(action=action, summary=summary, form=RefForm.TENANT, body=NoBody, propose=ask_of_log)


VERBS = (
    Verb(
        action="evidence.export",
        summary="Export the tenant's evidence as one archive.",
        form=RefForm.TENANT,
        body=ExportEvidence,
        propose=ask_export,
        do=do_export,
        finish=finish_export,
    ),
    _of_log("log.read", "Read the tenant's log."),
    _of_log("decision.read", "Read decisions."),
    _of_log("decision.explain", "Have decisions explained."),
    _of_log("operation.read", "Read operations."),
    Verb(
        action="catalogue.read",
        summary="List what the tenant has.",
        form=RefForm.TENANT,
        body=NoBody,
        propose=ask_of_catalogue,
    ),
    Verb(
        action="key.destroy",
        summary="Destroy the tenant's key, and so everything stored under it.",
        form=RefForm.TENANT,
        body=DestroyKey,
        propose=ask_destroy_key,
        do=do_destroy_key,
        finish=finish_destroy_key,
    ),
)
