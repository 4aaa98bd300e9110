"""Text for terminals. Whatever came from elsewhere is cleaned: it may not steer the terminal."""

from __future__ import annotations

import datetime as dt
import shutil
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import click

_DIGEST_CHARS = 64
_SHORT_DIGEST_CHARS = 16
_NARROWEST, _WIDEST = 60, 116
_MICRO = 1_000_000


def clean(text: object, *, lines: bool = False) -> str:
    """Text without control characters, escape sequences and marks that reverse the direction of writing."""
    kept = []
    for char in str(text):
        if char == "\n" and lines:
            kept.append(char)
        elif unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp"}:
            kept.append(" " if char in "\n\t\r\u2028\u2029" else "\ufffd")
        else:
            kept.append(char)
    return "".join(kept)


def width() -> int:
    """Columns to write in."""
    return max(_NARROWEST, min(shutil.get_terminal_size((100, 24)).columns, _WIDEST))


def labelled(label: str, text: object, *, indent: int = 0, label_chars: int = 9) -> str:
    """``label  text``, wrapped under itself."""
    head = " " * indent + f"{label:<{label_chars}}"
    if len(label) >= label_chars:
        head += "  "
    return textwrap.fill(
        clean(text),
        width=width(),
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )


def time_text(time_ms: int) -> str:
    """A moment, in UTC."""
    try:
        moment = dt.datetime.fromtimestamp(time_ms / 1000, dt.UTC)
    except (OverflowError, ValueError, OSError):
        return str(time_ms)
    return moment.strftime("%Y-%m-%d %H:%M:%SZ")


def request_lines(shown: Sequence[Sequence[str]], *, indent: int = 0) -> list[str]:
    """The request that refutes a property: who, what, on what, and what the policies that decided read of it."""
    return [labelled(clean(label), text, indent=indent, label_chars=11) for label, text in shown]


def micro_text(micro: int) -> str:
    """Millionths as a decimal."""
    sign = "-" if micro < 0 else ""
    whole, rest = divmod(abs(micro), _MICRO)
    return f"{sign}{whole}.{rest:06d}".rstrip("0").rstrip(".")


def value_text(name: str, value: Any, *, short: bool = False) -> str:
    """A value as its name says it is: a time, a fraction in millionths, a digest."""
    match value:
        case None | "":
            text = "-"
        case bool():
            text = "yes" if value else "no"
        case int() if name.endswith("_ms"):
            text = time_text(value)
        case int() if name.endswith("_micro"):
            text = micro_text(value)
        case str():
            is_digest = len(value) == _DIGEST_CHARS and all(c in "0123456789abcdef" for c in value)
            text = value[:_SHORT_DIGEST_CHARS] if short and is_digest else clean(value)
        case Mapping():
            named = ((clean(title_of(str(k))), member_name(name, k), v) for k, v in value.items())
            text = ", ".join(f"{title}={value_text(k, v, short=short)}" for title, k, v in named) or "-"
        case Sequence():
            text = ", ".join(value_text(name, item, short=short) for item in value) or "-"
        case _:
            text = clean(value)
    return text


def title_of(name: str) -> str:
    """A field's name as a heading: without its unit."""
    for unit in ("_ms", "_micro", "_hex", "_bytes"):
        if name.endswith(unit):
            return name.removesuffix(unit) if unit != "_bytes" else name
    return name


def member_name(name: str, member: object) -> str:
    """The name of a member with the unit that its mapping bears for all: ``loss`` in ``values_micro`` is in millionths."""
    return f"{member}_micro" if name.endswith("_micro") and not str(member).endswith("_micro") else str(member)


def block(value: Mapping[str, Any], *, indent: int = 0) -> list[str]:
    """A mapping, a line for each field; mappings and lists of mappings are indented below."""
    lines: list[str] = []
    plain = [clean(title_of(str(k))) for k, v in value.items() if not _is_deep(v)]
    label_chars = min(max((len(name) for name in plain), default=0) + 2, 30)
    for name, item in value.items():
        title = clean(title_of(str(name)))
        if not _is_deep(item):
            lines.append(labelled(title, value_text(str(name), item), indent=indent, label_chars=label_chars))
        elif isinstance(item, Mapping):
            lines.append(" " * indent + title + ":")
            lines += block({member_name(str(name), k): v for k, v in item.items()}, indent=indent + 2)
        else:
            lines.append(" " * indent + title + ":")
            for part in item:
                lines += _bullet(part, indent + 2)
    return lines


def _is_deep(value: Any) -> bool:
    if isinstance(value, Mapping):
        return bool(value)
    return isinstance(value, list) and any(isinstance(item, (Mapping, list)) for item in value)


def _bullet(value: Any, indent: int) -> list[str]:
    if not isinstance(value, Mapping):
        return [" " * indent + "- " + value_text("", value)]
    lines = block(value, indent=indent + 2)
    lines[0] = " " * indent + "- " + lines[0][indent + 2 :]
    return lines


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[str]:
    """Rows under headings, columns as wide as they need to be."""
    cells = [[value_text(name, row.get(name), short=True) for name in columns] for row in rows]
    heads = [title_of(name).replace("_", " ").upper() for name in columns]
    widths = [max(len(head), *(len(row[i]) for row in cells)) if cells else len(head) for i, head in enumerate(heads)]
    lines = ["  ".join(head.ljust(w) for head, w in zip(heads, widths, strict=True)).rstrip()]
    lines += ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in cells]
    return lines


def verdict(*, allowed: bool, pending: bool = False) -> str:
    """The one word of an answer."""
    if allowed:
        return click.style("allowed", fg="green", bold=True)
    return click.style("not yet" if pending else "denied", fg="yellow" if pending else "red", bold=True)
