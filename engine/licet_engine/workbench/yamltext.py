"""YAML, as far as a test needs it, with the place of every value.

Rules kept here:

- Plain data alone: no tags, no types but text, integers, booleans, null, lists and mappings. What is no integer or boolean by YAML 1.2's
  core schema is text (``no`` and ``2026-01-01`` are); a fraction is refused, since Cedar has none.
- A text is bounded, and so are its depth and its values, counting those behind an alias each time it stands somewhere: a few lines
  cannot stand for millions of values.
- A key stands once, and is text; ``<<`` is refused. What would be read in two ways is not read.

The events are PyYAML's; nothing is constructed by it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import yaml

from licet_engine.workbench.errors import ProjectError

MAX_DEPTH: Final = 24
MAX_VALUES: Final = 50_000

_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INTEGER: Final = re.compile(r"[-+]?[0-9]+")
_MAX_DIGITS: Final = 20
_FRACTION: Final = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_WORDS: Final = {"": None, "~": None, "null": None, "Null": None, "NULL": None} | {
    text: text.lower() == "true" for text in ("true", "True", "TRUE", "false", "False", "FALSE")
}


@dataclass(frozen=True, slots=True)
class Node:
    """One value.

    Attributes:
        value: A text, number, boolean or None; of a list or mapping, the nodes in it.
        line: Where it begins, from 1.
        column: Where it begins, from 1, in characters.
        size: How many values it holds, itself among them.
    """

    value: Any
    line: int
    column: int
    size: int

    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def at(self, keys: Sequence[str | int]) -> Node:
        """The node at a path, or the last on the way to it."""
        node = self
        for key in keys:
            inside = node.value
            if isinstance(inside, dict) and key in inside:
                node = inside[str(key)]
            elif isinstance(inside, list) and isinstance(key, int) and key < len(inside):
                node = inside[key]
            else:
                break
        return node


def read_yaml(name: str, text: str) -> Node:
    """Read one YAML document.

    Args:
        name: The file, for messages.
        text: What it holds.

    Raises:
        ProjectError: It is no YAML, empty, out of bounds, or uses what is not read.
    """
    composer = _Composer(name)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            composer.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        told = ", ".join(str(part) for part in (error.context, error.problem) if part)
        raise ProjectError(f"is not YAML: {told}", file=name, line=None if mark is None else mark.line + 1) from error
    except yaml.YAMLError as error:
        raise ProjectError(f"is not YAML: {str(error).splitlines()[0]}", file=name) from error
    if composer.root is None or composer.root.value is None:
        raise ProjectError("is empty: write what it is for, or take it away", file=name, line=1)
    return composer.root


class _Open:
    """A list or mapping that is being read."""

    def __init__(self, event: Any, *, is_mapping: bool) -> None:
        self.mark = event.start_mark
        self.anchor = event.anchor
        self.is_mapping = is_mapping
        self.items: list[Node] = []
        self.members: dict[str, Node] = {}
        self.key: str | None = None
        self.size = 1


class _Composer:
    """Makes nodes of events, and calls nothing twice."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._open: list[_Open] = []
        self._anchors: dict[str, Node] = {}
        self.root: Node | None = None

    def take(self, event: Any) -> None:
        """Take the next event."""
        if getattr(event, "tag", None) is not None:
            self._fail(event, "tags such as `!!` are not read: write plain values")
        if isinstance(event, yaml.AliasEvent):
            node = self._anchors.get(event.anchor)
            if node is None:
                self._fail(event, f"*{event.anchor} stands for nothing that ended before it")
            self._add(node, event)
        elif isinstance(event, yaml.ScalarEvent):
            self._scalar(event)
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            self._begin(event)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            self._end(event)
        elif isinstance(event, yaml.DocumentStartEvent) and self.root is not None:
            self._fail(event, "holds a second document: write it into a file of its own")

    def _scalar(self, event: Any) -> None:
        if self._open and self._open[-1].is_mapping and self._open[-1].key is None:
            if event.value == "<<":
                self._fail(event, "`<<` is not read: write the members out")
            if event.value in self._open[-1].members:
                self._fail(event, f"{event.value[:60]!r} stands here twice: write it once")
            self._open[-1].key = event.value
            return
        mark = event.start_mark
        node = Node(self._value(event), mark.line + 1, mark.column + 1, 1)
        self._remember(event.anchor, node)
        self._add(node, event)

    def _value(self, event: Any) -> Any:
        text: str = event.value
        # Only what stands without quotes can be anything but text.
        if event.style is not None and event.style != "":
            return text
        if text in _WORDS:
            return _WORDS[text]
        if _INTEGER.fullmatch(text):
            if len(text) > _MAX_DIGITS:
                self._fail(event, "an integer of more digits than Cedar's have: quote it if it is a text")
            return int(text)
        if _FRACTION.fullmatch(text):
            self._fail(event, f"{text[:60]} is a fraction, which Cedar has none of: quote it if it is a text")
        return text

    def _begin(self, event: Any) -> None:
        if self._open and self._open[-1].is_mapping and self._open[-1].key is None:
            self._fail(event, "a key is a text")
        if len(self._open) >= MAX_DEPTH:
            self._fail(event, f"lies more than {MAX_DEPTH} levels deep")
        self._open.append(_Open(event, is_mapping=isinstance(event, yaml.MappingStartEvent)))

    def _end(self, event: Any) -> None:
        done = self._open.pop()
        value: Any = done.members if done.is_mapping else done.items
        node = Node(value, done.mark.line + 1, done.mark.column + 1, done.size)
        self._remember(done.anchor, node)
        self._add(node, event)

    def _remember(self, anchor: str | None, node: Node) -> None:
        if anchor is not None:
            self._anchors[anchor] = node

    def _add(self, node: Node, event: Any) -> None:
        if not self._open:
            self.root = node
            return
        inside = self._open[-1]
        inside.size += node.size
        if inside.size > MAX_VALUES:
            self._fail(event, f"holds more than {MAX_VALUES} values, aliases written out: divide it")
        if not inside.is_mapping:
            inside.items.append(node)
            return
        if inside.key is None:
            self._fail(event, "a key is a text")
        inside.members[inside.key] = node
        inside.key = None

    def _fail(self, event: Any, message: str) -> NoReturn:
        raise ProjectError(message, file=self._name, line=event.start_mark.line + 1)
