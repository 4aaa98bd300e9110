"""Who may invoke: session warrants of at most 60 s, one for each caller's token and endpoint.

Rules kept here:

- No session, no invocation: the api decides and logs, the signer mints, and the guard here admits the warrant and marks
  it spent, before the first request of a session is even read.
- A session ends when its warrant does. It is renewed in the background before that, by a new decision; a no ends it at
  once.
- A no is remembered for a second, so that a hammering caller does not fill the log: that a token is nobody's, whatever it asks for; of a token
  only a digest is kept.
- How many sessions are kept, and how many are asked for at once, is bounded. Tokens that nothing is known of have a part of it, and
  threads, of their own: whoever makes tokens up keeps only newcomers waiting.
- A renewal that failed is tried again after a pause, however many requests come.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from licet_adapters.errors import AdapterError, Unavailable, WarrantRefused
from licet_attestations.errors import LicetAttestationError, SignerUnavailable
from licet_attestations.rpc import RpcFault, RpcUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Executor

    from licet_adapters.guard import WarrantGuard
    from licet_adapters.ports import Clock

T = TypeVar("T")
ADAPTER = "local-serving"
SESSION_MS = 60_000
_RENEW_MS = 15_000
_REMEMBER_NO_MS = 1_000
_MAX_SESSIONS = 20_000
_MAX_OPENING = 256
_MAX_OPENING_OF_STRANGERS = 64
_MAX_REMEMBERED_TOKENS = 50_000
_RENEW_AGAIN_MS = 1_000

logger = logging.getLogger(__name__)


class Door(Protocol):
    """The internal door of the api."""

    def call(self, method: str, **params: Any) -> Any:
        """Call a method; raises ``RpcFault`` with the api's code, or another error if it cannot be reached."""
        ...


class Minting(Protocol):
    """What of the signer the router uses."""

    def mint(
        self,
        *,
        tenant: str,
        leaf: str,
        leaf_index: int,
        salt: bytes,
        record: str,
        proof: Sequence[bytes],
        checkpoint: str,
        adapter: str,
        operation: str,
        step: str,
        attempt: int,
        operation_id: str,
        resources: Mapping[str, str],
        parameters: Any,
        lifetime_ms: int,
    ) -> bytes:
        """Make a warrant."""
        ...

    def attest(self, tenant: str, statement_bytes: bytes) -> bytes:
        """Sign a statement."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """A caller who may invoke an endpoint for a while.

    Attributes:
        tenant: Whose decision.
        principal: On whose behalf.
        decision: The decision's id.
        expires_ms: First moment it is over.
    """

    tenant: str
    principal: str
    decision: str
    expires_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """A caller who may not.

    Attributes:
        decision: Id of the decision that says no; None if there was nothing to decide: the token is nobody's, or what it
            asked for cannot be an endpoint.
        expires_ms: Until when this is remembered.
        is_malformed: The token is somebody's, and what it asked for cannot be an endpoint.
    """

    decision: str | None
    expires_ms: int
    is_malformed: bool = False


def _remember(what: OrderedDict[str, T], token_hash: str, value: T) -> None:
    what[token_hash] = value
    what.move_to_end(token_hash)
    while len(what) > _MAX_REMEMBERED_TOKENS:
        what.popitem(last=False)


class Sessions:
    """The sessions of this router; everything but ``_open`` runs on the event loop's thread.

    Args:
        door: The api.
        signer: Mints.
        guard: Admits.
        clock: Time.
        executor: Where what waits is done, for tokens that somebody is known to have.
        strangers: The same, for all others.
    """

    def __init__(  # noqa: PLR0917  # The parts of one value, in its only call.
        self, door: Door, signer: Minting, guard: WarrantGuard, clock: Clock, executor: Executor, strangers: Executor
    ) -> None:
        self._door, self._signer, self._guard, self._clock = door, signer, guard, clock
        self._executor, self._strangers = executor, strangers
        self._known: dict[tuple[str, str], Session | Refusal] = {}
        self._opening: dict[tuple[str, str], asyncio.Task[Session | Refusal]] = {}
        self._somebody: OrderedDict[str, None] = OrderedDict()  # Digests of tokens on which there was a decision.
        self._nobody: OrderedDict[str, Refusal] = OrderedDict()
        self._renew_again_ms: dict[tuple[str, str], int] = {}

    def find(self, token_hash: str, endpoint: str) -> Session | Refusal | None:
        """What is known of a caller, without waiting; None if the api must be asked."""
        key, now_ms = (token_hash, endpoint), self._clock()
        found = self._known.get(key)
        if found is None:
            nobody = self._nobody.get(token_hash)
            return nobody if nobody is not None and nobody.expires_ms > now_ms else None
        left_ms = found.expires_ms - now_ms
        if left_ms <= 0:
            del self._known[key]
            self._renew_again_ms.pop(key, None)
            return None
        is_due = left_ms < _RENEW_MS and now_ms >= self._renew_again_ms.get(key, 0)
        if is_due and type(found) is Session and key not in self._opening:
            self._begin(key)
        return found

    async def open(self, token_hash: str, endpoint: str) -> Session | Refusal:
        """Ask the api, and have a warrant made if it says yes.

        Raises:
            Unavailable: The api or the signer cannot be reached, or too many are waiting for them.
        """
        key = (token_hash, endpoint)
        task = self._opening.get(key)
        if task is None:
            strangers = sum(token not in self._somebody for token, _ in self._opening)
            is_stranger = token_hash not in self._somebody
            if len(self._opening) >= _MAX_OPENING or (is_stranger and strangers >= _MAX_OPENING_OF_STRANGERS):
                raise Unavailable("too many sessions are being opened; try again")
            task = self._begin(key)
        return await asyncio.shield(task)

    def _begin(self, key: tuple[str, str]) -> asyncio.Task[Session | Refusal]:
        task = asyncio.get_running_loop().create_task(self._ask(key))
        self._opening[key] = task
        task.add_done_callback(lambda done: self._opened(key, done))
        return task

    def _opened(self, key: tuple[str, str], task: asyncio.Task[Session | Refusal]) -> None:
        del self._opening[key]
        if not task.cancelled() and (error := task.exception()) is not None:
            # Told once while it lasts, not with each request.
            if key not in self._renew_again_ms:
                logger.warning("session not opened", extra={"endpoint": key[1], "reason": str(error)})
            if key in self._known:
                self._renew_again_ms[key] = self._clock() + _RENEW_AGAIN_MS
        else:
            self._renew_again_ms.pop(key, None)

    async def _ask(self, key: tuple[str, str]) -> Session | Refusal:
        executor = self._executor if key[0] in self._somebody else self._strangers
        answer = await asyncio.get_running_loop().run_in_executor(executor, self._open, *key)
        if type(answer) is Refusal and answer.decision is None and not answer.is_malformed:
            self._somebody.pop(key[0], None)
            _remember(self._nobody, key[0], answer)
            self._known.pop(key, None)
            return answer
        _remember(self._somebody, key[0], None)
        if len(self._known) >= _MAX_SESSIONS:
            now_ms = self._clock()
            self._known = {name: one for name, one in self._known.items() if one.expires_ms > now_ms}
            while len(self._known) >= _MAX_SESSIONS:  # The oldest is opened again if it is still wanted.
                del self._known[next(iter(self._known))]
        self._known[key] = answer
        return answer

    def _open(self, token_hash: str, endpoint: str) -> Session | Refusal:
        try:
            told = self._door.call("session", token_hash_hex=token_hash, endpoint=endpoint)
        except RpcFault as fault:
            if fault.code in {"unauthenticated", "invalid-input"}:
                is_malformed = fault.code == "invalid-input"
                return Refusal(decision=None, expires_ms=self._clock() + _REMEMBER_NO_MS, is_malformed=is_malformed)
            raise Unavailable(f"the api refused to open a session: {fault.code}") from fault
        except RpcUnavailable as error:
            raise Unavailable(f"the api cannot be reached: {error}") from error
        if told["allowed"] is not True or told["tenant"] != endpoint.partition("/")[0]:
            return Refusal(decision=told["decision"], expires_ms=self._clock() + _REMEMBER_NO_MS)
        resources = {"endpoint": endpoint}
        try:
            envelope = self._signer.mint(
                tenant=told["tenant"],
                leaf=told["leaf"],
                leaf_index=told["leaf_index"],
                salt=bytes.fromhex(told["salt"]),
                record=told["record"],
                proof=[bytes.fromhex(part) for part in told["proof"]],
                checkpoint=told["checkpoint"],
                adapter=ADAPTER,
                operation="serving.invoke",
                step="session",
                attempt=1,
                operation_id=told["operation_id"],
                resources=resources,
                parameters=told["parameters"],
                lifetime_ms=SESSION_MS,
            )
            warrant = self._guard.admit(
                envelope,
                tenant=told["tenant"],
                operation="serving.invoke",
                parameters=told["parameters"],
                resources=resources,
            )
        except (SignerUnavailable, WarrantRefused) as error:
            raise Unavailable(f"no session warrant: {error}") from error
        except (LicetAttestationError, AdapterError) as error:
            raise Unavailable(f"the session warrant was refused: {error}") from error
        return Session(
            tenant=warrant.tenant,
            principal=warrant.principal,
            decision=warrant.decision.id,
            # Whatever the signer made of it, a session lives no longer.
            expires_ms=min(warrant.expires_at_ms, warrant.issued_at_ms + SESSION_MS),
        )
