"""Tenants, people and their tokens: create, administer, suspend, issue, revoke."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from licet_attestations import canonical
from licet_engine.domain.errors import Conflict, InvalidInput
from licet_engine.domain.keeping import MAX_DAYS, MAX_SHORTENED, changed
from licet_engine.domain.refs import PLATFORM, Ref, parse_name, parse_role
from licet_engine.lifecycle.approvals import Track
from licet_engine.lifecycle.data import Hex, Id, Word
from licet_engine.lifecycle.facts import View, tenant_entity
from licet_engine.lifecycle.provenance import RUNTIME_DIGEST_HEX, TRAINING_CODE_DIGEST_HEX
from licet_engine.lifecycle.verbs import Body, Change, Ids, Insert, NoBody, Note, Proposal, RefForm, Update, Verb, Who
from licet_engine.store.tables import ApiToken, Approval, Budget, Environment, PolicyBundle, Principal, Tenant
from licet_policies import LicetPoliciesError, PackChoice, compose

ROLES = (
    "administrator",
    "auditor",
    "compliance",
    "data-scientist",
    "model-risk",
    "operator",
    "pipeline",
    "security-engineer",
)
"""The roles that the platform's grants speak of."""
OF_SERVICES = frozenset({"pipeline"})
"""Roles that only a service account may have."""

TOKEN_PREFIX = "licet_"  # noqa: S105 - what every token begins with, so that a leaked one is recognised.
_TOKEN_BYTES = 32
DEFAULT_TOKEN_TTL_S = 90 * 24 * 3600


class PackChosen(Body):
    """A pack in force for a tenant."""

    name: Word
    mode: Annotated[str, Field(pattern="^(observe|enforce)$")] = "enforce"
    parameters: dict[str, Any] = Field(default_factory=dict, max_length=64)


class CreateTenant(Body):
    """A tenant, its first administrator and the packs it begins with."""

    region: Word
    administrator: Word = "admin"
    packs: list[PackChosen] = Field(default_factory=list, max_length=32)
    # A first administrator must be able to come in, so the operator hands one token over, valid for a day.
    token_ttl_s: Annotated[int, Field(ge=60, le=7 * 24 * 3600)] = 24 * 3600


class EnvironmentSet(Body):
    """An environment where runs may be executed.

    Attributes:
        name: By which runs name it.
        region: Where it is, as its operators say: nothing on this machine can tell.
        runtimes_allowed: Digests of interpreter and libraries in which runs may be executed; what is installed here, if not given.
        code_allowed: Digests of the code that may run; the platform's own training job, if not given.
    """

    name: Word
    region: Word
    runtimes_allowed: list[Hex] = Field(default_factory=lambda: [RUNTIME_DIGEST_HEX], max_length=64)
    code_allowed: list[Hex] = Field(default_factory=lambda: [TRAINING_CODE_DIGEST_HEX], max_length=64)


_Duration = Annotated[int, Field(ge=60, le=3660 * 86_400)]


class AdministerTenant(Body):
    """Environments, budgets, terms of approval and the time of keeping evidence to set; what is left out stays as it is.

    A shorter time of keeping counts for what is logged from then on; a longer one for everything.
    """

    environments: list[EnvironmentSet] = Field(default_factory=list, max_length=64)
    budgets: dict[Word, Annotated[int, Field(ge=0, lt=1 << 53)]] = Field(default_factory=dict, max_length=16)
    approval_ttl_s: _Duration | None = None
    request_ttl_s: _Duration | None = None
    remind_before_s: _Duration | None = None
    evidence_retention_days: Annotated[int, Field(ge=1, le=MAX_DAYS)] | None = None

    @property
    def terms(self) -> dict[str, int]:
        """How long approvals and requests last, as far as it is to change."""
        terms = {
            "approval_ttl_s": self.approval_ttl_s,
            "request_ttl_s": self.request_ttl_s,
            "remind_before_s": self.remind_before_s,
        }
        return {name: value for name, value in terms.items() if value is not None}

    @model_validator(mode="after")
    def _something(self) -> AdministerTenant:
        if not self.environments and not self.budgets and not self.terms and self.evidence_retention_days is None:
            raise ValueError(
                "nothing to change: give environments, budgets, terms of approval or how long evidence is kept"
            )
        if len({place.name for place in self.environments}) < len(self.environments):
            raise ValueError("an environment is named twice: name each once")
        return self


class SuspendTenant(Body):
    """Whether the tenant is suspended, and why."""

    suspended: bool = True
    reason: Annotated[str, Field(max_length=2000)] = ""


class AdministerPerson(Body):
    """A person or service account as it is to be."""

    kind: Annotated[str, Field(pattern="^(person|service)$")] = "person"
    roles: list[Annotated[str, Field(pattern="^(" + "|".join(ROLES) + ")$")]] = Field(
        default_factory=list, max_length=8
    )
    active: bool = True
    owner: Word | None = None
    qualified: list[Track] = Field(default_factory=list, max_length=8)

    @model_validator(mode="after")
    def _services_have_owners(self) -> AdministerPerson:
        if self.kind == "service" and self.owner is None:
            raise ValueError("a service account needs an owner, the person who answers for it (--owner)")
        if self.kind == "person" and self.owner is not None:
            raise ValueError("a person has no owner: leave it out, or say that the kind is service")
        if self.kind == "person" and OF_SERVICES & set(self.roles):
            raise ValueError("the role pipeline is for service accounts: nobody may promote as a person")
        if self.kind == "service" and self.qualified:
            raise ValueError("a service account stands in for no reviewer: leave qualified out")
        return self


class IssueToken(Body):
    """What the token is for, and how long it lives."""

    label: Annotated[str, Field(max_length=120)] = ""
    ttl_s: Annotated[int, Field(ge=60, le=366 * 24 * 3600)] = DEFAULT_TOKEN_TTL_S


class RevokeToken(Body):
    """Which token is revoked; or all that the principal has."""

    token_id: Id | None = None
    every: bool = False

    @model_validator(mode="after")
    def _one_or_all(self) -> RevokeToken:
        if (self.token_id is not None) == self.every:
            raise ValueError("name one token by token_id, or say every for all of them")
        return self


def new_token(
    tenant: str,
    principal: str,
    *,
    now_ms: int,
    ttl_s: int,
    token_id: str,
    label: str,
    workload: Mapping[str, str] | None = None,
) -> tuple[str, ApiToken]:
    """A fresh token and the row that remembers its hash alone."""
    token = TOKEN_PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)
    row = ApiToken(
        tenant_id=tenant,
        hash_hex=token_hash_hex(token),
        id=token_id,
        principal=principal,
        label=label,
        created_at_ms=now_ms,
        expires_at_ms=now_ms + ttl_s * 1000,
        revoked_at_ms=None,
        workload=dict(workload or {}),
    )
    return token, row


def token_hash_hex(token: str) -> str:
    """Under which a token is looked up. It has 256 random bits, so its plain hash cannot be searched for."""
    return hashlib.sha256(token.encode()).hexdigest()


def first_bundle(packs: list[PackChosen], own: str = "") -> bytes:
    """The bundle of a tenant with these packs, as canonical JSON.

    Raises:
        InvalidInput: A pack or parameter is unknown, or a policy is not valid.
    """
    try:
        bundle = compose([PackChoice(name=p.name, mode=p.mode, parameters=p.parameters) for p in packs], own)  # type: ignore[arg-type]  # The pattern of ``mode`` is checked by the body.
    except LicetPoliciesError as error:
        raise InvalidInput(f"the policies cannot be put in force: {error}") from error
    return canonical.dumps(bundle)


def tenant_rows(
    tenant: str, *, region: str, administrator: str, role: str, bundle: bytes, now_ms: int
) -> tuple[Insert, ...]:
    """The rows of a new tenant with its first principal and its first bundle."""
    digest_hex = hashlib.sha256(bundle).hexdigest()
    owned = {"tenant_id": tenant}
    return (
        Insert(
            Tenant,
            owned | {"region": region, "suspended": False, "created_at_ms": now_ms, "bundle_digest_hex": digest_hex},
        ),
        Insert(
            PolicyBundle,
            owned
            | {
                "digest_hex": digest_hex,
                "author": administrator,
                "state": "active",
                "proved": False,
                "body": bundle,
                "created_at_ms": now_ms,
                "activated_at_ms": now_ms,
            },
        ),
        Insert(
            Principal,
            owned
            | {
                "name": administrator,
                "kind": "person",
                "roles": [role],
                "active": True,
                "owner": None,
                "created_at_ms": now_ms,
            },
        ),
    )


# --- tenants --------------------------------------------------------------------------------------------------------


def ask_create(_view: View, _who: Who, ref: Ref, body: CreateTenant, ids: Ids) -> Proposal:
    """A tenant as it would be. ``view`` is the tenant's if there is one already, else the asker's own."""
    rows = tenant_rows(
        ref.tenant,
        region=body.region,
        administrator=body.administrator,
        role="administrator",
        bundle=first_bundle(body.packs),
        now_ms=ids.now_ms,
    )
    token, row = new_token(
        ref.tenant,
        body.administrator,
        now_ms=ids.now_ms,
        ttl_s=body.token_ttl_s,
        token_id=ids.operation,
        label="first administrator",
    )
    conflict = None
    if _view.tenant.tenant_id == ref.tenant:
        conflict = Conflict(f"tenant {ref.tenant} exists already: choose another name; names are never used again")
    note = Note("people", {"event": "tenant-created", "tenant": ref.tenant, "administrator": body.administrator})
    return Proposal(
        resource=tenant_entity(ref.tenant, region=body.region, suspended=False),
        change=Change(inserts=(*rows, Insert(ApiToken, row.model_dump())), notes=(note,)),
        conflict=conflict,
        result={"tenant": ref.tenant, "administrator": f"{ref.tenant}/{body.administrator}", "token_id": row.id},
        secrets={"token": token},
    )


def ask_administer(view: View, _who: Who, ref: Ref, body: AdministerTenant, ids: Ids) -> Proposal:
    """Environments and budgets as they are to be."""
    inserts: list[Insert] = []
    updates: list[Update] = []
    for place in body.environments:
        values = place.model_dump(exclude={"name"})
        if view.environment(place.name) is None:
            inserts.append(Insert(Environment, {"name": place.name, **values}))
        else:
            updates.append(Update(Environment, {"name": place.name}, values))
    for name, amount in body.budgets.items():
        values = {"limit": amount, "remaining": amount}
        if view.has_budget(name):
            updates.append(Update(Budget, {"name": name}, values))
        else:
            inserts.append(Insert(Budget, {"name": name, **values}))
    terms: dict[str, Any] = dict(body.terms)
    conflict = None
    if body.evidence_retention_days is not None:
        days, before = view.tenant.evidence_retention_days, view.tenant.evidence_retained
        retained = changed(days, before, body.evidence_retention_days, ids.now_ms)
        terms |= {"evidence_retention_days": body.evidence_retention_days, "evidence_retained": retained}
        if len(retained) > MAX_SHORTENED:
            conflict = Conflict(
                f"the time of keeping of {ref.tenant} was shortened {MAX_SHORTENED} times: make it longer, or leave it"
            )
    if terms:
        updates.append(Update(Tenant, {}, terms))
    note = Note("facts", {"event": "tenant-administered", **body.model_dump(exclude_none=True)})
    return Proposal(
        resource=view.tenant_entity(),
        change=Change(inserts=inserts, updates=updates, notes=(note,)),
        conflict=conflict,
        result={
            "tenant": ref.tenant,
            "environments": [p.name for p in body.environments],
            "budgets": dict(body.budgets),
            **{name: value for name, value in terms.items() if name != "evidence_retained"},
        },
    )


def ask_suspend(view: View, _who: Who, ref: Ref, body: SuspendTenant, _ids: Ids) -> Proposal:
    """The tenant's principals may do nothing until it is lifted."""
    conflict = None
    if ref.tenant == PLATFORM:
        conflict = Conflict("the platform's own tenant cannot be suspended: nobody could lift it")
    event = "tenant-suspended" if body.suspended else "tenant-resumed"
    note = Note("people", {"event": event, "tenant": ref.tenant, "reason": body.reason})
    change = Change(updates=(Update(Tenant, {}, {"suspended": body.suspended}),), notes=(note,))
    return Proposal(
        resource=view.tenant_entity(), change=change, conflict=conflict, result={"suspended": body.suspended}
    )


# --- people ---------------------------------------------------------------------------------------------------------


def ask_person(view: View, _who: Who, ref: Ref, body: AdministerPerson, ids: Ids) -> Proposal:
    """A principal as it is to be."""
    parse_name(ref.name)
    for role in body.roles:
        parse_role(role)
    values: dict[str, Any] = {"roles": sorted(set(body.roles)), "active": body.active, "owner": body.owner}
    values["qualified"] = sorted(set(body.qualified))
    present = view.principal(ref.name)
    row = Principal(tenant_id=ref.tenant, name=ref.name, kind=body.kind, created_at_ms=ids.now_ms, **values)
    conflict = None
    if present is not None and present.kind != body.kind:
        conflict = Conflict(f"{ref} is a {present.kind}, and stays one: choose another name for a {body.kind}")
    elif "operator" in body.roles and ref.tenant != PLATFORM:
        conflict = Conflict("operators are principals of the platform's own tenant only")
    if body.owner is not None:
        owner = view.principal(body.owner)
        if owner is None or owner.kind != "person":
            conflict = Conflict(
                f"{ref.tenant}/{body.owner} is no person of this tenant, so cannot own a service account"
            )
    note = Note("people", {"event": "principal", "subject": str(ref), "kind": body.kind, **values})
    change = Change(inserts=(Insert(Principal, row.model_dump()),), notes=(note,))
    if present is not None:
        updates = [Update(Principal, {"name": ref.name}, values)]
        if not body.active:
            # For good: or whoever approved for somebody who is away could approve on another track, and both would count in the end.
            updates += [
                Update(Approval, {name: ref.name, "voided_at_ms": None}, {"voided_at_ms": ids.now_ms}, rows=None)
                for name in ("approver", "on_behalf_of")
            ]
        change = Change(updates=updates, notes=(note,))
    return Proposal(
        resource=view.principal_entity(row if present is None else present),
        change=change,
        conflict=conflict,
        result={"principal": str(ref), "kind": body.kind, **values},
    )


def ask_issue(view: View, _who: Who, ref: Ref, body: IssueToken, ids: Ids) -> Proposal | None:
    """A token, shown once."""
    row = view.principal(ref.name)
    if row is None:
        return None
    token, stored = new_token(
        ref.tenant, ref.name, now_ms=ids.now_ms, ttl_s=body.ttl_s, token_id=ids.operation, label=body.label
    )
    note = Note("people", {"event": "token-issued", "subject": str(ref), "token_id": stored.id, "label": body.label})
    return Proposal(
        resource=view.principal_entity(row),
        change=Change(inserts=(Insert(ApiToken, stored.model_dump()),), notes=(note,)),
        result={"principal": str(ref), "token_id": stored.id, "expires_at_ms": stored.expires_at_ms},
        secrets={"token": token},
    )


def ask_revoke(view: View, _who: Who, ref: Ref, body: RevokeToken, ids: Ids) -> Proposal | None:
    """The token counts no more."""
    row = view.principal(ref.name)
    if row is None:
        return None
    where = {"principal": ref.name, "revoked_at_ms": None}
    if body.token_id is None:
        note = Note("people", {"event": "tokens-revoked", "subject": str(ref)})
        change = Change(updates=(Update(ApiToken, where, {"revoked_at_ms": ids.now_ms}, rows=None),), notes=(note,))
        return Proposal(resource=view.principal_entity(row), change=change, result={"principal": str(ref)})
    where |= {"id": body.token_id}
    conflict = None
    if not view.has_token(ref.name, body.token_id):
        conflict = Conflict(f"{ref} has no token {body.token_id} that still counts")
    note = Note("people", {"event": "token-revoked", "subject": str(ref), "token_id": body.token_id})
    change = Change(updates=(Update(ApiToken, where, {"revoked_at_ms": ids.now_ms}),), notes=(note,))
    return Proposal(
        resource=view.principal_entity(row), change=change, conflict=conflict, result={"token_id": body.token_id}
    )


def ask_tokens(view: View, _who: Who, _ref: Ref, _body: NoBody, _ids: Ids) -> Proposal:
    """The tokens of the tenant, by number, owner and time; the tokens themselves are stored nowhere."""
    return Proposal(resource=view.tenant_entity())


VERBS = (
    Verb(
        action="tenant.create",
        summary="Create a tenant with its first administrator.",
        form=RefForm.TENANT,
        body=CreateTenant,
        propose=ask_create,
        creates=True,
    ),
    Verb(
        action="tenant.administer",
        summary="Set environments and budgets.",
        form=RefForm.TENANT,
        body=AdministerTenant,
        propose=ask_administer,
    ),
    Verb(
        action="tenant.suspend",
        summary="Suspend a tenant, or lift that.",
        form=RefForm.TENANT,
        body=SuspendTenant,
        propose=ask_suspend,
    ),
    Verb(
        action="person.administer",
        summary="Add or change a person or service account.",
        form=RefForm.NAME,
        body=AdministerPerson,
        propose=ask_person,
        creates=True,
    ),
    Verb(
        action="token.issue",
        summary="Issue an API token; it is shown once.",
        form=RefForm.NAME,
        body=IssueToken,
        propose=ask_issue,
    ),
    Verb(
        action="token.revoke",
        summary="Revoke an API token, or every token of a principal.",
        form=RefForm.NAME,
        body=RevokeToken,
        propose=ask_revoke,
    ),
    Verb(
        action="token.list",
        summary="List tokens: whose they are and until when they count.",
        form=RefForm.TENANT,
        body=NoBody,
        propose=ask_tokens,
    ),
)
