"""The policies of a project, each parsed for itself: with Cedar's tree, or with what is wrong and where.

Rules kept here:

- Each policy is parsed alone, so that one mistake hides no other.
- Cedar's parser sees only what is within the bounds it survives.
- Cedar says what is wrong, but not where. Where follows from beginnings of the policy, each ended by a semicolon: the shortest at
  which Cedar stumbles before that semicolon ends with the token that it could not take.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import cedarpy

from licet_engine.workbench.spans import PolicyText, Range, Span
from licet_policies.bounds import verify_tree
from licet_policies.errors import PolicySourceError
from licet_policies.tokens import Token

Kind = Literal["policy", "invariant"]
Problem = Literal["syntax", "template", "too-large"]

_UNFINISHED: Final = "unexpected end of input"
_ENDED: Final = "unexpected token `;`"
_NOT_TAKEN: Final = ("unexpected token", "invalid token")
_TOO_MUCH: Final = "more than "
_MARKS: Final = frozenset('@(){}[];,:?="0123456789')
_QUOTED: Final = re.compile(r"`([^`]+)`|: @?(\w+)$")


@dataclass(frozen=True)
class CheckedPolicy:
    """One policy or invariant of a project.

    Attributes:
        written: It as its author wrote it.
        kind: Which of the two it is.
        ast: Cedar's JSON form of it, empty where there is a problem. Not to be changed.
        problem: What keeps it from being a policy at all, or None.
        message: What that is about.
        at: Where.
    """

    written: PolicyText
    kind: Kind
    ast: Mapping[str, Any] = field(default_factory=dict)
    problem: Problem | None = None
    message: str = ""
    at: Span | None = None

    @property
    def id(self) -> str | None:
        """Its ``@id``, or None if it has none."""
        return self.annotations.get("id") if self.ast else self.written.id

    @property
    def annotations(self) -> Mapping[str, str]:
        """Its annotations as Cedar reads them; one without a value has the empty text."""
        return {name: value or "" for name, value in self.ast.get("annotations", {}).items()}

    @property
    def effect(self) -> str:
        """``permit`` or ``forbid``; empty where there is a problem."""
        return str(self.ast.get("effect", ""))


def check_policy(written: PolicyText, kind: Kind) -> CheckedPolicy:
    """Parse one policy, or say why it is none."""
    if written.refusal is not None:
        problem: Problem = "too-large" if written.refusal.startswith(_TOO_MUCH) else "syntax"
        return CheckedPolicy(written, kind, problem=problem, message=written.refusal, at=_refused_at(written))
    try:
        parsed: dict[str, Any] = json.loads(cedarpy.policies_to_json_str(written.text))
        policies = list(parsed["staticPolicies"].values())
        if parsed["templates"]:
            return CheckedPolicy(written, kind, problem="template", message="", at=_slot(written))
        if len(policies) != 1:
            return CheckedPolicy(written, kind, problem="syntax", message="is not one policy", at=written.span())
        verify_tree(policies[0], "policy")
    except (PolicySourceError, RecursionError) as error:
        said = str(error).removeprefix("policy: ")
        return CheckedPolicy(written, kind, problem="too-large", message=said, at=written.span())
    except ValueError as error:
        return CheckedPolicy(written, kind, problem="syntax", message=str(error), at=_syntax_at(written, str(error)))
    return CheckedPolicy(written, kind, ast=policies[0])


def _refused_at(written: PolicyText) -> Span:
    """The quote that opens no string, or the bracket that closes nothing, if it is one of these; else the head."""
    opened: list[str] = []
    pairs = {")": "(", "]": "[", "}": "{"}
    for token in written.where.tokens:
        if token.text == '"':
            return written.span(token)
        if token.kind == "opens":
            opened.append(token.text)
        elif token.kind == "closes" and (not opened or opened.pop() != pairs[token.text]):
            return written.span(token)
    return written.span()


def _slot(written: PolicyText) -> Span:
    mark = next((token for token in written.where.tokens if token.text == "?"), None)
    return written.span(mark)


def _syntax_at(written: PolicyText, message: str) -> Span:
    inside = written.where.tokens
    if message.startswith(_NOT_TAKEN) or message == _UNFINISHED:
        return written.span(_first_not_taken(written))
    # What else Cedar says names what it is about.
    for phrase in (found[1] or found[2] for found in _QUOTED.finditer(message)):
        # Of what stands twice, the second is one too many.
        for token in reversed(inside):
            if token.text.strip('"') == phrase.strip('"'):
                return written.span(token)
    return written.span()


def _first_not_taken(written: PolicyText) -> Token | Range | None:
    inside = written.where.tokens
    for token in inside:
        if token.kind == "other" and token.text not in _MARKS:
            return token
    low, high = 0, len(inside)
    while low < high:
        middle = (low + high) // 2
        if _is_taken(written, inside[middle].end):
            low = middle + 1
        else:
            high = middle
    # If Cedar would only have read on, what is missing is missing behind the end.
    return inside[low] if low < len(inside) else inside[-1] if inside else None


def _is_taken(written: PolicyText, end: int) -> bool:
    """Whether Cedar takes all of the policy up to there, and would only have read on."""
    try:
        cedarpy.policies_to_json_str(written.file.text[written.where.begin : end] + "\n;")
    except ValueError as error:
        return str(error) == _ENDED or not str(error).startswith(_NOT_TAKEN)
    return True
