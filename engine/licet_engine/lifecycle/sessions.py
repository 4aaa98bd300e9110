"""Sessions of who invokes an endpoint, at the rates that are set.

Rules kept here:

- A session is a decision like any other: logged before it is answered, on the facts of now, for the principal whose token
  the router took. The router sends the token's hash alone, and the answer never says why not.
- Whose token it is, and how often it comes, is asked before the form of what was sent. All tokens that are nobody's have one
  rate together.
"""

from __future__ import annotations

import math
import re
import threading
from dataclasses import replace
from typing import Any, Final

from licet_engine.domain.errors import InvalidInput, TooManyRequests, Unauthenticated
from licet_engine.domain.rates import Buckets
from licet_engine.lifecycle.asked import parse_asked
from licet_engine.lifecycle.asking import Desk
from licet_engine.lifecycle.catalogue import VERBS
from licet_engine.lifecycle.operations import Operations
from licet_engine.lifecycle.tenants import Tenants

_NOBODY: Final = ""
_HASH: Final = re.compile(r"[0-9a-f]{64}")


class Sessions:
    """Opens sessions.

    Args:
        tenants: What is in force, and who a token speaks for.
        desk: Where questions are answered.
        operations: Gathers what the signer needs for a warrant.
        per_token: Rates at which sessions are opened, of tokens.
        per_tenant: The same, of tenants.
    """

    def __init__(
        self, tenants: Tenants, desk: Desk, operations: Operations, *, per_token: Buckets, per_tenant: Buckets
    ) -> None:
        self._tenants, self._desk, self._operations = tenants, desk, operations
        self._per_token, self._per_tenant = per_token, per_tenant
        self._lock = threading.Lock()

    def open(self, token_hash_hex: str, endpoint: str) -> dict[str, Any]:
        """Decide whether the bearer of a token may invoke an endpoint; with an allow, what the signer needs for a warrant.

        Raises:
            Unauthenticated: The token does not count.
            TooManyRequests: It opens sessions faster than it may.
        """
        if not isinstance(token_hash_hex, str) or not _HASH.fullmatch(token_hash_hex):
            raise InvalidInput("token_hash_hex is the SHA-256 of a token, in hex")
        # Whose token it is comes before the form of what was sent, as at the front door; and so does how often it comes.
        try:
            who = self._tenants.identify_hash(token_hash_hex)
        except Unauthenticated:
            self._charge((self._per_token, _NOBODY))
            raise
        self._charge((self._per_token, who.token_id), (self._per_tenant, who.tenant))
        asked = replace(parse_asked(VERBS["endpoint.invoke"], endpoint, {}), opens=True)
        answer = self._desk.ask(lambda: self._tenants.identify_hash(token_hash_hex), asked)
        if not answer.decision.allowed or answer.operation is None:
            return {"allowed": False, "decision": answer.decision_id}
        who = self._tenants.identify_hash(token_hash_hex)
        return {
            "allowed": True,
            "tenant": answer.tenant,
            "principal": who.id,
            "decision": answer.decision_id,
            "operation_id": answer.operation,
            "parameters": {"endpoint": str(asked.ref)},
            **self._operations.material(answer.tenant, answer.decision_id),
        }

    def _charge(self, *whom: tuple[Buckets, str]) -> None:
        with self._lock:
            wait_s = max(rates.take(name) for rates, name in whom)
        if wait_s:
            raise TooManyRequests("sessions are opened faster than they may be", retry_after_s=math.ceil(wait_s))
