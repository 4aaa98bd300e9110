"""Cedar's strict validation, with positions.

Rules kept here:

- Cedar alone says what is wrong. Where it is wrong is found by asking it again: about the scope alone, then with one more part of
  the conditions each time. What it says first of a beginning is wrong in the part that was added. So what an earlier part
  guards (``has``) stays guarded, and a part is never blamed for another's mistake.
- Within the part, the word that Cedar names is pointed at, if it stands there.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import cedarpy

from licet_engine.decide.conjuncts import clauses
from licet_engine.decide.source import expression_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from licet_engine.workbench.checked import CheckedPolicy
    from licet_engine.workbench.spans import Range, Span
    from licet_policies.tokens import Token

_MAX_LOCATED: Final = 200
"""Policies whose findings are followed to a part; those after it are pointed at as wholes."""
_MAX_STEPS: Final = 100
_ABOUT: Final = re.compile(r"^for policy `[^`]*`, ")
_NAMED: Final = re.compile(r"`([^`]+)`")
_ON_TYPE: Final = re.compile(r"^attribute `([^`]+)` on entity type `([^`]+)` not found")
_IN_CONTEXT: Final = re.compile(r'^attribute `([^`]+)` in context for (?:(.+)::)?Action::"([^"]+)" not found')
_UNKNOWN: Final = re.compile(r"^unrecognized (entity type|action) `([^`]+)`")


class Mismatch(NamedTuple):
    """Something that does not fit the schema."""

    policy: CheckedPolicy
    span: Span
    message: str


def mismatches(policies: Sequence[CheckedPolicy], schema: cedarpy.Schema, names: Mapping[str, Any]) -> list[Mismatch]:
    """Everything in which policies do not fit a schema.

    Args:
        policies: Such as parse.
        schema: Cedar's handle.
        names: The same schema in Cedar's JSON format: what a misspelt word may have meant.
    """
    said = _validate([policy.written.text for policy in policies], schema)
    wrong = [(policies[number], messages) for number, messages in sorted(said.items())]
    found: list[Mismatch] = []
    for number, (policy, messages) in enumerate(wrong):
        if number < _MAX_LOCATED:
            found += _located(policy, messages, schema, names)
        else:
            found += [Mismatch(policy, policy.written.span(), message) for message in sorted(messages)]
    return found


def _validate(texts: Sequence[str], schema: cedarpy.Schema) -> dict[int, Counter[str]]:
    """What Cedar says of each policy, by its number."""
    found: dict[int, Counter[str]] = {}
    if not texts:
        return found
    result = cedarpy.validate_policies("\n".join(texts), schema)
    for error in result.errors:
        number = int(error.policy_id.removeprefix("policy"))
        found.setdefault(number, Counter())[_ABOUT.sub("", error.error).replace("\n", " ")] += 1
    return found


def _located(
    policy: CheckedPolicy, messages: Counter[str], schema: cedarpy.Schema, names: Mapping[str, Any]
) -> Iterator[Mismatch]:
    places = [_scope(policy), *(part for clause in policy.written.clauses for part in clause.parts)]
    texts = list(_beginnings(policy))
    left = messages.copy()
    if len(texts) == len(places):
        said = _validate(texts, schema)
        before: Counter[str] = Counter()
        for number, place in enumerate(places):
            now = said.get(number, Counter())
            for message in sorted(((now - before) & left).elements()):
                left[message] -= 1
                yield Mismatch(policy, policy.written.span(_word(place, message)), message + _meant(message, names))
            before = now
    for message in sorted((+left).elements()):
        yield Mismatch(policy, policy.written.span(), message + _meant(message, names))


def _scope(policy: CheckedPolicy) -> Range:
    return policy.written.scope or policy.written.where


def _beginnings(policy: CheckedPolicy) -> Iterator[str]:
    """The policy with no part of its conditions, with the first, with the first two, and so on."""
    scope = _scope(policy)
    head = f"{policy.effect} {policy.written.file.text[scope.begin : scope.end]}"
    yield f"{head};"
    for clause in clauses(policy.ast):
        joiner = " && " if clause.joiner == "and" else " || "
        for count in range(1, len(clause.parts) + 1):
            # A part may bind looser than what joins it, so each stands in brackets.
            inner = joiner.join(f"({expression_text(part)})" for part in clause.parts[:count])
            yield f"{head} {clause.kind} {{ {inner} }};"
        inner = joiner.join(f"({expression_text(part)})" for part in clause.parts)
        head += f" {clause.kind} {{ {inner} }}"


def _word(place: Range, message: str) -> Token | Range:
    """The token in a place that a message names, or all of the place."""
    for name in _NAMED.findall(message):
        wanted = name.rpartition("::")[2].strip('"') if "::" in name else name.rpartition(".")[2]
        for token in place.tokens:
            if token.text.strip('"') == wanted:
                return token
    return place


def _meant(message: str, names: Mapping[str, Any]) -> str:
    """What a word that the schema does not know may have meant."""
    if match := _ON_TYPE.match(message):
        space, _, kind = match[2].rpartition("::")
        return _closest_path(
            match[1], names.get(space, {}).get("entityTypes", {}).get(kind, {}).get("shape", {}), names
        )
    if match := _IN_CONTEXT.match(message):
        action = names.get(match[2] or "", {}).get("actions", {}).get(match[3], {})
        return _closest_path(match[1], action.get("appliesTo", {}).get("context", {}), names, "context.")
    if match := _UNKNOWN.match(message):
        kinds = "entityTypes" if match[1] == "entity type" else "actions"
        known = (name for space in names.values() for name in space.get(kinds, ()))
        return _closest(match[2].rpartition("::")[2].strip('"'), known)
    return ""


def _closest_path(path: str, shape: Mapping[str, Any], names: Mapping[str, Any], before: str = "") -> str:
    """What the last step of a path through records may have meant."""
    *above, last = path.split(".")
    for step in above:
        shape = _record(shape, names).get(step, {})
    lead = before + "".join(f"{step}." for step in above)
    found = difflib.get_close_matches(last, list(_record(shape, names)), n=1)
    return f"; did you mean `{lead}{found[0]}`?" if found else ""


def _record(shape: Mapping[str, Any], names: Mapping[str, Any]) -> Mapping[str, Any]:
    """The attributes of a record, through the names of common types; none where it is no record."""
    # A schema has no circle of common types; so many steps lead through any that Cedar takes.
    for _ in range(_MAX_STEPS):
        if "attributes" in shape:
            attributes: Mapping[str, Any] = shape["attributes"]
            return attributes
        space, _, name = str(shape.get("name", shape.get("type", ""))).rpartition("::")
        shape = names.get(space, {}).get("commonTypes", {}).get(name, {})
    return {}


def _closest(word: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean `{found[0]}`?" if found else ""
