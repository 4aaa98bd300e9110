"""What webhooks are told: messages written with what they tell of, and sent until they arrive or it is given up.

Rules kept here:

- A message is a row of the transaction that commits what it tells of: none is lost, and none tells of what never was.
- A message keeps its identifier and its bytes over all tries, so that a receiver can tell a repetition.
- A worker claims a message for a while before it sends it. If the worker dies, the claim ends by itself and the message
  is sent again: at least once. However many workers there are, a claim is one conditional update: one of them has it.
- Sending changes no facts, raises no version, and is never waited for by a decision.
- A receiver that fails is left alone for a while, longer each time, and tenants take turns: one that hangs holds up no other.
- What waits and what is kept is bounded; what finds no room, and what is given up, stands in the history as failed, and can
  be sent again under its identifier.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import ColumnElement, Engine, and_, delete, func, or_, update
from sqlmodel import col, select

from licet_engine.domain.errors import InvalidInput
from licet_engine.domain.refs import new_id, now_ms
from licet_engine.lifecycle.verbs import Event
from licet_engine.log.submission import Insert
from licet_engine.store.db import TenantSession, UnsafeAllTenants, tenant_session
from licet_engine.store.tables import Tenant, Webhook, WebhookMessage, WebhookTry

if TYPE_CHECKING:
    from licet_engine.lifecycle.facts import View

EVENTS: Final = (
    "approval.requested",
    "approval.given",
    "approval.rejected",
    "approval.voided",
    "approval.expiring",
    "operation.failed",
    "endpoint.rolled-back",
    "endpoint.failed",
    "webhook.test",
)
"""Everything that webhooks may be told of."""

LONGEST_PAUSE_S: Final = 6 * 3600
"""Between two tries of one message; up to a fifth more, by chance."""
LONGEST_REST_S: Final = 15 * 60
"""For which a webhook that fails is left alone, whatever waits for it."""
MAX_WAITING: Final = 1000
"""Messages of one webhook; what comes beyond is written as failed, so that a receiver that is gone fills no disk."""
MAX_HISTORY: Final = 5000
"""Messages of one tenant that have ended, the newest; older ones go before their time."""
MAX_WAIT_S: Final = 3 * 86_400
"""For which a message waits at most, tried or not."""
_PAUSE_FACTOR: Final = 5
_SPREAD: Final = 0.2
_CLAIM_MS: Final = 60_000
"""Longer than any one try takes, with what is reported of it."""
_MOST_OF_WEBHOOK: Final = 2
"""Messages of one webhook that are sent at once; one, while it fails."""
_MOST_OF_TENANT: Final = 4
"""Messages of one tenant that are sent at once: however many of its receivers hang, others have their turn."""
_MOST_REASON_CHARS: Final = 300
_MOST_LOOKED_AT: Final = 500


@dataclass(frozen=True, slots=True)
class Mailing:
    """Whom events are told, and how much room there is.

    Attributes:
        webhooks: Those the tenant has, at the facts version that the submission expects.
        waiting: How many messages wait for each of them.
    """

    webhooks: Sequence[Webhook] = ()
    waiting: Mapping[str, int] = field(default_factory=dict)


def mailing_of(view: View) -> Mailing:
    """Whom the events of a tenant are told now."""
    webhooks = view.webhooks()
    return Mailing(webhooks, view.waiting_messages() if webhooks else {})


def message_rows(tenant: str, mailing: Mailing, events: Sequence[Event], at_ms: int, decision: str) -> list[Insert]:
    """The messages that events make, as rows for the submission that commits them.

    Args:
        tenant: Whose.
        mailing: Whom they are told.
        events: What happened.
        at_ms: When.
        decision: By which decision; empty for none.
    """
    rows: list[dict[str, Any]] = []
    waiting = Counter(mailing.waiting)
    for event in events:
        if event.kind not in EVENTS:
            raise InvalidInput(f"{event.kind!r} is no event; the events are {', '.join(EVENTS)}")
        data = {"tenant": tenant, **event.data} | ({"decision": f"{tenant}/{decision}"} if decision else {})
        body = json.dumps({"type": event.kind, "timestamp": _iso(at_ms), "data": data}, sort_keys=True)
        for webhook in mailing.webhooks:
            if webhook.id != event.webhook if event.webhook else webhook.events and event.kind not in webhook.events:
                continue
            has_room = waiting[webhook.id] < MAX_WAITING
            waiting[webhook.id] += has_room
            rows.append(
                {
                    "tenant_id": tenant,
                    "id": event.message or f"msg_{new_id()}",
                    "webhook": webhook.id,
                    "event": event.kind,
                    "body": body,
                    "state": "pending" if has_room else "failed",
                    "tries": 0,
                    "tries_before": 0,
                    "created_at_ms": at_ms,
                    "queued_at_ms": at_ms,
                    "next_at_ms": at_ms,
                    "claimed_until_ms": 0,
                    "ended_at_ms": None if has_room else at_ms,
                }
            )
    return [Insert(WebhookMessage, rows)] if rows else []


def _iso(at_ms: int) -> str:
    moment = dt.datetime.fromtimestamp(at_ms / 1000, tz=dt.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Outbox:
    """Messages that wait, as the worker sees them through the internal door.

    Args:
        engine: Of the store.
        most_tries: How often a message is tried.
        first_pause_s: Pause after the first try; each further one is five times as long.
        history_s: How long a message that ended stays.
        tried: Told of each try: whether it delivered.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        most_tries: int,
        first_pause_s: float,
        history_s: int,
        tried: Callable[[bool], None] = lambda _delivered: None,
    ) -> None:
        self._engine = engine
        self._most_tries = most_tries
        self._first_pause_s = first_pause_s
        self._history_ms = history_s * 1000
        self._told = tried

    def handlers(self) -> dict[str, Callable[[dict[str, Any]], Any]]:
        """The methods of the internal door, by name."""
        return {
            "messages": lambda p: self.claim(p["limit"]),
            "message_tried": lambda p: self.tried(p["tenant"], p["message"], p["number"], p["outcome"]),
        }

    # --- what is sent next ---------------------------------------------------------------------------------------

    def claim(self, limit: int) -> list[dict[str, Any]]:
        """Messages whose time has come, claimed for the caller, with where to send them.

        Tenants take turns, those first of whom the fewest are under way; of a tenant its webhooks take turns alike.
        """
        at_ms = now_ms()
        due, at_work = self._due(at_ms)
        of_tenant = Counter[str]()
        for (tenant, _), count in at_work.items():
            of_tenant[tenant] += count
        found: list[dict[str, Any]] = []
        while due and len(found) < limit:
            due = {
                key: most for key, most in due.items() if at_work[key] < most and of_tenant[key[0]] < _MOST_OF_TENANT
            }
            if not due:
                break
            # ``min`` takes the first of equals, which has waited longest.
            tenant, webhook = key = min(due, key=lambda k: (of_tenant[k[0]], at_work[k]))
            told = self._claim_next(tenant, webhook, at_ms)
            if told is None:
                del due[key]
                continue
            at_work[key] += 1
            of_tenant[tenant] += 1
            found.append(told)
        return found

    def _due(self, at_ms: int) -> tuple[dict[tuple[str, str], int], Counter[tuple[str, str]]]:
        """Webhooks that something waits for, the longest first, with how much at once; and what is under way."""
        key = (col(WebhookMessage.tenant_id), col(WebhookMessage.webhook))
        is_pending = col(WebhookMessage.state) == "pending"
        due = (
            select(*key, func.max(Webhook.failures))
            .join(
                Webhook,
                and_(
                    col(Webhook.tenant_id) == col(WebhookMessage.tenant_id),
                    col(Webhook.id) == col(WebhookMessage.webhook),
                ),
            )
            .where(
                is_pending,
                col(WebhookMessage.next_at_ms) <= at_ms,
                col(WebhookMessage.claimed_until_ms) <= at_ms,
                or_(col(Webhook.rest_until_ms) <= at_ms, col(Webhook.removed_at_ms).is_not(None)),
            )
            .group_by(*key)
            .order_by(func.min(WebhookMessage.next_at_ms))
            .limit(_MOST_LOOKED_AT)
        )
        claimed = select(*key, func.count()).where(is_pending, col(WebhookMessage.claimed_until_ms) > at_ms)
        with UnsafeAllTenants(self._engine, "messages of every tenant wait for the one worker") as session:
            waiting = {(t, w): 1 if failures else _MOST_OF_WEBHOOK for t, w, failures in session.exec(due).all()}
            at_work = Counter({(t, w): count for t, w, count in session.exec(claimed.group_by(*key)).all()})
        return waiting, at_work

    def _claim_next(self, tenant_id: str, webhook_id: str, at_ms: int) -> dict[str, Any] | None:
        """Claim the message of a webhook that has waited longest; None if there is none, or another was quicker."""
        of_webhook = (col(WebhookMessage.webhook) == webhook_id, col(WebhookMessage.state) == "pending")
        with tenant_session(self._engine, tenant_id, write=True) as session:
            webhook = session.exec(select(Webhook).where(Webhook.id == webhook_id)).one()
            tenant = session.exec(select(Tenant)).one()
            if webhook.removed_at_ms is not None:
                # Nobody is told any more who was removed, also of what happened before.
                _set(session, of_webhook, {"state": "dropped", "ended_at_ms": at_ms})
                return None
            if tenant.suspended:
                _set(session, of_webhook, {"next_at_ms": at_ms + _CLAIM_MS})
                return None
            free = select(WebhookMessage).where(
                *of_webhook,
                col(WebhookMessage.claimed_until_ms) <= at_ms,
                col(WebhookMessage.next_at_ms) <= at_ms,
            )
            message = session.exec(free.order_by(col(WebhookMessage.next_at_ms)).limit(1)).first()
            if message is None:
                return None
            told = {
                "tenant": tenant_id,
                "message": message.id,
                "secrets": _secrets(webhook, at_ms),
                "url": webhook.url,
                "unsafe_http": webhook.unsafe_http,
                "body": message.body,
                "number": message.tries + 1,
            }
            is_as_seen = (
                col(WebhookMessage.id) == message.id,
                col(WebhookMessage.tries) == message.tries,
                col(WebhookMessage.claimed_until_ms) == message.claimed_until_ms,
            )
            values = {"claimed_until_ms": at_ms + _CLAIM_MS, "tries": message.tries + 1}
            return told if _set(session, (*of_webhook, *is_as_seen), values) == 1 else None

    # --- what came of it -----------------------------------------------------------------------------------------

    def tried(self, tenant: str, message_id: str, number: int, outcome: Mapping[str, Any]) -> dict[str, Any]:
        """Take what came of a try; told again after a lost answer, it changes nothing more."""
        at_ms = now_ms()
        with tenant_session(self._engine, tenant, write=True) as session:
            message = session.exec(select(WebhookMessage).where(WebhookMessage.id == message_id)).first()
            if message is None:
                raise InvalidInput(f"there is no message {tenant}/{message_id}", code="no-such-message")
            if session.get(WebhookTry, (tenant, message_id, number)) is not None:
                return {"state": message.state}
            session.add(
                WebhookTry(
                    tenant_id=tenant,
                    message=message_id,
                    number=number,
                    at_ms=at_ms,
                    status=outcome["status"],
                    reason=str(outcome["reason"])[:_MOST_REASON_CHARS],
                    took_ms=outcome["took_ms"],
                )
            )
            if message.state == "pending" and message.tries == number:
                self._move_on(message, number, outcome, at_ms)
                session.add(message)
            webhook = session.exec(select(Webhook).where(Webhook.id == message.webhook)).one()
            self._rest(webhook, message_id, outcome, at_ms)
            session.add(webhook)
            state = message.state
        self._told(bool(outcome["delivered"]))
        return {"state": state}

    def _move_on(self, message: WebhookMessage, number: int, outcome: Mapping[str, Any], at_ms: int) -> None:
        message.claimed_until_ms = 0
        since_queued = number - message.tries_before
        if outcome["delivered"] or outcome["is_final"] or since_queued >= self._most_tries:
            message.state = "delivered" if outcome["delivered"] else "failed"
            message.ended_at_ms = at_ms
            return
        message.next_at_ms = at_ms + self._pause_ms(message.id, since_queued, outcome, LONGEST_PAUSE_S)

    def _rest(self, webhook: Webhook, message_id: str, outcome: Mapping[str, Any], at_ms: int) -> None:
        """Leave alone a receiver that fails: else a thousand messages to one that hangs would each take its time."""
        if outcome["delivered"]:
            webhook.failures, webhook.rest_until_ms = 0, 0
            return
        webhook.failures += 1
        webhook.rest_until_ms = at_ms + self._pause_ms(message_id, webhook.failures, outcome, LONGEST_REST_S)

    def _pause_ms(self, message_id: str, tries: int, outcome: Mapping[str, Any], longest_s: int) -> int:
        # The exponent is bounded before it is used: 5 to the thousandth is no float.
        grown_s = self._first_pause_s * _PAUSE_FACTOR ** min(tries - 1, 12)
        pause_s = min(max(grown_s, outcome["retry_after_s"]), longest_s)
        # Spread, so that all that failed together does not come again together; never sooner than it says.
        chance = int.from_bytes(hashlib.sha256(f"{message_id}:{tries}".encode()).digest()[:4], "big") / 2**32
        return int(pause_s * 1000 * (1 + _SPREAD * chance))

    # --- what goes -----------------------------------------------------------------------------------------------

    def forget_old(self) -> None:
        """Give up what waited too long; remove what ended long ago, and what is too much, with its tries."""
        with UnsafeAllTenants(self._engine, "old messages of every tenant are removed") as session:
            tenants = session.exec(select(col(Webhook.tenant_id)).distinct()).all()
        for tenant in sorted(tenants):
            self._forget(tenant, now_ms())

    def _forget(self, tenant: str, at_ms: int) -> None:
        late = (
            col(WebhookMessage.state) == "pending",
            col(WebhookMessage.queued_at_ms) < at_ms - MAX_WAIT_S * 1000,
            col(WebhookMessage.claimed_until_ms) <= at_ms,
        )
        ended = select(WebhookMessage.id).where(col(WebhookMessage.ended_at_ms).is_not(None))
        surplus = ended.order_by(col(WebhookMessage.ended_at_ms).desc(), col(WebhookMessage.id)).offset(MAX_HISTORY)
        aged = ended.where(col(WebhookMessage.ended_at_ms) < at_ms - self._history_ms)
        with tenant_session(self._engine, tenant) as session:
            is_late = session.exec(select(WebhookMessage.id).where(*late).limit(1)).first() is not None
            old = {*session.exec(aged.limit(_MOST_LOOKED_AT)), *session.exec(surplus.limit(_MOST_LOOKED_AT))}
        if not is_late and not old:
            return
        with tenant_session(self._engine, tenant, write=True) as session:
            _set(session, late, {"state": "failed", "ended_at_ms": at_ms})
            # Whether it has still ended is asked again: it may have been sent again meanwhile.
            gone = select(WebhookMessage.id).where(
                col(WebhookMessage.id).in_(old), col(WebhookMessage.ended_at_ms).is_not(None)
            )
            ids = list(session.exec(gone))
            session.exec(delete(WebhookTry).where(col(WebhookTry.message).in_(ids)))
            session.exec(delete(WebhookMessage).where(col(WebhookMessage.id).in_(ids)))


def _secrets(webhook: Webhook, at_ms: int) -> list[str]:
    """The secrets that a message is signed with, the newest first: after a rotation the one before as well, for a while."""
    before = webhook.secret_before if webhook.secret_before_until_ms > at_ms else None
    return [webhook.secret, *([] if before is None else [before])]


def _set(session: TenantSession, where: Sequence[ColumnElement[bool]], values: Mapping[str, Any]) -> int:
    changed = session.exec(
        update(WebhookMessage).where(*where).values(**values).execution_options(synchronize_session=False)
    )
    return int(changed.rowcount)
