"""Tells the api what happened: invocations in batches, traffic as it changed, and attests a return.

Rules kept here:

- What is to be told is on the disk first, is told in order, and told until it is taken: every method of the door may be
  called again with the same content after a lost answer.
- A return on an alarm is attested by a statement made from the event alone, so that signed again it is the same.
- What goes wrong with one endpoint is told again after a pause of its own. It holds up no other endpoint: those are other
  tenants'. An api that is away is away for all of them, and is waited for once.
- A statement that the signer refuses, for whatever reason, is refused for ever: the event goes on without it.
- A batch that does not follow on the account will never do so. The api's account counts then, and what it lacks is told as lost:
  once in a while, since each batch that is refused is an entry of the log.
- Nothing here stands in the way of a request: all of it runs beside the event loop, and an api that is away is waited for.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from licet_adapters.errors import AdapterError
from licet_attestations.errors import LicetAttestationError, SignerRefused
from licet_attestations.rpc import RpcFault, RpcUnavailable
from licet_attestations.statement import DEPLOYMENT, Statement, Subject

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from concurrent.futures import Executor

    from licet_adapters.serving.endpoint import Endpoint
    from licet_adapters.serving.sessions import Door, Minting

BATCH_EVERY_S = 1.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0
_REALIGN_AFTER_S = 60.0
"""How long an endpoint's account is left as it is after it was broken and taken anew."""
_BROKEN = "account-broken"
"""The code of the api's refusal of a batch that does not follow on the account, or is of sessions that it does not know."""
_FINAL = frozenset({"invalid-input", "no-such-operation"})
"""Codes of the api's refusals that asking again does not change."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Rest:
    """Until when an endpoint is left alone, in seconds of the loop, and for how long that is."""

    until_s: float
    pause_s: float


class Reporter:
    """Tells what one router has to tell.

    Args:
        endpoints: The router's; it changes.
        door: The api.
        signer: Attests.
        executor: Where what waits is done.
    """

    def __init__(self, endpoints: Mapping[str, Endpoint], door: Door, signer: Minting, executor: Executor) -> None:
        self._endpoints, self._door, self._signer, self._executor = endpoints, door, signer, executor
        self._wake = asyncio.Event()
        # Endpoints of which the api took no event, or no batch.
        self._events_rest: dict[str, _Rest] = {}
        self._counts_rest: dict[str, _Rest] = {}
        # When an endpoint's account was last taken from the api, in seconds of the loop.
        self._realigned_s: dict[str, float] = {}

    def wake(self) -> None:
        """There is an event to tell."""
        self._wake.set()

    async def run(self) -> None:
        """Tell, until cancelled."""
        await asyncio.gather(self._forever(self._tell_events, None), self._forever(self._tell_counts, BATCH_EVERY_S))

    async def finish(self, timeout_s: float) -> None:
        """Tell what is left, once, as far as there is time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._tell_events()
                await self._tell_counts()
        except TimeoutError:
            logger.warning("not everything could be told; the next start goes on")
        except Exception as error:  # noqa: BLE001  # It is on the disk; the next start tells it.
            logger.warning("not everything could be told; the next start goes on", extra={"reason": str(error)})

    async def _forever(self, tell: Callable[[], Any], every_s: float | None) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            if every_s is None:
                await self._wake.wait()
                self._wake.clear()
            else:
                await asyncio.sleep(every_s)
            try:
                await tell()
                pause_s = _FIRST_PAUSE_S
            except Exception as error:  # noqa: BLE001  # Whatever the door raises: it is told again later.
                _log("not told yet", error)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
                self._wake.set()

    async def _call(self, method: str, **params: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: self._door.call(method, **params))

    async def _of_each(self, rests: dict[str, _Rest], tell: Callable[[Endpoint], Awaitable[None]]) -> None:
        """Tell of every endpoint but those that rest; whose telling is refused rests from now on."""
        loop = asyncio.get_running_loop()
        for name, endpoint in list(self._endpoints.items()):
            rest = rests.get(name)
            if rest is not None and loop.time() < rest.until_s:
                continue
            try:
                await tell(endpoint)
            except RpcUnavailable:
                raise
            except Exception as error:  # noqa: BLE001  # Whatever it is, it is this endpoint's.
                pause_s = _FIRST_PAUSE_S if rest is None else min(rest.pause_s * 2, _LONGEST_PAUSE_S)
                rests[name] = _Rest(loop.time() + pause_s, pause_s)
                loop.call_later(pause_s, self._wake.set)
                _log("not taken, and told again later", error, endpoint=name)
            else:
                rests.pop(name, None)

    # --- traffic -------------------------------------------------------------------------------------------------------

    async def _tell_events(self) -> None:
        await self._of_each(self._events_rest, self._tell_events_of)

    async def _tell_events_of(self, endpoint: Endpoint) -> None:
        while (event := endpoint.next_to_tell()) is not None:
            await self._tell_event(endpoint, event)
            await endpoint.told(event["serial"])

    async def _tell_event(self, endpoint: Endpoint, event: Mapping[str, Any]) -> None:
        state = endpoint.state
        # What only the router needs to remember of an event is not told.
        told = {name: value for name, value in event.items() if name != "subject"}
        await self._call("traffic", tenant=state.tenant, endpoint=state.endpoint, event=told)
        if event["kind"] != "rolled-back":
            return
        loop = asyncio.get_running_loop()
        statement = rollback_statement(state.tenant, state.endpoint, event)
        try:
            envelope = await loop.run_in_executor(
                self._executor, self._signer.attest, state.tenant, statement.to_bytes()
            )
            await self._call("attest", tenant=state.tenant, operation=event["operation_id"], envelope=envelope.decode())
        except (RpcFault, SignerRefused) as refusal:
            if isinstance(refusal, RpcFault) and refusal.code not in _FINAL:
                raise  # It may pass: told again, the event is known, and the statement the same.
            # The event itself is told and logged; a statement that is refused for what it is will be refused for ever.
            logger.error("a return was not attested", extra={"endpoint": state.endpoint, "reason": str(refusal)})  # noqa: TRY400

    # --- invocations ---------------------------------------------------------------------------------------------------

    async def _tell_counts(self) -> None:
        await self._of_each(self._counts_rest, self._tell_count_of)

    async def _tell_count_of(self, endpoint: Endpoint) -> None:
        loop = asyncio.get_running_loop()
        state = endpoint.state
        while (batch := await loop.run_in_executor(self._executor, endpoint.counter.cut)) is not None:
            try:
                await self._call("invocations", tenant=state.tenant, endpoint=state.endpoint, batch=batch)
            except RpcFault as fault:
                if fault.code == _BROKEN:
                    await self._realign(endpoint)
                raise  # What is lost is told at the next turn.
            await loop.run_in_executor(self._executor, endpoint.counter.acknowledge)
            if not endpoint.counter.has_full:
                break

    async def _realign(self, endpoint: Endpoint) -> None:
        loop = asyncio.get_running_loop()
        name = endpoint.state.endpoint
        if loop.time() - self._realigned_s.get(name, float("-inf")) < _REALIGN_AFTER_S:
            return
        self._realigned_s[name] = loop.time()
        await loop.run_in_executor(self._executor, endpoint.realign)
        logger.error("the account of an endpoint was broken, and is taken from the log", extra={"endpoint": name})


def _log(message: str, error: Exception, **told: str) -> None:
    level = logging.WARNING if isinstance(error, AdapterError | LicetAttestationError) else logging.ERROR
    logger.log(level, message, extra={**told, "reason": f"{type(error).__name__}: {error}"})


def rollback_statement(tenant: str, endpoint: str, event: Mapping[str, Any]) -> Statement:
    """What is attested of a return on an alarm: about the version that was taken out of traffic."""
    subject = event["subject"]
    predicate = {
        "v": 1,
        "tenant": tenant,
        "endpoint": endpoint,
        "operation": event["operation_id"],
        "event": event["kind"],
        "version": subject["version"],
        "weights": dict(event["weights"]),
        "shadow": event["shadow"],
        "cause": dict(event["cause"]),
        "at_ms": event["at_ms"],
        "serial": event["serial"],
    }
    return Statement((Subject(subject["version"], subject["model_digest_hex"]),), DEPLOYMENT, predicate)
