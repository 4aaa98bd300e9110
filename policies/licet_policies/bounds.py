"""What policy text may be before Cedar's parser sees any of it, and what it may be once it is parsed.

Cedar's parser, its validator and its evaluator call themselves at every level of an expression, and a stack that overflows
in there ends the process. Cedar's `like` takes time in proportion to the text times the pattern. Both are bounded here, by
a lexer that calls nothing twice.

Rules kept:

- Whatever makes an expression deeper (a bracket, an operator, an accessor, a condition) is counted, and there may be a few
  hundred of them in a policy: a hundredth of what the parser takes. Brackets nest less deep still.
- What is counted is what Cedar reads: a comment ends where Cedar's does, and a quote that opens no string is refused, so
  that nothing can hide from this lexer behind one.
- A parsed policy is as deep at most as Cedar reads again: a policy set is handed over as JSON, which it takes 128 deep.
- What an evaluation can cost is bounded by texts, patterns and sets that are each of bounded size.

Source: the Cedar grammar, https://docs.cedarpolicy.com/policies/syntax-grammar.html.
"""

from collections.abc import Iterator
from typing import Any, Final

from licet_policies.errors import PolicySourceError
from licet_policies.tokens import TOKEN

__all__ = ["MAX_POLICY_CHARS", "MAX_TREE_DEPTH", "pieces", "verify_text", "verify_tree"]

MAX_POLICY_CHARS: Final = 16 * 1024
MAX_NESTING: Final = 64
MAX_STEPS: Final = 400
"""Brackets, operators, accessors and conditions of one policy, all together."""
MAX_ELEMENTS: Final = 100
"""Members of one set, record or list of arguments."""
MAX_LITERAL_CHARS: Final = 512
MAX_ANNOTATION_CHARS: Final = 2048
MAX_PATTERN_CHARS: Final = 64
MAX_WILDCARDS: Final = 4
MAX_PATTERNS: Final = 8
"""Uses of ``like`` in one policy."""
MAX_HAS_PATH: Final = 8
"""Attributes after one ``has``: Cedar writes each of them out with all those before it."""
MAX_TREE_DEPTH: Final = 64
"""Levels of a policy in Cedar's JSON form, two for each operator. Cedar takes time in proportion to its square to read one,
and none deeper than 128."""

_CLOSED_BY: Final = {"(": ")", "[": "]", "{": "}"}
_OPERATOR_WORDS: Final = frozenset({"has", "if", "in", "is", "like", "unless", "when"})


def pieces(text: str, where: str) -> Iterator[str]:
    """Cut ``text`` behind each semicolon that stands outside strings and comments.

    Args:
        text: Cedar policies.
        where: Where they come from, for messages.

    Raises:
        PolicySourceError: A quote opens no string, or a piece is longer than a policy may be.
    """
    begin: int | None = None
    for match in TOKEN.finditer(text):
        lexeme = match.group()
        # A comment inside a policy is part of what its author wrote; one before it explains the file.
        if begin is None:
            if match.lastgroup == "skipped":
                continue
            begin = match.start()
        _refuse_quote(lexeme, f"{where}: policy that begins {text[begin : begin + 60]!r}")
        if lexeme == ";":
            yield _bounded(text[begin : match.end()], where)
            begin = None
    if begin is not None and (rest := text[begin:].strip()):
        yield _bounded(rest, where)


def verify_text(text: str, where: str, *, may_cost: bool = False) -> int:
    """Verify that one policy can be given to Cedar's parser.

    Args:
        text: The policy.
        where: How it is called in messages.
        may_cost: Whether it may be as costly to evaluate as it likes: of one that was in force somewhere and is evaluated again,
            only what the parser does not survive is refused.

    Returns:
        Its steps: how many brackets, operators, accessors and conditions it has.

    Raises:
        PolicySourceError: It is longer, deeper or larger than a policy may be.
    """
    lexer = _Lexer(where, may_cost=may_cost)
    if len(text) > MAX_POLICY_CHARS:
        raise lexer.too_much("characters", MAX_POLICY_CHARS)
    for match in TOKEN.finditer(text):
        if match.lastgroup != "skipped":
            lexer.take(match.lastgroup or "", match.group())
    return lexer.steps


def verify_tree(policy: Any, where: str) -> None:
    """Verify that a parsed policy is not deeper than Cedar reads again.

    Args:
        policy: In Cedar's JSON form.
        where: How it is called in messages.

    Raises:
        PolicySourceError: It is deeper.
    """
    level: list[Any] = [policy]
    for _ in range(MAX_TREE_DEPTH):
        level = [item for value in level for item in _members(value)]
        if not level:
            return
    raise PolicySourceError(
        f"{where}: a condition of it has more steps, each in the one before, than can be evaluated: write it as several"
        " conditions (when { ... } when { ... }) or as several policies"
    )


def _members(value: Any) -> Iterator[Any]:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (item for item in inside if isinstance(item, dict | list))


def _bounded(piece: str, where: str) -> str:
    if len(piece) > MAX_POLICY_CHARS:
        raise _Lexer(f"{where}: policy that begins {piece[:60]!r}").too_much("characters", MAX_POLICY_CHARS)
    return piece


def _refuse_quote(lexeme: str, where: str) -> None:
    if lexeme == '"':
        raise PolicySourceError(f"{where}: a string of it does not end; close it, and write a line end in it as \\n")


class _Lexer:
    """Counts, token by token, what one policy asks of Cedar."""

    def __init__(self, where: str, *, may_cost: bool = False) -> None:
        self._where = where
        self._may_cost = may_cost
        self._open: list[str] = []
        self._commas: list[int] = []
        self.steps = 0
        self._patterns = 0
        self._has_path = 0
        self._before = ("", "", "")

    def too_much(self, what: str, most: int) -> PolicySourceError:
        """The error for a count that is above its bound."""
        return PolicySourceError(
            f"{self._where}: more than {most} {what}; a policy has at most {most}: write it more simply, or as several"
        )

    def take(self, kind: str, lexeme: str) -> None:
        """Count one token."""
        _refuse_quote(lexeme, self._where)
        self._count(kind, lexeme)
        if kind == "string":
            if not self._may_cost:
                self._string(lexeme)
        elif kind == "opens":
            self._open.append(_CLOSED_BY[lexeme])
            self._commas.append(0)
            if len(self._open) > MAX_NESTING:
                raise self.too_much("brackets inside one another", MAX_NESTING)
        elif kind == "closes":
            # Cedar would go on behind a wrong bracket, and what it takes for open we could no longer tell.
            if not self._open or self._open.pop() != lexeme:
                raise PolicySourceError(f"{self._where}: a {lexeme!r} closes nothing that is open")
            self._commas.pop()
        elif lexeme == "," and self._commas:
            self._commas[-1] += 1
            if self._commas[-1] >= MAX_ELEMENTS and not self._may_cost:
                raise self.too_much("members of one set, record or list", MAX_ELEMENTS)
        self._before = (*self._before[1:], lexeme)

    def _count(self, kind: str, lexeme: str) -> None:
        if kind in ("opens", "operator") or lexeme in _OPERATOR_WORDS:
            self.steps += 1
            if self.steps > MAX_STEPS:
                raise self.too_much("brackets, operators, accessors and conditions", MAX_STEPS)
        if lexeme == "has":
            self._has_path = 1
        elif self._has_path and lexeme == ".":
            self._has_path += 1
            if self._has_path > MAX_HAS_PATH:
                raise self.too_much("attributes after one `has`", MAX_HAS_PATH)
        elif kind not in ("word", "string"):
            self._has_path = 0
        if lexeme == "like":
            self._patterns += 1
            if self._patterns > MAX_PATTERNS and not self._may_cost:
                raise self.too_much("uses of `like`", MAX_PATTERNS)

    def _string(self, lexeme: str) -> None:
        text = lexeme[1:-1]
        if self._before[-1] == "like":
            # An escaped star is no wildcard; that it is counted as one only makes the bound a little closer.
            if text.count("*") > MAX_WILDCARDS:
                raise self.too_much("wildcards in one pattern", MAX_WILDCARDS)
            most = MAX_PATTERN_CHARS
        else:
            most = MAX_ANNOTATION_CHARS if self._before[0] == "@" and self._before[2] == "(" else MAX_LITERAL_CHARS
        if len(text) > most:
            raise self.too_much("characters in one string here", most)
