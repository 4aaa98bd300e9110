"""Webhooks: where a tenant is told of events. Created, deleted, tested and given new secrets by whom policy permits.

Rules kept here:

- A webhook's secret is derived by the signer from the tenant's key and an identifier; it is answered once, when the
  webhook is created or the secret rotated, and stored nowhere. An identifier is never used again.
- After a rotation messages bear two signatures for a while, so that a receiver misses none while it changes over.
- A message that ended is sent again under its identifier, with its bytes.
- An address is https. Plain http is taken for this machine alone, and where it is called unsafe.
- The log names the host that is told and a digest of the address: many receivers keep a secret in its path.
"""

from __future__ import annotations

import hashlib
import ipaddress
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from licet_engine.domain.errors import Conflict
from licet_engine.domain.refs import Ref
from licet_engine.lifecycle.facts import View
from licet_engine.lifecycle.outbox import EVENTS, MAX_WAITING
from licet_engine.lifecycle.verbs import (
    Body,
    Change,
    Event,
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
from licet_engine.store.tables import Webhook, WebhookMessage

MAX_WEBHOOKS = 16
"""Of one tenant."""
_MAX_URL_CHARS = 2048
# A dot that stands for any character would take names of which nobody is ever told.
_Event = Annotated[str, Field(pattern="^(" + "|".join(EVENTS).replace(".", r"\.") + ")$")]


class CreateWebhook(Body):
    """Where to send events, and which.

    Attributes:
        url: An https address.
        events: Those it is told of; all if none is named.
        unsafe_http: Whether plain http to this machine is meant.
    """

    url: Annotated[str, Field(min_length=9, max_length=_MAX_URL_CHARS, pattern=r"^[!-~]+$")]
    events: list[_Event] = Field(default_factory=list, max_length=len(EVENTS))
    unsafe_http: bool = False

    @model_validator(mode="after")
    def _is_address(self) -> CreateWebhook:
        try:
            parts = urlsplit(self.url)
        except ValueError as error:
            raise ValueError("url must have a valid host: an IPv6 address stands in brackets") from error
        if parts.scheme not in {"https", "http"} or not parts.hostname or "@" in parts.netloc or "#" in self.url:
            raise ValueError("url must be https://HOST[:PORT]/PATH, without user, password or fragment")
        try:
            is_port = parts.port != 0
        except ValueError:
            is_port = False
        if not is_port:
            raise ValueError("url must have a valid port, 1 to 65535")
        if parts.scheme == "http" and not (self.unsafe_http and _is_this_machine(parts.hostname)):
            raise ValueError("url must be https; http is taken for a loopback address alone, with --unsafe-http")
        return self


class RotateSecret(Body):
    """How long messages are signed with the secret before as well; not at all for one that leaked."""

    overlap_s: Annotated[int, Field(ge=0, le=7 * 86_400)] = 86_400


class Redeliver(Body):
    """Which message."""

    message: Annotated[str, Field(pattern=r"^msg_[0-9A-Za-z]{1,64}$")]


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _live(view: View, name: str) -> Webhook | None:
    return next((webhook for webhook in view.webhooks() if webhook.name == name), None)


def _record(event: str, ref: Ref, url: str, who: Who) -> Note:
    parts = urlsplit(url)
    told = {
        "event": event,
        "webhook": str(ref),
        "host": parts.hostname or "",
        "url_digest": hashlib.sha256(url.encode()).hexdigest(),
        "by": who.id,
    }
    return Note("facts", told)


def ask_create(view: View, who: Who, ref: Ref, body: CreateWebhook, ids: Ids) -> Proposal:
    """The address is told of what happens from now on."""
    row = Webhook(
        tenant_id=ref.tenant,
        id=f"wh-{ids.operation}",
        secret=f"wh-{ids.operation}",
        name=ref.name,
        url=body.url,
        events=sorted(set(body.events)),
        unsafe_http=body.unsafe_http,
        created_by=who.name,
        created_at_ms=ids.now_ms,
    )
    conflict = None
    if _live(view, ref.name) is not None:
        conflict = Conflict(f"there is a webhook {ref} already: delete it first, or choose another name")
    elif len(view.webhooks()) >= MAX_WEBHOOKS:
        conflict = Conflict(f"{ref.tenant} has {MAX_WEBHOOKS} webhooks, which is the most: delete one first")
    return Proposal(
        resource=view.plain_entity("Webhook", ref),
        change=Change(
            inserts=(Insert(Webhook, row.model_dump()),), notes=(_record("webhook-created", ref, body.url, who),)
        ),
        conflict=conflict,
        result={"webhook": str(ref), "id": row.id, "events": row.events or list(EVENTS)},
        reveals=row.secret,
    )


def ask_delete(view: View, who: Who, ref: Ref, _body: NoBody, ids: Ids) -> Proposal | None:
    """The address is told nothing more, also of what has happened already."""
    row = _live(view, ref.name)
    if row is None:
        return None
    # The path of an address can hold what opens it; the log has its digest.
    parts = urlsplit(row.url)
    left = {"removed_at_ms": ids.now_ms, "url": f"{parts.scheme}://{parts.netloc}/"}
    gone = Update(Webhook, {"id": row.id, "removed_at_ms": None}, left)
    return Proposal(
        resource=view.plain_entity("Webhook", ref),
        change=Change(updates=(gone,), notes=(_record("webhook-deleted", ref, row.url, who),)),
        result={"webhook": str(ref), "id": row.id},
    )


def ask_test(view: View, who: Who, ref: Ref, _body: NoBody, ids: Ids) -> Proposal | None:
    """A message that means nothing is sent to the one webhook."""
    row = _live(view, ref.name)
    if row is None:
        return None
    message = f"msg_{ids.operation}"
    event = Event("webhook.test", {"webhook": str(ref), "by": who.id}, webhook=row.id, message=message)
    return Proposal(
        resource=view.plain_entity("Webhook", ref),
        change=Change(updates=(_awake(row),), notes=(_record("webhook-tested", ref, row.url, who),), events=(event,)),
        result={"webhook": str(ref), "message": message},
    )


def _awake(row: Webhook) -> Update:
    """Whoever asks for a message to be sent does not wait until a receiver that failed has been left alone for long enough."""
    return Update(Webhook, {"id": row.id}, {"rest_until_ms": 0})


def ask_rotate(view: View, who: Who, ref: Ref, body: RotateSecret, ids: Ids) -> Proposal | None:
    """Messages are signed with a new secret from now on, and with the one before for a while."""
    row = _live(view, ref.name)
    if row is None:
        return None
    secret, until_ms = f"wh-{ids.operation}", ids.now_ms + body.overlap_s * 1000
    values = {
        "secret": secret,
        "secret_before": row.secret if body.overlap_s else None,
        "secret_before_until_ms": until_ms,
    }
    changed = Update(Webhook, {"id": row.id, "removed_at_ms": None, "secret": row.secret}, values)
    note = _record("webhook-rotated", ref, row.url, who)
    return Proposal(
        resource=view.plain_entity("Webhook", ref),
        change=Change(updates=(changed,), notes=(note,)),
        result={"webhook": str(ref), "id": row.id, "secret_before_until_ms": until_ms},
        reveals=secret,
    )


def ask_redeliver(view: View, who: Who, ref: Ref, body: Redeliver, ids: Ids) -> Proposal | None:
    """A message that ended waits once more, as if it were new."""
    row = _live(view, ref.name)
    message = None if row is None else view.webhook_message(body.message)
    if row is None or message is None or message.webhook != row.id:
        return None
    values = {
        "state": "pending",
        "tries_before": message.tries,
        "queued_at_ms": ids.now_ms,
        "next_at_ms": ids.now_ms,
        "claimed_until_ms": 0,
        "ended_at_ms": None,
    }
    conflict = None
    if message.state == "pending":
        conflict = Conflict(
            f"message {message.id} still waits to be sent: licet webhook history shows when it is tried next"
        )
    elif view.waiting_messages().get(row.id, 0) >= MAX_WAITING:
        conflict = Conflict(f"{MAX_WAITING} messages wait for {ref}, which is the most: mend the receiver first")
    again = Update(WebhookMessage, {"id": message.id, "state": message.state, "tries": message.tries}, values)
    return Proposal(
        resource=view.plain_entity("Webhook", ref),
        change=Change(updates=(again, _awake(row)), notes=(_record("message-redelivered", ref, row.url, who),)),
        conflict=conflict,
        result={"webhook": str(ref), "message": message.id},
    )


def ask_read(view: View, _who: Who, ref: Ref, _body: NoBody, _ids: Ids) -> Proposal:
    """Webhooks, and what was sent to them; read through the lists of these names."""
    return Proposal(resource=view.plain_entity("Webhook", ref))


VERBS = (
    Verb(
        action="webhook.create",
        summary="Create a webhook; its secret is shown once.",
        form=RefForm.NAME,
        body=CreateWebhook,
        propose=ask_create,
        creates=True,
    ),
    Verb(action="webhook.delete", summary="Delete a webhook.", form=RefForm.NAME, body=NoBody, propose=ask_delete),
    Verb(action="webhook.test", summary="Send a test message.", form=RefForm.NAME, body=NoBody, propose=ask_test),
    Verb(
        action="webhook.rotate",
        summary="Give a webhook a new secret; it is shown once.",
        form=RefForm.NAME,
        body=RotateSecret,
        propose=ask_rotate,
    ),
    Verb(
        action="webhook.redeliver",
        summary="Send a message that ended again.",
        form=RefForm.NAME,
        body=Redeliver,
        propose=ask_redeliver,
    ),
    Verb(
        action="webhook.read",
        summary="Read the webhooks of a tenant, and what was sent to them.",
        form=RefForm.TENANT,
        body=NoBody,
        propose=ask_read,
    ),
)
