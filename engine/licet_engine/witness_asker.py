"""Has witnesses cosign checkpoints: threads of the worker's, beside the courier.

Rules kept here:

- What is asked, and what an answer is worth, is the api's to say; this only carries. The api opens no connection to the outside.
- A thread for each witness: one that hangs keeps nobody else waiting.
- Only to the URLs of the operator's own policy file, by the guarded way out, bounded in time and bytes.
- It holds nothing: killed at any moment, it is asked for again when the claim ends.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from licet_adapters import outbound
from licet_adapters.errors import AdapterError
from licet_attestations import rpc
from licet_attestations.cosignature import MAX_LINES_BYTES
from licet_attestations.tlogpolicy import Witness
from licet_attestations.witness import SIZE_TYPE, Request
from licet_engine.domain.errors import LicetError
from licet_engine.lifecycle.deed import Door

logger = logging.getLogger(__name__)

_AT_ONCE: Final = 32
_PAUSE_S: Final = 0.5
_PAUSE_WITHOUT_API_S: Final = 2.0
_SIZE: Final = re.compile(rb"(0|[1-9][0-9]{0,15})\n")
_OK, _CONFLICT, _FORK = 200, 409, 422


class WitnessAsker:
    """Asks one witness until the process ends.

    Args:
        door: The internal door of the api.
        witness: Which.
        networks: In which it may be, beside the public ones.
        timeout_s: For one request.
    """

    def __init__(self, door: Door, witness: Witness, networks: Sequence[outbound.Network], timeout_s: float) -> None:
        self._door = door
        self._witness = witness
        self._networks = networks
        self._timeout_s = timeout_s
        self._thread = threading.Thread(target=self._run, name=f"licet-witness-{witness.name}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                asked = self.ask_what_is_due()
            except (LicetError, rpc.RpcFault) as error:
                logger.warning("checkpoints cannot be asked for", extra={"reason": str(error)})
                time.sleep(_PAUSE_WITHOUT_API_S)
                continue
            except Exception:  # Whatever it was: this thread is the only one that asks this witness.
                logger.exception("a witness cannot be asked", extra={"witness": self._witness.name})
                asked = 0
            if asked < _AT_ONCE:
                time.sleep(_PAUSE_S)

    def ask_what_is_due(self) -> int:
        """Ask about each log that is due; return how many answered."""
        answered = 0
        for item in self._door.call("witness_asks", witness=self._witness.name, limit=_AT_ONCE):
            outcome = self._ask(item)
            self._door.call(
                "witness_told", witness=self._witness.name, tenant=item["tenant"], size=item["size"], outcome=outcome
            )
            if outcome.get("away"):
                break  # The others' claims end by themselves, after the pause that this one began.
            answered += 1
        return answered

    def _ask(self, item: Mapping[str, Any]) -> dict[str, Any]:
        proof = tuple(bytes.fromhex(part) for part in item["proof"])
        request = Request(item["old_size"], proof, item["note"])
        try:
            answer = outbound.request(
                "POST",
                f"{self._witness.url.rstrip('/')}/add-checkpoint",
                headers={"Content-Type": "text/plain; charset=utf-8", "Connection": "close"},
                body=request.to_bytes(),
                networks=self._networks,
                unsafe_http=True,  # To loopback alone, and there only where the operator's networks have it.
                timeout_s=self._timeout_s,
                max_bytes=MAX_LINES_BYTES,
            )
        except AdapterError as error:
            return {"fault": str(error), "away": True}
        if answer.status == _OK:
            try:
                return {"lines": answer.body.decode("utf-8")}
            except UnicodeDecodeError:
                return {"fault": "it answered with something else than signature lines"}
        if answer.status == _CONFLICT and answer.headers.get("content-type", "").startswith(SIZE_TYPE):
            size = _SIZE.fullmatch(answer.body)
            if size is not None:
                return {"size": int(size.group(1))}
        return {"fault": f"it answered with status {answer.status}", "fork": answer.status == _FORK}
