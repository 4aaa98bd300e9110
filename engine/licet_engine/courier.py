"""The worker's courier: sends the messages that wait for webhooks.

Rules kept here:

- What waits, and what came of it, stands in the database, behind the internal door. The courier holds nothing: killed at any
  moment, it loses nothing, and another sends again what it had begun, under the same identifier.
- A receiver that hangs takes one of the courier's threads for the time of one try, and no operation waits for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from licet_adapters.errors import AdapterError
from licet_adapters.ports import Notice, NoticeOutcome, Notifier
from licet_attestations import rpc
from licet_engine.domain.errors import LicetError
from licet_engine.lifecycle.deed import Door

logger = logging.getLogger(__name__)

_THREADS: Final = 16
_PAUSE_S: Final = 0.5
_PAUSE_WITHOUT_API_S: Final = 2.0


class Courier:
    """Sends messages until the process ends.

    Args:
        door: The internal door of the api.
        notifier: What sends.
    """

    def __init__(self, door: Door, notifier: Notifier) -> None:
        self._door = door
        self._notifier = notifier
        self._free = threading.Semaphore(_THREADS)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="licet-courier")
        self._thread = threading.Thread(target=self._run, name="licet-courier", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                sent = self.send_what_waits()
            except (LicetError, rpc.RpcFault) as error:
                logger.warning("messages cannot be asked for", extra={"reason": str(error)})
                time.sleep(_PAUSE_WITHOUT_API_S)
                continue
            except Exception:  # Whatever it was: this thread is the only one that sends.
                logger.exception("messages cannot be sent")
                time.sleep(_PAUSE_WITHOUT_API_S)
                continue
            if not sent:
                time.sleep(_PAUSE_S)

    def send_what_waits(self) -> int:
        """Claim as many messages as there are threads free, and have them sent; return how many."""
        # At least one is free before any is asked for: what is claimed is begun at once.
        self._free.acquire()
        free = 1
        while self._free.acquire(blocking=False):
            free += 1
        taken = 0
        try:
            for message in self._door.call("messages", limit=free):
                self._pool.submit(self._send, message)
                taken += 1
        finally:
            for _ in range(free - taken):
                self._free.release()
        return taken

    def _send(self, message: Mapping[str, Any]) -> None:
        begun_s = time.monotonic()
        try:
            outcome = self._tried(message)
            told = {
                "delivered": outcome.delivered,
                "status": outcome.status,
                "reason": outcome.reason,
                "is_final": outcome.is_final,
                "retry_after_s": outcome.retry_after_s,
                "took_ms": int((time.monotonic() - begun_s) * 1000),
            }
            self._door.call(
                "message_tried",
                tenant=message["tenant"],
                message=message["message"],
                number=message["number"],
                outcome=told,
            )
        except (LicetError, rpc.RpcFault) as error:
            # Its claim ends by itself, and it is sent again.
            logger.warning(
                "what came of a message cannot be told",
                extra={"webhook_message": message["message"], "reason": str(error)},
            )
        except Exception:
            logger.exception("a message could not be sent", extra={"webhook_message": message["message"]})
        finally:
            self._free.release()

    def _tried(self, message: Mapping[str, Any]) -> NoticeOutcome:
        notice = Notice(
            tenant=message["tenant"],
            secrets=message["secrets"],
            url=message["url"],
            unsafe_http=message["unsafe_http"],
            message=message["message"],
            body=message["body"].encode(),
        )
        try:
            return self._notifier.send(notice)
        except AdapterError as error:
            return NoticeOutcome(delivered=False, status=0, reason=str(error))
        except Exception:
            # A try like any other: were it not told, the message would come again each minute, without end or pause.
            logger.exception("a message could not be sent", extra={"webhook_message": message["message"]})
            return NoticeOutcome(delivered=False, status=0, reason="the sender failed; the worker's log says how")
