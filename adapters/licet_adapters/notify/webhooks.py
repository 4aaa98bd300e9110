"""Adapter ``standard-webhooks``: messages as Standard Webhooks, signed by the signer.

Rules kept here:

- The identifier and the body are those of the message at every try; the time is that of the try, so a receiver that refuses
  old times takes a late one too.
- A redirect is not followed. Of an answer only its status and ``Retry-After`` count; nothing a receiver sends is kept.
- 2xx is taken; 410 means that nobody wants it any more; everything else may pass.

Source: Standard Webhooks specification 1.0 (webhook-id, webhook-timestamp, webhook-signature).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from licet_adapters import outbound
from licet_adapters.errors import InputRefused, Unavailable
from licet_adapters.ports import Notice, NoticeOutcome
from licet_attestations.errors import SignerRefused, SignerUnavailable

if TYPE_CHECKING:
    from licet_adapters.ports import AdapterContext

_MAX_ANSWER_BYTES = 1024
_MOST_RETRY_AFTER_S = 86_400
_MOST_DIGITS = 9
_TAKEN = range(200, 300)
_GONE = 410


class StandardWebhooks:
    """Sends messages to webhooks.

    Args:
        context: What every adapter is given.
    """

    def __init__(self, context: AdapterContext) -> None:
        self._signer = context.signer
        self._clock = context.clock
        self._timeout_s = float(context.option("outbound_timeout_s", "10"))
        self._networks = outbound.parse_networks(context.option("outbound_networks"))

    def send(self, notice: Notice) -> NoticeOutcome:
        """See ``Notifier.send``."""
        timestamp_s = self._clock() // 1000
        try:
            # Several signatures stand with a space between; a receiver takes the message if one of them is right.
            signature = " ".join(
                self._signer.sign_webhook(notice.tenant, secret, notice.message, timestamp_s, notice.body)
                for secret in notice.secrets
            )
        except SignerRefused as error:
            # For instance: the tenant's key was destroyed.
            return NoticeOutcome(delivered=False, status=0, reason=f"the signer refused: {error.code}", is_final=True)
        except SignerUnavailable as error:
            raise Unavailable("the signer cannot be had") from error
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "licet-webhooks/1",
            "webhook-id": notice.message,
            "webhook-timestamp": str(timestamp_s),
            "webhook-signature": signature,
        }
        try:
            answer = outbound.request(
                "POST",
                notice.url,
                headers=headers,
                body=notice.body,
                networks=self._networks,
                unsafe_http=notice.unsafe_http,
                timeout_s=self._timeout_s,
                max_bytes=_MAX_ANSWER_BYTES,
            )
        except (InputRefused, Unavailable) as error:
            return NoticeOutcome(delivered=False, status=0, reason=str(error))
        return _outcome(answer)


def _outcome(answer: outbound.Answer) -> NoticeOutcome:
    if answer.status in _TAKEN:
        return NoticeOutcome(delivered=True, status=answer.status, reason="taken")
    after = answer.headers.get("retry-after", "")
    return NoticeOutcome(
        delivered=False,
        status=answer.status,
        reason="gone" if answer.status == _GONE else f"answered {answer.status}",
        is_final=answer.status == _GONE,
        retry_after_s=_seconds(after),
    )


def _seconds(text: str) -> int:
    """A number of seconds, a day at most. A longer number than any sound one is not read: Python refuses thousands of digits."""
    if not (text.isascii() and text.isdigit()):
        return 0
    return _MOST_RETRY_AFTER_S if len(text) > _MOST_DIGITS else min(int(text), _MOST_RETRY_AFTER_S)
