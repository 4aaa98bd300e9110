"""What one tenant's endpoint has to tell, and the api does not take, holds up nobody else's."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import pytest

from licet_adapters.ports import MAX_CAUSE_CHARS
from licet_adapters.serving.alarms import Fired
from licet_adapters.serving.reporter import Reporter
from licet_attestations.errors import FormatError, SignerRefused, SignerUnavailable
from licet_attestations.rpc import RpcFault, RpcUnavailable


class Told:
    """An endpoint with one event and one batch to tell."""

    def __init__(self, name: str) -> None:
        event = {"kind": "step", "operation_id": "o", "serial": 1}
        self.state = SimpleNamespace(tenant=name.partition("/")[0], endpoint=name, outbox=[event])
        self.first, self.realigned = 1, 0
        self.counter = SimpleNamespace(cut=lambda: {"first": self.first}, acknowledge=lambda: None, has_full=False)

    def realign(self) -> None:
        self.realigned += 1
        self.first = 8

    def next_to_tell(self) -> dict[str, Any] | None:
        return next(iter(self.state.outbox), None)

    async def told(self, serial: int) -> None:
        assert serial == 1
        self.state.outbox.clear()


class Door:
    """The api's door, which takes nothing of one tenant's for a while."""

    def __init__(self, refused: int, error: Exception) -> None:
        self.took: list[tuple[str, str]] = []
        self.asked = 0
        self._refused, self._error = refused, error

    def call(self, method: str, **params: Any) -> Any:
        if params["tenant"] == "lakeside":
            self.asked += 1
            if self.asked <= self._refused:
                raise self._error
        self.took.append((params["tenant"], method))
        return {}


class Broken(Door):
    """The api's door, which has an account of lakeside's that nothing of this router's follows on."""

    def __init__(self) -> None:
        super().__init__(0, RpcFault("unused", "unused"))
        self.batches: list[int] = []

    def call(self, method: str, **params: Any) -> Any:
        if method == "invocations" and params["tenant"] == "lakeside":
            self.batches.append(params["batch"]["first"])
            if params["batch"]["first"] != 8:
                raise RpcFault("account-broken", "it leaves a gap: the next number is 8")
        return super().call(method, **params)


class Refusing(Door):
    """The api's door, which does not take the first attestation."""

    def __init__(self, error: Exception) -> None:
        super().__init__(0, error)
        self.attested = 0

    def call(self, method: str, **params: Any) -> Any:
        if method == "attest":
            self.attested += 1
            if self.attested == 1:
                raise self._error
        return super().call(method, **params)


def report(
    door: Door,
    seconds: float,
    given: dict[str, Told] | None = None,
    signing: Signing | None = None,
    *,
    whole: bool = False,
) -> dict[str, Told]:
    """Let a reporter work until all is told, and a moment longer; or for so long, if it never is or the whole time is wanted."""
    endpoints = given or {name: Told(name) for name in ("lakeside/first", "northbank/second")}

    async def told() -> None:
        while whole or any(endpoint.state.outbox for endpoint in endpoints.values()):  # noqa: ASYNC110  # Nobody tells us.
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.3)

    async def run() -> None:
        with ThreadPoolExecutor(1) as executor:
            reporter = Reporter(cast("Any", endpoints), cast("Any", door), cast("Any", signing), executor)
            reporter.wake()
            working = asyncio.create_task(reporter.run())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(told(), seconds)
            assert not working.done()
            working.cancel()

    asyncio.run(run())
    return endpoints


def test_an_event_that_is_refused_for_ever_holds_up_no_other_endpoint() -> None:
    door = Door(10_000, RpcFault("invalid-input", "cause has a few members"))
    endpoints = report(door, 2.0)
    assert endpoints["lakeside/first"].state.outbox
    assert not endpoints["northbank/second"].state.outbox
    assert ("northbank", "traffic") in door.took
    assert ("northbank", "invocations") in door.took
    # Told again after a pause that grows, not as fast as can be.
    assert 2 <= door.asked < 12


def test_what_was_refused_is_taken_later() -> None:
    door = Door(2, RpcFault("busy", "the facts change too fast"))
    assert not report(door, 20.0)["lakeside/first"].state.outbox
    assert ("lakeside", "traffic") in door.took


def test_an_api_that_is_away_is_waited_for_once_and_not_for_each_endpoint() -> None:
    door = Door(1, RpcUnavailable("nobody listens"))
    endpoints = report(door, 20.0)
    assert not endpoints["lakeside/first"].state.outbox
    assert not endpoints["northbank/second"].state.outbox


def test_an_account_that_is_broken_is_taken_from_the_api_once_and_told_on() -> None:
    door = Broken()
    endpoints = report(door, 4.0, whole=True)
    assert door.batches[:2] == [1, 8]
    assert ("lakeside", "invocations") in door.took
    assert (endpoints["lakeside/first"].realigned, endpoints["northbank/second"].realigned) == (1, 0)


def test_an_account_that_stays_broken_is_not_taken_anew_with_every_refusal() -> None:
    class StillBroken(Told):
        def realign(self) -> None:
            self.realigned += 1

    door = Broken()
    endpoints = {"lakeside/first": StillBroken("lakeside/first")}
    report(door, 4.0, dict(endpoints), whole=True)
    assert len(door.batches) >= 2
    assert endpoints["lakeside/first"].realigned == 1


class Signing:
    """A signer that fails a few times."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.failures, self.error, self.asked = failures, error, 0

    def attest(self, tenant: str, statement: bytes) -> bytes:
        del tenant, statement
        self.asked += 1
        if self.asked <= self.failures:
            raise self.error
        return b"{}"


def returned(endpoint: Told) -> None:
    """Have what it has to tell be a return of its traffic."""
    endpoint.state.outbox[0] |= {
        "kind": "rolled-back",
        "weights": {"1": 100},
        "shadow": "",
        "cause": {},
        "at_ms": 1,
        "subject": {"version": "lakeside/scorer@2", "model_digest_hex": "0" * 64},
    }


@pytest.mark.parametrize(
    "code", ["signer.refused", "signer.tenant", "signer.predicate", "signer.denied", "attestation.format", "malformed"]
)
def test_a_return_that_the_signer_refuses_to_attest_is_told_without_it(code: str) -> None:
    error = SignerRefused("the rules forbid it", code=code)
    door, signing = Door(0, error), Signing(10_000, error)
    endpoints = {name: Told(name) for name in ("lakeside/first", "northbank/second")}
    returned(endpoints["lakeside/first"])
    report(door, 20.0, endpoints, signing)
    assert not endpoints["lakeside/first"].state.outbox
    assert ("lakeside", "traffic") in door.took
    assert ("lakeside", "attest") not in door.took
    assert signing.asked == 1


def test_a_return_is_attested_once_the_signer_is_back() -> None:
    error = SignerUnavailable("no answer")
    door, signing = Door(0, error), Signing(2, error)
    endpoint = Told("lakeside/first")
    returned(endpoint)
    report(door, 20.0, {"lakeside/first": endpoint}, signing)
    assert not endpoint.state.outbox
    assert ("lakeside", "attest") in door.took
    assert signing.asked == 3


@pytest.mark.parametrize("code", ["signer.unavailable", "internal", "signer.state"])
def test_a_return_for_which_the_signer_is_never_there_holds_up_no_other_endpoint(code: str) -> None:
    error = SignerUnavailable("no answer", code=code)
    door, signing = Door(0, error), Signing(10_000, error)
    endpoints = {name: Told(name) for name in ("lakeside/first", "northbank/second")}
    returned(endpoints["lakeside/first"])
    report(door, 2.0, endpoints, signing)
    assert endpoints["lakeside/first"].state.outbox
    assert not endpoints["northbank/second"].state.outbox
    # Asked again after a pause that grows.
    assert 2 <= signing.asked < 12


@pytest.mark.parametrize("error", [FormatError("a message of 17 MiB is over the limit"), KeyError("subject")])
def test_what_cannot_even_be_sent_holds_up_no_other_endpoint(error: Exception) -> None:
    door = Door(10_000, error)
    endpoints = report(door, 2.0)
    assert endpoints["lakeside/first"].state.outbox
    assert not endpoints["northbank/second"].state.outbox
    assert ("northbank", "invocations") in door.took


@pytest.mark.parametrize("code", ["busy", "database-unavailable", "internal"])
def test_an_attestation_that_the_api_does_not_take_now_is_sent_again(code: str) -> None:
    door = Refusing(RpcFault(code, "not now"))
    endpoint = Told("lakeside/first")
    returned(endpoint)
    report(door, 20.0, {"lakeside/first": endpoint}, Signing(0, ValueError()))
    assert not endpoint.state.outbox
    assert door.attested == 2  # Refused, and taken.


@pytest.mark.parametrize("chars", [10, MAX_CAUSE_CHARS, MAX_CAUSE_CHARS + 1, 5000])
def test_the_names_of_columns_never_make_a_cause_that_the_api_does_not_take(chars: int) -> None:
    fired = Fired(kind="drift", value=1, threshold=0, window_s=1, count=1, detail="c" * chars)
    detail = fired.to_json()["detail"]
    assert len(detail) == min(chars, MAX_CAUSE_CHARS)
    assert detail.endswith("...") == (chars > MAX_CAUSE_CHARS)
