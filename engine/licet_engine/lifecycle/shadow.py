"""A candidate beside the policies in force: which bundle it is. What it would have answered is found in `shadowing`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from licet_engine.domain.errors import Conflict
from licet_engine.domain.refs import Ref
from licet_engine.lifecycle.facts import View
from licet_engine.lifecycle.verbs import Body, Change, Ids, Insert, Note, Proposal, RefForm, Update, Verb, Who
from licet_engine.store.tables import PolicyBundle, PolicyShadow


class ShadowPolicies(Body):
    """The candidate, by its digest or the first characters of it, at least eight; or ``off``, for none any more."""

    bundle: Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")] | None = None
    off: bool = False

    @model_validator(mode="after")
    def _one_or_off(self) -> ShadowPolicies:
        if (self.bundle is not None) == self.off:
            raise ValueError("name a bundle, or say off to end the shadow that there is")
        return self


def ending(at_ms: int, why: str, shadow: str | None = None) -> Update:
    """What ends the shadow that there is, if there is one; with ``shadow``, the one of that identifier, and no other.

    Updates are made after inserts: who sets another in the same change names the one that ends.
    """
    where = {"ended_at_ms": None} | ({} if shadow is None else {"id": shadow})
    return Update(PolicyShadow, where, {"ended_at_ms": at_ms, "ended": why}, rows=None)


def ask_shadow(view: View, who: Who, ref: Ref, body: ShadowPolicies, ids: Ids) -> Proposal | None:
    """A candidate as it would be set, or the end of the one that there is. No answer changes by either."""
    running = view.running_shadow()
    if body.bundle is None:
        return _off(view, who, ref, running, ids)
    row = view.bundle_by_prefix(body.bundle)
    if row is None:
        return None
    told = {"bundle": row.digest_hex, "active": view.tenant.bundle_digest_hex or ""}
    made = {
        "id": ids.decision,
        "bundle_hex": told["bundle"],
        "active_hex": told["active"],
        "set_by": who.id,
        "since_ms": ids.now_ms,
        "ended_at_ms": None,
        "ended": None,
    }
    return Proposal(
        resource=view.bundle_entity(row),
        change=Change(
            inserts=(Insert(PolicyShadow, made),),
            updates=() if running is None else (ending(ids.now_ms, "replaced", running.id),),
            notes=(Note("policy", {"event": "policy-shadowed", "shadow": ids.decision, **told, "by": who.id}),),
        ),
        conflict=_conflict(ref, row, running),
        result={"shadow": ids.decision, "ref": f"{ref.tenant}/{row.digest_hex[:16]}", **told},
    )


def _conflict(ref: Ref, row: PolicyBundle, running: PolicyShadow | None) -> Conflict | None:
    named = f"bundle {ref.tenant}/{row.digest_hex[:16]}"
    if running is not None and running.bundle_hex == row.digest_hex:
        return Conflict(f"{named} runs beside the policies in force already")
    if row.state == "active":
        return Conflict(f"{named} is in force: another is to run beside it")
    if row.state != "published":
        return Conflict(f"{named} is {row.state}: publish it again, to have it run beside the policies in force")
    return None


def _off(view: View, who: Who, ref: Ref, running: PolicyShadow | None, ids: Ids) -> Proposal | None:
    row = view.bundle(running.bundle_hex if running is not None else view.tenant.bundle_digest_hex or "")
    if row is None:
        return None
    if running is None:
        nothing = Conflict(f"no bundle runs beside the policies in force of {ref.tenant}")
        return Proposal(resource=view.bundle_entity(row), conflict=nothing)
    told = {"shadow": running.id, "bundle": row.digest_hex}
    return Proposal(
        resource=view.bundle_entity(row),
        change=Change(
            updates=(ending(ids.now_ms, "off", running.id),),
            notes=(Note("policy", {"event": "policy-shadow-ended", **told, "by": who.id}),),
        ),
        result=told,
    )


VERBS = (
    Verb(
        action="policy.shadow",
        summary="Have a published bundle run beside the policies in force, or end that.",
        form=RefForm.TENANT,
        body=ShadowPolicies,
        propose=ask_shadow,
    ),
)
