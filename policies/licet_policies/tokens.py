"""The tokens of Cedar text, with where they stand.

Rules kept:

- One lexer serves who bounds policy text (``bounds``), who reads a schema (``extension``) and who tells where something stands
  in a file (the workbench): what one of them counts as a string or a comment, the others do too.
- Every character of a text belongs to exactly one token, so nothing can hide between two of them.

Source: the Cedar grammar, https://docs.cedarpolicy.com/policies/syntax-grammar.html.
"""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

__all__ = ["TOKEN", "Token", "tokens"]

# Two alternatives of the string never match the same character, so it is read in one go. Cedar's own string holds no
# backslash before a line end; its comment ends at a carriage return, too.
TOKEN: Final = re.compile(
    r"""(?P<string>"(?:[^"\\]|\\[^\n])*")
    | (?P<skipped>\s+|//[^\n\r]*)
    | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<opens>[(\[{])
    | (?P<closes>[)\]}])
    | (?P<operator>&&|\|\||[=!<>]=|[!<>+\-*/%.])
    | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)


class Token(NamedTuple):
    """One token.

    Attributes:
        kind: ``string``, ``word``, ``opens``, ``closes``, ``operator``, ``other``, or ``skipped`` for white space and comments.
        text: As it stands there.
        begin: Offset of its first character.
        end: Offset behind its last.
    """

    kind: str
    text: str
    begin: int
    end: int

    @property
    def is_comment(self) -> bool:
        """Whether it is a comment."""
        return self.kind == "skipped" and self.text.startswith("//")


def tokens(text: str) -> Iterator[Token]:
    """Every token of ``text``, skipped ones among them, in order."""
    for match in TOKEN.finditer(text):
        yield Token(match.lastgroup or "other", match.group(), match.start(), match.end())
