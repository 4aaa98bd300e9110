"""Workloads without a secret of their own: whose ID tokens a tenant trusts, and for what they are exchanged.

Rules kept here:

- An issuer's tokens stand for one service account, and only where they claim, word for word, what an administrator wrote down; some of
  it must bind them to one repository or project, for issuers are shared by everybody.
- The audience names the tenant and the issuer as it knows it, so a token for one tenant is none for another.
- What was verified of the workload goes with the token: every decision made with it records it, as claims under names that nobody
  else can give.
- An exchange is a decision of the service account's, logged like any other. It is no verb that can be sent: who asks is who the
  ID token was found to stand for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from licet_engine.domain import idtoken
from licet_engine.domain.errors import Conflict, InvalidInput
from licet_engine.domain.refs import Ref
from licet_engine.lifecycle.data import Hex, Word
from licet_engine.lifecycle.people import new_token
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
from licet_engine.store.tables import ApiToken, Issuer, UsedIdToken

if TYPE_CHECKING:
    from licet_engine.lifecycle.facts import View

MAX_ISSUERS: Final = 32
TOKEN_TTL_S: Final = 900
BINDING: Final = ("project_id", "project_path", "repository", "repository_id", "sub")
"""Claims of which at least one must be given: each is of one repository, project or job."""
RECORDED: Final = (
    *("sub", "repository", "project_path", "ref", "sha", "environment", "actor", "user_login"),
    *("run_id", "run_attempt", "pipeline_id", "job_id", "job_workflow_ref", "event_name"),
)
"""Claims that are kept with the token, where they are there."""
_MAX_CHARS: Final = 256
_Claim = Annotated[str, Field(min_length=1, max_length=_MAX_CHARS)]
_ClaimName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]


def audience_of(ref: Ref) -> str:
    """The audience that ID tokens must be made for, if an administrator names no other."""
    return f"licet:{ref}"


class TrustIssuer(Body):
    """Whose ID tokens stand for which service account.

    Attributes:
        url: The issuer, as its tokens name it.
        account: Name of the service account of the same tenant.
        claims: What a token must claim.
        audience: What it must be made for; ``licet:TENANT/NAME`` if not given.
        keys: The issuer's public keys, as a JWK set; fetched from the issuer if not given.
        unsafe_http: Whether keys are fetched by plain http, which is taken for a loopback address alone.
    """

    url: Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[!-~]+$")]
    account: Word
    claims: dict[_ClaimName, _Claim] = Field(min_length=1, max_length=16)
    audience: Annotated[str, Field(min_length=1, max_length=_MAX_CHARS, pattern=r"^[!-~]+$")] | None = None
    keys: dict[str, Any] | None = None
    unsafe_http: bool = False

    @model_validator(mode="after")
    def _is_one_issuers(self) -> TrustIssuer:
        try:
            parts = urlsplit(self.url)
            is_address = parts.port != 0
        except ValueError:
            raise ValueError("url must have a valid host and port") from None
        if not is_address:
            raise ValueError("url must have a valid host and port")
        if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc or parts.query:
            raise ValueError("url must be https://HOST[:PORT][/PATH], as the tokens have it in iss")
        if "#" in self.url or (parts.scheme == "http" and not self.unsafe_http):
            raise ValueError("url must be https; http is taken for a loopback address alone, with unsafe_http")
        if not set(BINDING) & set(self.claims):
            raise ValueError(
                f"claims must bind the tokens to one repository or project: give one of {', '.join(BINDING)}"
            )
        if {"iss", "aud", "exp", "iat", "nbf", "jti"} & set(self.claims):
            raise ValueError("claims are those about the workload; issuer, audience and times are always looked at")
        if self.keys is not None:
            try:
                idtoken.read_keys(self.keys)
            except InvalidInput as error:
                raise ValueError(f"keys: {error.message}") from error
        return self


class Exchange(Body):
    """What was verified of an ID token, and what its token is to be. Made by the service, never sent.

    Attributes:
        issuer: As the tenant knows it.
        digest_hex: Of what was signed.
        id_token_expires_at_ms: When the ID token ends.
        workload: What it claims of the workload.
    """

    issuer: Word
    digest_hex: Hex
    id_token_expires_at_ms: int
    workload: dict[str, str]


def workload_of(claims: Mapping[str, Any], issuer: Issuer) -> dict[str, str]:
    """What is kept of the claims of a token, by name."""
    told = {name: idtoken.text_of(claims.get(name)) for name in RECORDED}
    kept = {name: text[:_MAX_CHARS] for name, text in told.items() if text}
    return {"issuer": issuer.name, **kept}


def mismatch(claims: Mapping[str, Any], issuer: Issuer) -> str | None:
    """The first claim that is not as the administrator wrote it down; None where all are."""
    wrong = [name for name, wanted in sorted(issuer.claims.items()) if idtoken.text_of(claims.get(name)) != wanted]
    return wrong[0] if wrong else None


def _note(event: str, ref: Ref, who: Who, told: Mapping[str, Any]) -> Note:
    return Note("people", {"event": event, "issuer": str(ref), "by": who.id, **told})


def ask_trust(view: View, who: Who, ref: Ref, body: TrustIssuer, ids: Ids) -> Proposal:
    """The issuer's tokens stand for the account from now on, in place of what was said of that name before."""
    keys = [] if body.keys is None else idtoken.read_keys(body.keys)
    values: dict[str, Any] = {
        "url": body.url,
        "audience": body.audience or audience_of(ref),
        "account": body.account,
        "claims": dict(sorted(body.claims.items())),
        "keys": keys,
        "keys_as_of_ms": ids.now_ms if keys else 0,
        "fetched": body.keys is None,
        "unsafe_http": body.unsafe_http,
        "created_by": who.name,
        "created_at_ms": ids.now_ms,
        "removed_at_ms": None,
    }
    account, present = view.principal(body.account), view.issuer(ref.name, removed=True)
    conflict = None
    if account is None or account.kind != "service":
        conflict = Conflict(
            f"{ref.tenant}/{body.account} is no service account: make it first, with licet person administer"
            f" {ref.tenant}/{body.account} --kind service"
        )
    elif present is None and len(view.issuers()) >= MAX_ISSUERS:
        conflict = Conflict(f"{ref.tenant} trusts {MAX_ISSUERS} issuers, which is the most: remove one first")
    told = {name: values[name] for name in ("url", "audience", "account", "claims", "fetched")}
    note = _note("issuer-trusted", ref, who, told)
    if present is None:
        change = Change(inserts=(Insert(Issuer, {"name": ref.name, **values}),), notes=(note,))
    else:
        # What was exchanged under other terms counts no more.
        change = Change(updates=(Update(Issuer, {"name": ref.name}, values), *_revoked(view, ref, ids)), notes=(note,))
    return Proposal(
        resource=view.plain_entity("Issuer", ref),
        change=change,
        conflict=conflict,
        result={"issuer": str(ref), **told, "keys": [key["kid"] for key in keys]},
    )


def ask_remove(view: View, who: Who, ref: Ref, _body: NoBody, ids: Ids) -> Proposal | None:
    """Its tokens stand for nobody, and what they were exchanged for counts no more."""
    row = view.issuer(ref.name)
    if row is None:
        return None
    updates = _revoked(view, ref, ids)
    gone = Update(Issuer, {"name": row.name, "removed_at_ms": None}, {"removed_at_ms": ids.now_ms, "keys": []})
    return Proposal(
        resource=view.plain_entity("Issuer", ref),
        change=Change(updates=(gone, *updates), notes=(_note("issuer-removed", ref, who, {"revoked": len(updates)}),)),
        result={"issuer": str(ref), "revoked": len(updates)},
    )


def _revoked(view: View, ref: Ref, ids: Ids) -> list[Update]:
    return [
        Update(
            ApiToken, {"principal": row.principal, "id": row.id, "revoked_at_ms": None}, {"revoked_at_ms": ids.now_ms}
        )
        for row in view.exchanged_tokens(ref.name)
    ]


def ask_read(view: View, _who: Who, ref: Ref, _body: NoBody, _ids: Ids) -> Proposal:
    """Trusted issuers; read through the list of that name."""
    return Proposal(resource=view.plain_entity("Issuer", ref))


def ask_exchange(view: View, _who: Who, ref: Ref, body: Exchange, ids: Ids) -> Proposal | None:
    """A token of the service account, for as long as the ID token lasts, and never for long."""
    row, issuer = view.principal(ref.name), view.issuer(body.issuer)
    if row is None or issuer is None or issuer.account != ref.name:
        return None
    ttl_s = min(TOKEN_TTL_S, (body.id_token_expires_at_ms - ids.now_ms) // 1000)
    token, stored = new_token(
        ref.tenant,
        ref.name,
        now_ms=ids.now_ms,
        ttl_s=ttl_s,
        token_id=ids.operation,
        label=f"exchanged: {body.issuer}",
        workload=body.workload,
    )
    conflict = None
    if view.is_used_id_token(body.digest_hex):
        conflict = Conflict("this ID token was exchanged before")
    elif ttl_s <= 0:
        conflict = Conflict("the time of this ID token is over")
    used = {"digest_hex": body.digest_hex, "expires_at_ms": body.id_token_expires_at_ms}
    told = {"event": "token-exchanged", "subject": str(ref), "token_id": stored.id, "workload": body.workload}
    return Proposal(
        resource=view.principal_entity(row),
        change=Change(
            inserts=(Insert(ApiToken, stored.model_dump()), Insert(UsedIdToken, used)), notes=(Note("people", told),)
        ),
        conflict=conflict,
        result={"principal": str(ref), "token_id": stored.id, "expires_at_ms": stored.expires_at_ms, "ttl_s": ttl_s},
        secrets={"token": token},
    )


EXCHANGE = Verb(
    action="token.exchange",
    summary="Exchange an ID token for a token.",
    form=RefForm.NAME,
    body=Exchange,
    propose=ask_exchange,
)
"""Not in the catalogue: it is asked by the service itself, once an ID token was verified."""

VERBS = (
    Verb(
        action="issuer.trust",
        summary="Trust an issuer: its ID tokens of certain claims stand for a service account.",
        form=RefForm.NAME,
        body=TrustIssuer,
        propose=ask_trust,
        creates=True,
    ),
    Verb(
        action="issuer.remove",
        summary="Trust an issuer no more, and revoke what its ID tokens were exchanged for.",
        form=RefForm.NAME,
        body=NoBody,
        propose=ask_remove,
    ),
    Verb(
        action="issuer.read",
        summary="Read which issuers a tenant trusts.",
        form=RefForm.TENANT,
        body=NoBody,
        propose=ask_read,
    ),
)
