"""A service that could not be reached where it was told to be is not started, and says which port is taken."""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING

import pytest

from licet_engine.domain.errors import ConfigurationError
from licet_engine.init import initialise
from licet_engine.serve import Supervisor, is_served
from licet_engine.settings import load_settings

if TYPE_CHECKING:
    from pathlib import Path

WHOSE = ("api", "worker", "router")


def three_in_a_row() -> int:
    """The first of three ports of which none is taken."""
    for _ in range(100):
        with socket.create_server(("127.0.0.1", 0)) as found:
            first: int = found.getsockname()[1]
        try:
            for port in range(first, first + 3):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return first
    pytest.fail("no three free ports in a row")


@pytest.mark.parametrize("more", range(3), ids=WHOSE)
def test_a_start_is_refused_where_a_port_of_metrics_is_anothers(tmp_path: Path, more: int) -> None:
    metrics_port = three_in_a_row()
    settings = load_settings({}, data=tmp_path / "data", metrics_port=metrics_port, port=0, router_port=0)
    initialise(settings)
    told = f"127.0.0.1:{metrics_port + more} cannot be used: Address already in use; choose another with LICET_METRICS_PORT"
    with socket.create_server(("127.0.0.1", metrics_port + more)):
        supervisor = Supervisor(settings)
        try:
            with pytest.raises(ConfigurationError, match=re.escape(told)) as refused:
                supervisor.start()
        finally:
            supervisor.stop()
    assert str(refused.value).endswith(f"this one is for metrics of the {WHOSE[more]}")
    # Nothing of it is left, so it can be started as soon as the port is free.
    assert not is_served(settings.data)
