"""What the worker tells of a failure is bounded, and that it failed is told whatever the reason was."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from licet_adapters.errors import Unavailable
from licet_attestations import rpc
from licet_engine.lifecycle.deed import Deed, Door, Tools
from licet_engine.lifecycle.lives import Lives
from licet_engine.worker import Performer, describe


def test_an_error_of_twenty_megabytes_is_told_in_short() -> None:
    told = describe(Unavailable("S3 answers " + "Z" * 20_000_000, code="unavailable." + "x" * 1000))
    assert len(told["message"]) <= 1000
    assert len(told["code"]) <= 64
    assert told["transient"]


@pytest.mark.parametrize("message", ["lone \ud800", "x" * rpc.DEFAULT_MAX_MESSAGE_BYTES])
def test_a_failure_whose_reason_cannot_be_sent_is_told_without_it(tmp_path: Path, message: str) -> None:
    heard: list[dict[str, Any]] = []

    def fail(params: dict[str, Any]) -> dict[str, str]:
        heard.append(params)
        return {"state": "failed"}

    server = rpc.RpcServer(tmp_path / "run" / "api.sock", {"fail": fail}, {os.geteuid()})
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    try:
        tools = cast("Tools", SimpleNamespace(door=Door(tmp_path / "run" / "api.sock")))
        performer = Performer(tools, Lives(tmp_path / "lives"))
        ended = performer._tell_failed(  # The rest of a performance needs a workflow engine.
            cast("Deed", SimpleNamespace(attempt=3)),
            tenant="northbank",
            operation="op",
            told={"code": "unavailable.storage", "message": message},
            refused=False,
        )
    finally:
        server.close()
        serving.join(10)
    assert ended == {"state": "failed"}
    (told,) = heard
    assert (told["attempt"], told["refused"], told["error"]["code"]) == (3, False, "internal")
