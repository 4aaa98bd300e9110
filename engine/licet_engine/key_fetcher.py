"""The worker's fetcher of issuers' keys: the worker alone reaches out.

Rules kept here: which issuers are due, the api says; what came of it, it is told. Nothing is held here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from licet_adapters.errors import AdapterError
from licet_attestations import rpc
from licet_attestations.errors import LicetAttestationError
from licet_engine.domain.errors import LicetError
from licet_engine.lifecycle.deed import Door

logger = logging.getLogger(__name__)

_THREADS: Final = 8
_PAUSE_S: Final = 2.0


class KeyFetcher:
    """Fetches keys until the process ends.

    Args:
        door: The internal door of the api.
        fetch: Fetches the keys of an issuer by its URL, and whether plain http is meant.
    """

    def __init__(self, door: Door, fetch: Callable[[str, bool], Mapping[str, Any]]) -> None:
        self._door = door
        self._fetch = fetch
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="licet-keys")
        self._thread = threading.Thread(target=self._run, name="licet-keys", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                # At the same time: one that hangs keeps no other waiting.
                list(self._pool.map(self._fetched, self._door.call("issuers_due")))
            except (LicetError, rpc.RpcFault) as error:
                logger.info("issuers cannot be asked for", extra={"reason": str(error)})
            except Exception:  # Whatever it was: this thread is the only one that fetches.
                logger.exception("keys of issuers cannot be fetched")
            time.sleep(_PAUSE_S)

    def _fetched(self, issuer: Mapping[str, Any]) -> None:
        try:
            keys = self._fetch(issuer["url"], issuer["unsafe_http"])
            self._door.call(
                "issuer_keys", tenant=issuer["tenant"], issuer=issuer["issuer"], url=issuer["url"], keys=dict(keys)
            )
        except (AdapterError, LicetError, LicetAttestationError, rpc.RpcFault) as error:
            # It is due again in a while.
            logger.warning(
                "the keys of an issuer cannot be had",
                extra={"tenant": issuer["tenant"], "issuer": issuer["issuer"], "reason": str(error)},
            )
        except Exception:  # Whatever an issuer answers costs no other its turn.
            logger.exception("the keys of an issuer cannot be had", extra={"issuer": issuer["issuer"]})
