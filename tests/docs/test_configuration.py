"""The configuration page is complete and true, both ways: every setting stands in it, and nothing else does."""

import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from licet_engine.commands.doctor import _CLIENT_VARIABLES
from licet_engine.settings import PREFIX, Settings, load_settings

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text("utf-8")
SERVICE, CLIENT = PAGE.split("## The command line and the client")
ROWS = {
    name: (default.strip("`"), unit, told)
    for name, default, unit, told in re.findall(r"^\| `(\w+)` \| ([^|]+) \| (\w+) \| (.+) \|$", SERVICE, re.MULTILINE)
}
UNIT_OF_ENDING = {"_s": "seconds", "_bytes": "bytes"}


def variable(name: str) -> str:
    return PREFIX + name.upper()


def test_the_settings_on_the_page_are_the_settings_there_are_in_their_order() -> None:
    assert list(ROWS) == [variable(field.name) for field in fields(Settings)]


@pytest.mark.parametrize("name", [field.name for field in fields(Settings)])
def test_the_default_on_the_page_is_the_default(name: str) -> None:
    default = str(getattr(Settings(), name))
    assert ROWS[variable(name)][0] == (default or "(empty)")


@pytest.mark.parametrize("name", [field.name for field in fields(Settings)])
def test_the_unit_on_the_page_is_the_one_in_the_name(name: str) -> None:
    unit = next((unit for ending, unit in UNIT_OF_ENDING.items() if name.endswith(ending)), None)
    found = ROWS[variable(name)][1]
    assert found == unit if unit else found not in UNIT_OF_ENDING.values()


def test_the_defaults_on_the_page_can_be_set_and_make_the_default_settings() -> None:
    environment = {name: "" if default == "(empty)" else default for name, (default, _, _) in ROWS.items()}
    # The folder is made absolute where the settings are read.
    default = Settings()
    assert load_settings(environment) == replace(default, data=default.data.absolute())


def test_the_variables_of_the_command_line_are_those_that_it_knows() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", CLIENT, re.MULTILINE)) == _CLIENT_VARIABLES


def test_no_other_variable_is_named_anywhere_on_the_page() -> None:
    assert set(re.findall(r"LICET_[A-Z0-9_]*[A-Z]", PAGE)) == set(ROWS) | _CLIENT_VARIABLES


def test_there_is_no_setting_that_nothing_reads() -> None:
    engine = Path(__file__).parents[2] / "engine" / "licet_engine"
    code = "\n".join(path.read_text("utf-8") for path in engine.rglob("*.py") if path.name != "settings.py")
    # What adapters are configured with is handed to them as a mapping, and read there by its name.
    adapters = Path(__file__).parents[2] / "adapters" / "licet_adapters"
    code += "\n".join(path.read_text("utf-8") for path in adapters.rglob("*.py"))
    derived = {"adapters": "adapter_names", "devices": "device_uuids", "public_url": "base_url"}
    unread = {
        variable(field.name)
        for field in fields(Settings)
        if not re.search(rf"settings\.{derived.get(field.name, field.name)}\b", code)
        and f'option("{field.name}"' not in code
    }
    assert not unread
