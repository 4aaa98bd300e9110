"""The router passes the suite that third parties' serving runtimes run; so does the worker's way to it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from licet_adapters.conformance import Case, ConformanceFailed, ServingConformance, run
from licet_adapters.errors import InputRefused
from licet_adapters.ports import CONTROL_SOCKET
from licet_adapters.serving.client import LocalServing
from licet_adapters.serving.router import Router, RouterConfig, build_router

if TYPE_CHECKING:
    from licet_adapters.ports import AdapterContext, ServingRuntime


class NoDoor:
    """An api that takes everything and is asked for no session."""

    def call(self, method: str, **params: Any) -> Any:
        assert method in {"account", "traffic", "invocations"}, params
        return {"last": 0} if method == "account" else {}


class Routers:
    """At most one router at a time; the next on the same folder takes up what the one before left."""

    def __init__(self) -> None:
        self._running: tuple[Router, threading.Thread] | None = None

    def start(self, context: AdapterContext) -> ServingRuntime:
        self.stop()
        run_dir = context.data_dir / "run"
        config = RouterConfig(data_dir=context.data_dir, port=0, control_socket=run_dir / CONTROL_SOCKET)
        router = build_router(config, context.trust_root, context.signer, NoDoor(), context.clock)  # type: ignore[arg-type]  # The world's signer mints, too.
        thread = threading.Thread(target=router.run)
        thread.start()
        assert router.wait_ready(30)
        self._running = router, thread
        return LocalServing(context, control_socket=run_dir / CONTROL_SOCKET)

    def stop(self) -> None:
        if self._running is not None:
            router, thread = self._running
            router.ask_to_stop()
            thread.join(30)
            assert not thread.is_alive()
            self._running = None


ROUTERS = Routers()
SUITE = ServingConformance("local-serving", ROUTERS.start, ROUTERS.stop)


@pytest.mark.parametrize("case", [pytest.param(case, id=str(case)) for case in SUITE.cases()])
def test_local_serving(case: Case) -> None:
    case.run()


class Forgetful:
    """A runtime that asks for no warrant and keeps nothing."""

    def deploy(self, _warrant: bytes, _job: Any) -> Any:
        raise InputRefused("nothing can be deployed here")

    def status(self, _tenant: str, _endpoint: str) -> Any:
        return {"weights": {}}

    def stands(self, *_: str) -> None:
        return None

    shift = retire = deploy


def test_a_runtime_that_keeps_nothing_fails_the_suite() -> None:
    with pytest.raises(ConformanceFailed) as found:
        run(ServingConformance("local-serving", lambda _context: Forgetful(), lambda: None))  # type: ignore[arg-type,return-value]  # On purpose.
    assert "an_expired_warrant_is_refused" in str(found.value)
    assert "the_first_version_has_all_traffic" in str(found.value)
