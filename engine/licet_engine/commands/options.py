"""Types of arguments and options."""

from __future__ import annotations

import datetime as dt
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")

_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)(s|m|h|d)?")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_MAX_FILE_BYTES = 8 << 20


class Folder(click.Path):
    """A folder. The empty text is none: it would be the one where the command runs."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See ``click.ParamType``."""
        if value == "":
            self.fail("the name is empty: name a folder, or . for the one where you are", param, ctx)
        return super().convert(value, param, ctx)


class Moment(click.ParamType[int]):
    """A date, or a date and time, in UTC unless it names an offset; as milliseconds since the epoch."""

    name = "DATE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """See ``click.ParamType``."""
        if isinstance(value, int):
            return value
        try:
            moment = dt.datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a date: write it as 2030-01-01 or 2030-01-01T12:00:00Z", param, ctx)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=dt.UTC)
        return int(moment.timestamp() * 1000)


class Seconds(click.ParamType[float]):
    """A length of time such as ``90``, ``90s``, ``15m``, ``12h`` or ``30d``; in seconds."""

    name = "DURATION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """See ``click.ParamType``."""
        if isinstance(value, (int, float)):
            return value
        match = _DURATION.fullmatch(value)
        if match is None:
            self.fail(f"{value!r} is not a length of time: write it as 90s, 15m, 12h or 30d", param, ctx)
        return float(match[1]) * _UNIT_S[match[2] or "s"]


class Pair(click.ParamType[tuple[str, str]]):
    """``NAME=VALUE``, the value as text."""

    name = "NAME=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """See ``click.ParamType``."""
        if isinstance(value, tuple):
            return value
        name, equals, text = value.partition("=")
        if not name or not equals:
            self.fail(f"{value!r} is not of the form NAME=VALUE", param, ctx)
        return name, text


class JsonPair(click.ParamType[tuple[str, Any]]):
    """``NAME=VALUE``, the value as JSON, or as text where it is no JSON."""

    name = "NAME=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        """See ``click.ParamType``."""
        if isinstance(value, tuple):
            return value
        name, text = PAIR.convert(value, param, ctx)
        try:
            return name, json.loads(text)
        except ValueError:
            return name, text


class ColumnPair(click.ParamType[tuple[str, str]]):
    """``NAME=number`` or ``NAME=yes-no``: how a column of a table is written."""

    name = "NAME=number|yes-no"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """See ``click.ParamType``."""
        if isinstance(value, tuple):
            return value
        # The name may hold the sign itself; how the column is written cannot.
        name, equals, kind = value.rpartition("=")
        if not name or not equals:
            self.fail(f"{value!r} is not of the form NAME=number or NAME=yes-no", param, ctx)
        return self.checked(name, kind)

    def checked(self, name: str, kind: object, option: str = "--column") -> tuple[str, str]:
        """A column and how it is written.

        Raises:
            click.BadParameter: It can be written in no such way.
        """
        if not isinstance(kind, str) or kind not in {"number", "yes-no"}:
            raise click.BadParameter(
                f"column {name!r}: {kind!r} is not a way to write it; it is number or yes-no", param_hint=option
            )
        return name, kind


class Reference(click.ParamType[str]):
    """``TENANT/NAME``: whatever is named is named with its tenant."""

    name = "TENANT/NAME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """See ``click.ParamType``."""
        text = str(value)
        tenant, slash, name = text.partition("/")
        if not slash or not tenant or not name:
            self.fail(f"{text!r} names no tenant: write TENANT/NAME, such as northbank/{name or text}", param, ctx)
        return text


class Indices(click.ParamType[range]):
    """Entries of a log by index: ``12``, or ``20-29`` with both ends."""

    name = "index"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> range:
        """Read one index or a range of them."""
        if isinstance(value, range):
            return value
        first, dash, last = str(value).partition("-")
        numbers = [first, last] if dash else [first, first]
        if not all(number.isascii() and number.isdigit() and len(number) <= _MAX_INDEX_CHARS for number in numbers):
            self.fail(f"{value!r} is neither an index such as 12 nor a range such as 20-29", param, ctx)
        found = range(int(numbers[0]), int(numbers[1]) + 1)
        if not found:
            self.fail(f"{value!r} ends before it begins", param, ctx)
        return found


FOLDER = Folder(path_type=Path)
INDICES = Indices()
MAX_ERASED = 100
"""Records that are erased at once."""
_MAX_INDEX_CHARS = 15
MOMENT = Moment()
REFERENCE = Reference()
SECONDS = Seconds()
PAIR = Pair()
CLAIM = PAIR
JSON_PAIR = JsonPair()
COLUMN = ColumnPair()


def words(values: tuple[str, ...]) -> list[str]:
    """Values of an option that may be repeated, or hold several with commas between; each once, in their order."""
    return list(dict.fromkeys(word.strip() for value in values for word in value.split(",") if word.strip()))


def read_json_object(path: Path, option: str) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Raises:
        click.BadParameter: It does not.
    """
    text = read_text(path, option)
    try:
        value = json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"{path} is not JSON: {error}", param_hint=option) from error
    if not isinstance(value, dict):
        raise click.BadParameter(f"{path} does not hold a JSON object", param_hint=option)
    return value


def read_text(path: Path, option: str) -> str:
    """Read a text file.

    Raises:
        click.BadParameter: It is too large, or not UTF-8.
    """
    with path.open("rb") as file:
        data = file.read(_MAX_FILE_BYTES + 1)
    if len(data) > _MAX_FILE_BYTES:
        raise click.BadParameter(f"{path} is over {_MAX_FILE_BYTES >> 20} MiB", param_hint=option)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise click.BadParameter(f"{path} is not UTF-8 text (byte {error.start})", param_hint=option) from error


def format_option(*known: str) -> Callable[[F], F]:
    """``--format``, with what there is beside text for people."""
    return click.option(
        "--format",
        "format_",
        type=click.Choice(["text", *known]),
        default="text",
        show_default=True,
        help="How to answer: text for people, the others for a CI.",
    )
