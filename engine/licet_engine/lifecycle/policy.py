"""Policy bundles: activate, roll back, read. How one is published stands in `publication`."""

from __future__ import annotations

from typing import Any

from licet_attestations import canonical
from licet_engine.domain.errors import Conflict
from licet_engine.domain.refs import Ref
from licet_engine.lifecycle.facts import BUNDLE_PREFIX_CHARS, View
from licet_engine.lifecycle.publication import document_of
from licet_engine.lifecycle.shadow import ending
from licet_engine.lifecycle.verbs import Body, Change, Ids, NoBody, Note, Proposal, RefForm, Update, Verb, Who
from licet_engine.store.tables import Approval, PolicyBundle, Publication, Tenant


class ReadPolicies(Body):
    """What of a bundle is wanted beside what it is."""

    body: bool = False
    """The bundle itself, as JSON: its canonical form has the digest."""
    project: bool = False
    """The project that was sent to be published."""


def ask_activate(view: View, who: Who, ref: Ref, _body: NoBody, ids: Ids) -> Proposal | None:
    """The bundle comes into force, at once and whole; the one before it can be rolled back to."""
    row = view.bundle_by_prefix(ref.name)
    if row is None:
        return _not_published(view, ref)
    active = view.tenant.bundle_digest_hex
    conflict = Conflict(f"bundle {ref} is in force already") if row.digest_hex == active else None
    if row.state == "superseded":
        # It was in force once; that two people wanted it then is no reason for one to bring it back now.
        conflict = Conflict(
            f"bundle {ref} was in force before and was superseded: publish it again, for another to activate"
        )
    elif not row.proved:
        # Said by a guardrail as well; the policies in force may be older than that.
        conflict = Conflict(f"bundle {ref} was published before bundles were examined: publish it again")
    note = Note("policy", {"event": "policy-activated", "bundle": row.digest_hex, "before": active, "by": who.id})
    return Proposal(
        resource=view.bundle_entity(row),
        change=Change(updates=_coming_into_force(row, active, who, ids, before_hex=active), notes=(note,)),
        conflict=conflict,
        result={"bundle": row.digest_hex, "before": active},
    )


def _not_published(view: View, ref: Ref) -> Proposal | None:
    """What is to be activated and is no bundle: it was refused, or it is a publication that is named."""
    sent = view.publication_named(ref.name)
    if sent is None:
        return None
    row = None if sent.bundle_hex is None else view.bundle(sent.bundle_hex)
    named = f"{ref.tenant}/{sent.id}"
    if row is not None:
        why = f"{named} is a publication: activate its bundle, {ref.tenant}/{row.digest_hex[:BUNDLE_PREFIX_CHARS]}"
    elif sent.state == "refused":
        why = f"publication {named} was refused, so it is no bundle: licet policy show {named} tells what was found"
    else:
        why = f"publication {named} is being examined: wait for what comes of it"
    return Proposal(resource=view.bundle_entity(row or _as_bundle(view, sent)), conflict=Conflict(why))


def ask_roll_back(view: View, who: Who, ref: Ref, _body: NoBody, ids: Ids) -> Proposal | None:
    """The bundle that was in force right before the present one comes back, at once and whole.

    It is decided as its activation would be: not by who wrote it, so that two people are behind it now, whoever was behind
    it then. It is one step, and none from there: of what came back nobody can roll back further, nor forth again, for what
    two people put aside long ago, or a minute ago, is nothing that one may bring back.
    """
    active = view.bundle(view.tenant.bundle_digest_hex or "")
    if active is None:
        return None
    row = None if active.before_hex is None else view.bundle(active.before_hex)
    if row is None:
        nothing = Conflict(
            f"bundle {ref.tenant}/{active.digest_hex[:BUNDLE_PREFIX_CHARS]} has none before it to roll back to: publish the one that is"
            " wanted, for another to activate"
        )
        return Proposal(resource=view.bundle_entity(active), conflict=nothing)
    told = {"bundle": row.digest_hex, "before": active.digest_hex}
    note = Note("policy", {"event": "policy-rolled-back", **told, "by": who.id})
    return Proposal(
        resource=view.bundle_entity(row),
        change=Change(updates=_coming_into_force(row, active.digest_hex, who, ids, before_hex=None), notes=(note,)),
        result=told | {"ref": f"{ref.tenant}/{row.digest_hex[:BUNDLE_PREFIX_CHARS]}"},
    )


def _coming_into_force(
    row: PolicyBundle, active: str | None, who: Who, ids: Ids, *, before_hex: str | None
) -> list[Update]:
    """What changes as a bundle comes into force in place of the active one; ``before_hex`` may then be rolled back to.

    All of it is one transaction: there is no moment without policies.
    """
    come = {
        "state": "active",
        "activated_at_ms": ids.now_ms,
        "activated_by": who.name,
        "before_hex": before_hex,
    }
    updates = [
        Update(PolicyBundle, {"digest_hex": row.digest_hex}, come),
        Update(Tenant, {"bundle_digest_hex": active}, {"bundle_digest_hex": row.digest_hex}),
        # Approvals were given under the policies before; they do not come back with them either.
        Update(Approval, {"voided_at_ms": None}, {"voided_at_ms": ids.now_ms}, rows=None),
        # What a candidate was compared with is no longer in force.
        ending(ids.now_ms, "overtaken"),
    ]
    if active is not None and active != row.digest_hex:
        updates.append(Update(PolicyBundle, {"digest_hex": active}, {"state": "superseded"}))
    return updates


def ask_read(view: View, _who: Who, ref: Ref, body: ReadPolicies, _ids: Ids) -> Proposal | None:
    """What a bundle is, who is behind it, and what was found when it was published; or a publication that came to none."""
    row = view.bundle_by_prefix(ref.name)
    publication = view.publication_named(ref.name) if row is None else view.last_publication(row.digest_hex)
    if row is None and publication is not None and publication.state == "published" and publication.bundle_hex:
        row = view.bundle(publication.bundle_hex)
    result: dict[str, Any] = {"publication": None if publication is None else _told(view, publication)}
    if row is not None:
        bundle = canonical.loads(row.body, max_bytes=len(row.body))
        result |= {
            "bundle": row.digest_hex,
            "ref": f"{ref.tenant}/{row.digest_hex[:BUNDLE_PREFIX_CHARS]}",
            "author": row.author,
            "state": row.state,
            "proved": row.proved,
            "attestation_hex": row.attestation_hex,
            "created_at_ms": row.created_at_ms,
            "activated_by": row.activated_by,
            "activated_at_ms": row.activated_at_ms,
            "packs": bundle["packs"],
            "policies": bundle["policies"],
        }
        if body.body:
            result["body"] = bundle
    conflict = None
    if body.project:
        sent = None if publication is None else view.operation(publication.id)
        if sent is None or publication is None:
            conflict = Conflict(f"{ref} was not sent as a project: there is none to give back")
        elif not sent.asked:
            conflict = Conflict(f"the project that {ref} was sent as is erased, with the record of its publication")
        else:
            result["project"] = document_of(sent.asked, publication.project_hex).to_json()
    if row is None and publication is not None:
        row = _as_bundle(view, publication)
    if row is None:
        return None
    return Proposal(resource=view.bundle_entity(row), conflict=conflict, result=result)


def _told(view: View, publication: Publication) -> dict[str, Any]:
    return {
        "id": publication.id,
        "ref": f"{view.tenant.tenant_id}/{publication.id}",
        "state": publication.state,
        "project_hex": publication.project_hex,
        "bundle_hex": publication.bundle_hex,
        "published_by": publication.published_by,
        "author": publication.author,
        "created_at_ms": publication.created_at_ms,
        "ended_at_ms": publication.ended_at_ms,
        "attestation_hex": publication.attestation_hex,
        "report": publication.report,
    }


def _as_bundle(view: View, publication: Publication) -> PolicyBundle:
    """What was sent and never became a bundle, as policy looks at it."""
    return PolicyBundle(
        tenant_id=view.tenant.tenant_id,
        digest_hex=publication.project_hex,
        author=publication.author,
        state=publication.state,
        proved=False,
        body=b"",
        created_at_ms=publication.created_at_ms,
    )


VERBS = (
    Verb(
        action="policy.activate",
        summary="Put a published bundle in force.",
        form=RefForm.BUNDLE,
        body=NoBody,
        propose=ask_activate,
    ),
    Verb(
        action="policy.roll-back",
        summary="Bring back the bundle that was in force right before the present one.",
        form=RefForm.TENANT,
        body=NoBody,
        propose=ask_roll_back,
    ),
    Verb(
        action="policy.read",
        summary="Show a bundle, or what came of a publication.",
        form=RefForm.BUNDLE,
        body=ReadPolicies,
        propose=ask_read,
    ),
)
