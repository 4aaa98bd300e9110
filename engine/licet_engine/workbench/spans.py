"""Where in a file something stands: what Cedar does not tell.

Rules kept here:

- Lines and columns count from 1, columns in characters (Unicode code points), and an end is behind the last character: as SARIF
  has it where ``columnKind`` is ``unicodeCodePoints``.
- A line ends with a line feed. What else editors may take for a line end stays within its line, as it does for Cedar.
- A policy is taken apart by its tokens alone, so that one that does not parse has positions, too. Where it does parse, its
  clauses and their parts are, one by one, those of ``decide.conjuncts``: the tests hold both to the same parts over Cedar's
  corpus.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from licet_policies.bounds import verify_text
from licet_policies.errors import PolicySourceError
from licet_policies.tokens import Token, tokens

_CLOSED_BY: Final = {"(": ")", "[": "]", "{": "}"}
_SLOTS: Final = ("principal", "action", "resource")
_PAIR: Final = 2
_ITSELF: Final = "policy"


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A stretch of one file.

    Attributes:
        file: From the root of the project.
        line: Of its first character, from 1.
        column: Of its first character, from 1, in characters.
        end_line: Of its end.
        end_column: Behind its last character.
    """

    file: str
    line: int
    column: int
    end_line: int
    end_column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    def to_json(self) -> dict[str, int | str]:
        """For an answer."""
        return {
            "file": self.file,
            "line": self.line,
            "column": self.column,
            "end_line": self.end_line,
            "end_column": self.end_column,
        }


class SourceFile:
    """A text file, with the places of its lines.

    Attributes:
        name: From the root of the project.
        text: What it holds.
    """

    __slots__ = ("_starts", "name", "text")

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self._starts = [0]
        at = text.find("\n")
        while at >= 0:
            self._starts.append(at + 1)
            at = text.find("\n", at + 1)

    def span(self, begin: int, end: int) -> Span:
        """The stretch between two offsets."""
        line, column = self.position(begin)
        end_line, end_column = self.position(max(begin, end))
        return Span(self.name, line, column, end_line, end_column)

    def position(self, offset: int) -> tuple[int, int]:
        """Line and column of an offset."""
        line = bisect_right(self._starts, offset)
        return line, offset - self._starts[line - 1] + 1

    def line_span(self, line: int) -> Span:
        """A line, without its end."""
        begin = self._starts[line - 1]
        return self.span(begin, begin + len(self.line_text(line)))

    def line_text(self, line: int) -> str:
        """What stands in a line, without its end."""
        begin = self._starts[line - 1]
        end = self._starts[line] - 1 if line < len(self._starts) else len(self.text)
        return self.text[begin:end].removesuffix("\r")


@dataclass(frozen=True, slots=True)
class Range:
    """A stretch of a file's text, by offsets, with the tokens in it that are not skipped."""

    begin: int
    end: int
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True, slots=True)
class AnnotationText:
    """One annotation as written; ``value`` is None where it has none."""

    name: str
    value: str | None
    where: Range


@dataclass(frozen=True, slots=True)
class ClauseText:
    """One ``when`` or ``unless`` as written, with the parts that stand between its ``&&`` or ``||``."""

    kind: Literal["when", "unless"]
    joiner: Literal["and", "or"]
    where: Range
    parts: tuple[Range, ...]


@dataclass(frozen=True, slots=True)
class PolicyText:
    """One policy as written, taken apart by its tokens.

    Attributes:
        file: The file it stands in.
        where: All of it, from its first annotation to its semicolon.
        comments: Those before it, behind the policy before, and those in it.
        annotations: In order.
        effect: The word before its scope, whatever it is.
        scope: The bracket with principal, action and resource.
        slots: What constrains each of the three, as far as they are there.
        clauses: Its conditions, as far as they can be told.
        refusal: Why Cedar must not see it, where it is too large or too deep; it is not taken apart then.
    """

    file: SourceFile
    where: Range
    comments: tuple[Token, ...] = ()
    annotations: tuple[AnnotationText, ...] = ()
    effect: Token | None = None
    scope: Range | None = None
    slots: dict[str, Range] = field(default_factory=dict)
    clauses: tuple[ClauseText, ...] = ()
    refusal: str | None = None

    @property
    def text(self) -> str:
        """The policy alone."""
        return self.file.text[self.where.begin : self.where.end]

    @property
    def id(self) -> str | None:
        """The value of its ``@id`` as written, or None if it bears none."""
        found = self.annotation("id")
        return None if found is None else found.value or ""

    def annotation(self, name: str) -> AnnotationText | None:
        """The annotation of that name."""
        return next((found for found in self.annotations if found.name == name), None)

    def span(self, where: Range | Token | None = None) -> Span:
        """A stretch of it as a place in its file; by default its head: the ``@id``, or else its first line."""
        if where is None:
            found = self.annotation("id")
            first = self.where.tokens[0] if self.where.tokens else self.where
            where = found.where if found is not None else self.effect or first
        return self.file.span(where.begin, where.end)

    @property
    def whole(self) -> Span:
        """All of it as a place in its file."""
        return self.file.span(self.where.begin, self.where.end)


def read_policies(file: SourceFile) -> list[PolicyText]:
    """Every policy of a file, whether or not it would parse, with all that stands before a semicolon."""
    found: list[PolicyText] = []
    inside: list[Token] = []
    comments: list[Token] = []
    for token in tokens(file.text):
        if token.kind == "skipped":
            if token.is_comment:
                comments.append(token)
            continue
        inside.append(token)
        if token.text == ";":
            found.append(_take_apart(file, inside, comments))
            inside, comments = [], []
    if inside:
        found.append(_take_apart(file, inside, comments))
    return found


def _take_apart(file: SourceFile, inside: Sequence[Token], comments: Sequence[Token]) -> PolicyText:
    where = _range(inside)
    try:
        verify_text(file.text[where.begin : where.end], _ITSELF)
    except PolicySourceError as error:
        # Only what is bounded is taken apart: brackets are looked into again at every level.
        refusal = str(error).removeprefix(f"{_ITSELF}: ")
        return PolicyText(file, where, tuple(comments), refusal=refusal)
    annotations, at = _annotations(inside)
    effect = inside[at] if at < len(inside) and inside[at].kind == "word" else None
    if effect is None or at + 1 >= len(inside) or inside[at + 1].text != "(":
        return PolicyText(file, where, tuple(comments), annotations, effect)
    end = _closing(inside, at + 1)
    scope = _range(inside[at + 1 : end + 1])
    slots = dict(zip(_SLOTS, map(_range, _split(inside[at + 2 : end], ",")), strict=False))
    return PolicyText(
        file, where, tuple(comments), annotations, effect, scope, slots, tuple(_clauses(inside[end + 1 :]))
    )


def _annotations(inside: Sequence[Token]) -> tuple[tuple[AnnotationText, ...], int]:
    found: list[AnnotationText] = []
    at = 0
    while at + 1 < len(inside) and inside[at].text == "@" and inside[at + 1].kind == "word":
        end, value = at + 1, None
        if at + _PAIR < len(inside) and inside[at + _PAIR].text == "(":
            end = _closing(inside, at + _PAIR)
            quoted = inside[at + 3] if at + 3 < end else None
            value = _unquoted(quoted.text) if quoted is not None and quoted.kind == "string" else None
        found.append(AnnotationText(inside[at + 1].text, value, _range(inside[at : end + 1])))
        at = end + 1
    return tuple(found), at


def _clauses(rest: Sequence[Token]) -> list[ClauseText]:
    found: list[ClauseText] = []
    at = 0
    while at + 1 < len(rest) and rest[at].text in ("when", "unless") and rest[at + 1].text == "{":
        end = _closing(rest, at + 1)
        joiner, parts = _parts(rest[at + _PAIR : end])
        kind: Literal["when", "unless"] = "when" if rest[at].text == "when" else "unless"
        found.append(ClauseText(kind, joiner, _range(rest[at : end + 1]), tuple(parts)))
        at = end + 1
    return found


def _parts(body: Sequence[Token]) -> tuple[Literal["and", "or"], list[Range]]:
    body = _bare(body)
    if body and body[0].text == "if":
        return "and", [_range(body)]
    joiner: Literal["and", "or"] = "or" if len(_split(body, "||")) > 1 else "and"
    return joiner, _flat(body, joiner)


def _flat(body: Sequence[Token], joiner: Literal["and", "or"]) -> list[Range]:
    """What stands between the operators, brackets that only group being looked into, as Cedar's tree has no brackets."""
    pending, found = [body], []
    while pending:
        given = pending.pop()
        bare = _bare(given)
        is_if = bool(bare) and bare[0].text == "if"
        by_or = [] if is_if else _split(bare, "||")
        pieces = by_or if joiner == "or" else [bare] if is_if or len(by_or) > 1 else _split(bare, "&&")
        if len(pieces) > 1:
            pending.extend(reversed(pieces))
        else:
            found += [_range(given)] * (1 if joiner == "or" or is_if or len(by_or) > 1 else _has_steps(bare))
    return found


def _has_steps(part: Sequence[Token]) -> int:
    """How many tests one part is to Cedar: it writes ``x has a.b`` as ``x has a && x.a has b``."""
    depth = 0
    for at, token in enumerate(part):
        depth += (token.kind == "opens") - (token.kind == "closes")
        if depth == 0 and token.text == "has":
            return 1 + sum(after.text == "." for after in part[at + 1 :])
    return 1


def _bare(body: Sequence[Token]) -> Sequence[Token]:
    """Without the brackets around all of it."""
    while len(body) > _PAIR and body[0].text == "(" and _closing(body, 0) == len(body) - 1:
        body = body[1:-1]
    return body


def _split(inside: Sequence[Token], at_text: str) -> list[Sequence[Token]]:
    """Cut at every token of that text that stands in no bracket."""
    found: list[Sequence[Token]] = []
    depth = begin = 0
    for at, token in enumerate(inside):
        depth += (token.kind == "opens") - (token.kind == "closes")
        if depth == 0 and token.text == at_text and token.kind != "string":
            found.append(inside[begin:at])
            begin = at + 1
    found.append(inside[begin:])
    return found


def _closing(inside: Sequence[Token], opening: int) -> int:
    """Where the bracket that opens there is closed; the last token if it is not."""
    expected: list[str] = []
    for at in range(opening, len(inside)):
        token = inside[at]
        if token.kind == "opens":
            expected.append(_CLOSED_BY[token.text])
        elif token.kind == "closes":
            expected.pop()
            if not expected:
                return at
    return len(inside) - 1


def _range(inside: Sequence[Token]) -> Range:
    if not inside:
        return Range(0, 0)
    return Range(inside[0].begin, inside[-1].end, tuple(inside))


def _unquoted(text: str) -> str:
    """A string without its quotes; an escape is kept as written, but for the two that any text may need."""
    return text[1:-1].replace('\\"', '"').replace("\\\\", "\\")
