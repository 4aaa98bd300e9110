"""An installation is made in a folder of its own, and nothing alarming is said while it is made."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from licet_engine.domain.errors import ConfigurationError
from licet_engine.init import initialise
from licet_engine.settings import load_settings

if TYPE_CHECKING:
    from pathlib import Path


def test_a_folder_in_which_something_else_lies_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    mode = tmp_path.stat().st_mode
    with pytest.raises(ConfigurationError, match=r"is not empty: 'letters' lies in it; name a new folder with --data"):
        initialise(load_settings({}, data=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["letters"]
    assert tmp_path.stat().st_mode == mode


def test_an_empty_folder_is_taken_and_the_person_is_told_of_no_warnings(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LICET_")}
    command = [sys.executable, "-m", "licet_engine.cli", "init", "--data", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "operator's token" in ran.stdout


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "http://127.0.0.1:8000"),
        ({"host": "::1", "port": 9000}, "http://[::1]:9000"),
        ({"host": "192.0.2.1", "public_url": "https://licet.example/"}, "https://licet.example"),
    ],
)
def test_the_service_says_the_address_that_was_configured(given: dict[str, object], told: str) -> None:
    assert load_settings({}, **given).base_url == told


def test_a_public_address_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="LICET_PUBLIC_URL"):
        load_settings({}, public_url="licet.example")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"adapters": "local-objects,local-registry,local-training"}, "does not allow local-checks, local-serving"),
        (
            {"objects_adapter": "s3-objects"},
            "LICET_OBJECTS_ADAPTER is 's3-objects', which LICET_ADAPTERS does not allow",
        ),
    ],
)
def test_an_adapter_without_which_there_is_no_service_is_missed_before_anything_starts(
    given: dict[str, str], told: str
) -> None:
    with pytest.raises(ConfigurationError, match=told):
        load_settings({}, **given)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"LICET_ROUTER_PORT": "8000"}, "port 8000 is both LICET_PORT and LICET_ROUTER_PORT"),
        ({"LICET_METRICS_PORT": "7999"}, "port 8000 is both LICET_PORT and metrics of the worker"),
        (
            {"LICET_METRICS_PORT": "7999", "LICET_PORT": "8100"},
            "port 8001 is both LICET_ROUTER_PORT and metrics of the router",
        ),
        ({"LICET_TICKETS": "file-tickets"}, "LICET_ADAPTERS does not allow"),
        (
            {"LICET_PROVE_EVERY_S": "-1"},
            "LICET_PROVE_EVERY_S must be 0 for never, or a whole number of seconds, not -1",
        ),
        ({"LICET_PROBE_EVERY_S": "59"}, "LICET_PROBE_EVERY_S must be 0 or at least 60, not 59"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_before_anything_starts(
    variables: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        load_settings(variables)


def test_ports_that_the_system_chooses_do_not_collide() -> None:
    assert load_settings({"LICET_PORT": "0", "LICET_ROUTER_PORT": "0"}).port == 0
