"""What is named anywhere in policies, as Cedar's JSON form has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def parts(value: Any) -> Iterator[Any]:
    """Every part of a value, itself and its leaves among them, but no keys."""
    pending = [value]
    while pending:
        part = pending.pop()
        yield part
        if isinstance(part, Mapping):
            pending.extend(part.values())
        elif isinstance(part, list | tuple):
            pending.extend(part)


def entities_named(value: Any) -> set[tuple[str, str]]:
    """Type and id of every entity that is named."""
    return {
        (part["type"], part["id"])
        for part in parts(value)
        if isinstance(part, Mapping)
        and part.keys() == {"type", "id"}
        and all(isinstance(word, str) for word in part.values())
    }


def texts(value: Any) -> frozenset[str]:
    """Every text that is mentioned."""
    return frozenset(part for part in parts(value) if isinstance(part, str))
