"""Webhooks, messages to them, and each try."""

from typing import Any, ClassVar

from sqlalchemy import BigInteger, ForeignKeyConstraint, Index, Text
from sqlmodel import Field

from licet_engine.store.tables.base import JsonText, TenantRow, to_tenant


class Webhook(TenantRow, table=True):
    """Where a tenant wants to be told of events. Its secret is derived by the signer, and stored nowhere.

    ``failures`` and ``rest_until_ms`` are telemetry: they raise no facts version.
    """

    __tablename__: ClassVar[Any] = "webhook"
    __table_args__ = (to_tenant(),)

    id: str = Field(primary_key=True)
    name: str
    url: str = Field(sa_type=Text)
    events: list[str] = Field(default_factory=list, sa_type=JsonText)
    """Those it is told of; empty for all."""
    unsafe_http: bool = False
    created_by: str
    created_at_ms: int = Field(sa_type=BigInteger)
    removed_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    secret: str
    """Identifier from which the signer derives the secret."""
    secret_before: str | None = None
    """That of the secret before, by which messages are signed as well until a time."""
    secret_before_until_ms: int = Field(default=0, sa_type=BigInteger)
    failures: int = 0
    """Tries in a row that failed."""
    rest_until_ms: int = Field(default=0, sa_type=BigInteger)
    """Until when it is left alone."""


class WebhookMessage(TenantRow, table=True):
    """One event for one webhook, written with the decision that it tells of. Its sending is telemetry: it raises no facts version."""

    __tablename__: ClassVar[Any] = "webhook_message"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "webhook"], ["webhook.tenant_id", "webhook.id"]),
        Index("ix_webhook_message_due", "state", "next_at_ms"),
        Index("ix_webhook_message_waiting", "tenant_id", "state", "webhook", "next_at_ms"),
    )

    id: str = Field(primary_key=True)
    webhook: str
    event: str
    body: str = Field(sa_type=Text)
    """The very bytes that are signed and sent."""
    state: str = "pending"
    """``pending``, ``delivered``, ``failed`` or ``dropped``."""
    tries: int = 0
    tries_before: int = 0
    """Of these, before it was last put in the queue by hand."""
    created_at_ms: int = Field(sa_type=BigInteger)
    queued_at_ms: int = Field(sa_type=BigInteger)
    next_at_ms: int = Field(sa_type=BigInteger)
    claimed_until_ms: int = Field(default=0, sa_type=BigInteger)
    """Until then a worker is at it."""
    ended_at_ms: int | None = Field(default=None, sa_type=BigInteger)


class WebhookTry(TenantRow, table=True):
    """One try at sending a message, and what came of it."""

    __tablename__: ClassVar[Any] = "webhook_try"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "message"], ["webhook_message.tenant_id", "webhook_message.id"]),
    )

    message: str = Field(primary_key=True)
    number: int = Field(primary_key=True)
    at_ms: int = Field(sa_type=BigInteger)
    status: int = 0
    """HTTP status; 0 if there was no answer."""
    reason: str = Field(default="", sa_type=Text)
    took_ms: int = Field(default=0, sa_type=BigInteger)
