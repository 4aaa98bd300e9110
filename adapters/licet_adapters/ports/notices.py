"""The port of what tells webhooks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """One try at telling one webhook of one event.

    Attributes:
        tenant: Whose webhook.
        secrets: Identifiers of the secrets that it is signed with, the newest first.
        url: Where it is.
        unsafe_http: Whether plain http to this machine is meant.
        message: Identifier of the message, the same at every try.
        body: What is signed and sent, the same bytes at every try.
    """

    tenant: str
    secrets: Sequence[str]
    url: str
    unsafe_http: bool
    message: str
    body: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class NoticeOutcome:
    """What came of a try.

    Attributes:
        delivered: The receiver took it.
        status: HTTP status; 0 without an answer.
        reason: In a few words, without anything the receiver sent.
        is_final: Not delivered, and no further try makes sense.
        retry_after_s: How long the receiver asked to be left alone.
    """

    delivered: bool
    status: int
    reason: str
    is_final: bool = False
    retry_after_s: int = 0


class Notifier(Protocol):
    """Adapter ``standard-webhooks`` and its peers.

    NOTE: it takes no warrant. A message touches no data, key, model or traffic; that a webhook is told is decided when it is
    added, and what it is told is written with the decision it tells of. The signer signs the message, so the adapter holds
    no secret.
    """

    def send(self, notice: Notice) -> NoticeOutcome:
        """Try once. What goes wrong at the receiver or on the way is an outcome.

        Raises:
            Unavailable: The signer cannot be had.
        """
        ...
