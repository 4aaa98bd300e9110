"""Policy bundles: publish, activate, roll back, read."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from licet_attestations import canonical
from licet_engine.decide.bundle import CompiledBundle
from licet_engine.decide.errors import BundleError
from licet_engine.domain.errors import Conflict, InvalidInput
from licet_engine.domain.refs import Ref
from licet_engine.lifecycle.facts import Entity, View
from licet_engine.lifecycle.people import PackChosen, first_bundle
from licet_engine.lifecycle.shadow import ending
from licet_engine.lifecycle.verbs import (
    Body,
    Change,
    Ids,
    Insert,
    NoBody,
    Note,
    Proposal,
    RefForm,
    Update,
    Verb,
    Who,
)
from licet_engine.store.tables import Approval, PolicyBundle, Tenant
from licet_policies.bundle import MAX_OWN_CHARS, MAX_OWN_POLICIES


class PublishPolicies(Body):
    """The packs and own policies of a tenant, all of them: what is left out is no longer in force once activated."""

    packs: list[PackChosen] = Field(default_factory=list, max_length=32)
    policies: Annotated[str, Field(max_length=MAX_OWN_CHARS)] = ""


def sketch_publish(view: View, who: Who, ref: Ref) -> Entity:
    """The bundle as far as policy looks at it, before the work of composing it is done for someone who may not publish."""
    row = PolicyBundle(
        tenant_id=ref.tenant,
        digest_hex="0" * 64,
        author=who.name,
        state="published",
        proved=False,
        body=b"",
        created_at_ms=0,
        activated_at_ms=None,
    )
    return view.bundle_entity(row)


def ask_publish(view: View, who: Who, ref: Ref, body: PublishPolicies, ids: Ids) -> Proposal:
    """A bundle as it would be: composed, validated, compiled, stored under its digest."""
    if body.policies.count(";") > MAX_OWN_POLICIES:
        raise InvalidInput(f"at most {MAX_OWN_POLICIES} own policies are taken")
    data = first_bundle(body.packs, body.policies)
    try:
        CompiledBundle.compile(canonical.loads(data, max_bytes=len(data)))
    except BundleError as error:
        raise InvalidInput(f"the bundle cannot be published: {error}") from error
    digest_hex = hashlib.sha256(data).hexdigest()
    row = PolicyBundle(
        tenant_id=ref.tenant,
        digest_hex=digest_hex,
        author=who.name,
        state="published",
        proved=False,
        body=data,
        created_at_ms=ids.now_ms,
        activated_at_ms=None,
    )
    conflict = None
    present = view.bundle(digest_hex)
    change = Change(inserts=(Insert(PolicyBundle, row.model_dump()),))
    if present is not None and present.state != "superseded":
        conflict = Conflict(f"bundle {digest_hex[:16]} is {present.state} already")
    elif present is not None:
        again = {"author": who.name, "state": "published", "created_at_ms": ids.now_ms}
        change = Change(updates=(Update(PolicyBundle, {"digest_hex": digest_hex, "state": "superseded"}, again),))
    note = Note("policy", {"event": "policy-published", "bundle": digest_hex, "author": who.id})
    return Proposal(
        resource=view.bundle_entity(row),
        change=replace(change, notes=(note,)),
        conflict=conflict,
        result={"bundle": digest_hex, "ref": f"{ref.tenant}/{digest_hex[:16]}"},
    )


def ask_activate(view: View, who: Who, ref: Ref, _body: NoBody, ids: Ids) -> Proposal | None:
    """The bundle comes into force, at once and whole; the one before it can be rolled back to."""
    row = view.bundle_by_prefix(ref.name)
    if row is None:
        return None
    active = view.tenant.bundle_digest_hex
    conflict = Conflict(f"bundle {ref} is in force already") if row.digest_hex == active else None
    if row.state == "superseded":
        # It was in force once; that two people wanted it then is no reason for one to bring it back now.
        conflict = Conflict(
            f"bundle {ref} was in force before and was superseded: publish it again, for another to activate"
        )
    note = Note("policy", {"event": "policy-activated", "bundle": row.digest_hex, "before": active, "by": who.id})
    return Proposal(
        resource=view.bundle_entity(row),
        change=Change(updates=_coming_into_force(row, active, ids, before_hex=active), notes=(note,)),
        conflict=conflict,
        result={"bundle": row.digest_hex, "before": active},
    )


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
            f"bundle {ref.tenant}/{active.digest_hex[:16]} has none before it to roll back to: publish the one that is"
            " wanted, for another to activate"
        )
        return Proposal(resource=view.bundle_entity(active), conflict=nothing)
    told = {"bundle": row.digest_hex, "before": active.digest_hex}
    note = Note("policy", {"event": "policy-rolled-back", **told, "by": who.id})
    return Proposal(
        resource=view.bundle_entity(row),
        change=Change(updates=_coming_into_force(row, active.digest_hex, ids, before_hex=None), notes=(note,)),
        result=told | {"ref": f"{ref.tenant}/{row.digest_hex[:16]}"},
    )


def _coming_into_force(row: PolicyBundle, active: str | None, ids: Ids, *, before_hex: str | None) -> list[Update]:
    """What changes as a bundle comes into force in place of the active one; ``before_hex`` may then be rolled back to.

    All of it is one transaction: there is no moment without policies.
    """
    come = {"state": "active", "activated_at_ms": ids.now_ms, "before_hex": before_hex}
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


def ask_read(view: View, _who: Who, ref: Ref, _body: NoBody, _ids: Ids) -> Proposal | None:
    """The text of a bundle."""
    row = view.bundle_by_prefix(ref.name)
    if row is None:
        return None
    body = canonical.loads(row.body, max_bytes=len(row.body))
    result = {
        "bundle": row.digest_hex,
        "author": row.author,
        "state": row.state,
        "packs": body["packs"],
        "policies": body["policies"],
    }
    return Proposal(resource=view.bundle_entity(row), result=result)


VERBS = (
    Verb(
        action="policy.publish",
        summary="Publish a bundle of packs and own policies.",
        form=RefForm.TENANT,
        body=PublishPolicies,
        propose=ask_publish,
        sketch=sketch_publish,
        creates=True,
    ),
    Verb(
        action="policy.activate",
        summary="Put a published bundle in force.",
        form=RefForm.NAME,
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
    Verb(action="policy.read", summary="Show a bundle.", form=RefForm.NAME, body=NoBody, propose=ask_read),
)
