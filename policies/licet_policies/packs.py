"""Packs: sets of policies with typed parameters, such as ``sr-11-7``.

Rules kept:

- A parameter is an integer within bounds, or a set of words from a list or of a pattern. Anything else is refused,
  and so is a name the pack does not declare.
- A pack's text reads a parameter as ``context.parameters.<name>``, which is Cedar and reads as such in any editor. It
  is replaced by a literal of the parameter's type. A literal holds digits, or quoted words of ``[a-z0-9-]``, so no
  value can add to the policy's text: there is nothing to escape.
- A pack only forbids. What it says can narrow what the platform permits, never widen it.
- What a pack promises stands beside it as invariants: permits that name requests which must never (or always) be allowed
  while it is enforced. They are read by what proves them, decide nothing, and are in no bundle.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Final, Literal

from licet_policies.errors import PackError
from licet_policies.source import Policy, parse_policies

__all__ = ["ControlText", "Mode", "Pack", "PackChoice", "pack", "pack_names"]

Mode = Literal["enforce", "observe"]
ParameterValue = int | list[str]

_PLACEHOLDER: Final = re.compile(r"\bcontext\.parameters\.([a-z][a-z0-9_]*)")
_WORD: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_MAX_WORDS: Final = 100


@dataclass(frozen=True)
class PackChoice:
    """A tenant's choice of one pack.

    Attributes:
        name: Name of the pack.
        mode: ``enforce``, or ``observe`` to record what it would have forbidden and forbid nothing.
        parameters: Those that differ from the defaults.
    """

    name: str
    mode: Mode = "enforce"
    parameters: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class ControlText:
    """What is said of one clause of a framework.

    Attributes:
        title: What the clause is about, in our words.
        evidence: What a tenant can show for it.
        also: Ids of the platform's policies that serve it as well, though they do not name it.
    """

    title: str
    evidence: str
    also: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "ControlText":
        """Read the entry of a table of clauses."""
        return cls(body["title"], body["evidence"], tuple(body.get("also", ())))


@dataclass(frozen=True)
class Pack:
    """A pack as shipped.

    Attributes:
        name: Its name, and the first word of its policies' ids.
        version: Of its rules and parameters.
        title: What it is for, in one line.
        framework: The document whose clauses its policies name in ``@control``.
        parameters: Declaration of each parameter, by name.
        text: Its policies, with placeholders.
        controls: What is said of each clause that it speaks of, in the order of the framework.
        invariants_text: Its invariants, with placeholders.
    """

    name: str
    version: str
    title: str
    framework: str
    parameters: Mapping[str, Mapping[str, Any]]
    text: str
    controls: Mapping[str, ControlText] = field(default_factory=dict)
    invariants_text: str = ""

    def resolve(self, given: Mapping[str, object]) -> dict[str, ParameterValue]:
        """Check ``given`` and fill in defaults.

        Returns:
            Every parameter of the pack; a set as a sorted list.

        Raises:
            PackError: An unknown name, a wrong type, a value out of bounds, or a missing value without default.
        """
        unknown = sorted(str(name) for name in given if name not in self.parameters)
        if unknown:
            raise PackError(
                f"pack {self.name}: no parameter is called {', '.join(unknown)}; it has {', '.join(self.parameters)}"
            )
        resolved: dict[str, ParameterValue] = {}
        for name, declared in self.parameters.items():
            if name not in given and "default" not in declared:
                raise PackError(f"pack {self.name}: parameter {name} must be given: {declared['title']}")
            resolved[name] = self.check(name, given[name] if name in given else declared["default"])
        return resolved

    def check(self, name: str, value: object) -> ParameterValue:
        """Check the value of one parameter that the pack has.

        Returns:
            The value; a set as a sorted list.

        Raises:
            PackError: A wrong type, or a value out of bounds.
        """
        return _check(f"pack {self.name}: parameter {name}", self.parameters[name], value)

    def policies(self, parameters: Mapping[str, ParameterValue]) -> tuple[Policy, ...]:
        """Give the pack's policies with ``parameters``, as ``resolve`` returned them, put in as literals."""
        return parse_policies(_filled(self.text, parameters), f"pack:{self.name}")

    def invariants(self, parameters: Mapping[str, ParameterValue]) -> tuple[Policy, ...]:
        """Give the pack's invariants with ``parameters``, as ``resolve`` returned them, put in as literals.

        Returns:
            Permits: scope and conditions of one annotated ``@never`` describe requests that must never be allowed while
            the pack is enforced with these parameters; of one annotated ``@always``, requests that must be.
        """
        return parse_policies(_filled(self.invariants_text, parameters), f"invariant:{self.name}")


def pack_names() -> tuple[str, ...]:
    """Give the names of the packs that are shipped, sorted."""
    folder = resources.files("licet_policies").joinpath("packs")
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.joinpath("pack.json").is_file()))


def pack(name: str) -> Pack:
    """Load the pack called ``name``.

    Raises:
        PackError: No such pack.
    """
    # The name is compared, never joined to a path before it is known.
    if name not in pack_names():
        raise PackError(f"no pack is called {name!r}; there are {', '.join(pack_names())}")
    return _load(name)


@cache
def _load(name: str) -> Pack:
    folder = resources.files("licet_policies").joinpath("packs", name)
    meta = json.loads(folder.joinpath("pack.json").read_text("utf-8"))
    text = "\n".join(folder.joinpath(file).read_text("utf-8") for file in meta["files"])
    read, declared = set(_PLACEHOLDER.findall(text)), set(meta["parameters"])
    if read != declared:
        raise PackError(f"pack {name}: declared and read parameters differ: {', '.join(sorted(read ^ declared))}")
    invariants = folder.joinpath(meta["invariants"]).read_text("utf-8") if "invariants" in meta else ""
    if undeclared := set(_PLACEHOLDER.findall(invariants)) - declared:
        raise PackError(f"pack {name}: its invariants read parameters it lacks: {', '.join(sorted(undeclared))}")
    controls = {clause: ControlText.from_json(body) for clause, body in meta.get("controls", {}).items()}
    return Pack(name, meta["version"], meta["title"], meta["framework"], meta["parameters"], text, controls, invariants)


def _filled(text: str, parameters: Mapping[str, ParameterValue]) -> str:
    return _PLACEHOLDER.sub(lambda match: _literal(parameters[match.group(1)]), text)


def _check(where: str, declared: Mapping[str, Any], value: object) -> ParameterValue:
    if declared["type"] == "integer":
        # A Python bool is an int; a JSON true is not a number.
        if not isinstance(value, int) or isinstance(value, bool):
            raise PackError(f"{where}: expected an integer, found {value!r:.60}")
        if not declared["minimum"] <= value <= declared["maximum"]:
            raise PackError(f"{where}: {value} lies outside {declared['minimum']} to {declared['maximum']}")
        return value
    if not isinstance(value, list | tuple | set | frozenset):
        name = where.removeprefix("pack ").replace(": parameter ", ".")
        form = f'["{value}"]' if isinstance(value, str) and _WORD.fullmatch(value) else '["WORD","WORD"]'
        raise PackError(f"{where}: expected a list of words, found {value!r:.60}: write {name}={form}")
    return _check_words(where, declared, value)


def _check_words(where: str, declared: Mapping[str, Any], value: Iterable[object]) -> list[str]:
    words: list[str] = []
    for word in value:
        if not isinstance(word, str) or not _WORD.fullmatch(word):
            raise PackError(f"{where}: expected words of a-z, 0-9 and -, found {word!r:.60}")
        if "enum" in declared and word not in declared["enum"]:
            raise PackError(f"{where}: {word!r} is none of {', '.join(declared['enum'])}")
        if "pattern" in declared and not re.fullmatch(declared["pattern"], word):
            raise PackError(f"{where}: {word!r} does not match {declared['pattern']}")
        words.append(word)
    # Cedar gives the empty set no type; a rule that shall apply to nothing says so with the word `none`.
    if not words or len(words) > _MAX_WORDS or len(set(words)) != len(words):
        raise PackError(f"{where}: expected 1 to {_MAX_WORDS} different words, found {len(words)}")
    return sorted(words)


def _literal(value: ParameterValue) -> str:
    if isinstance(value, int):
        return str(value)
    return "[" + ", ".join(f'"{word}"' for word in value) + "]"
