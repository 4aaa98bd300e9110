"""``fmt``: policies laid out by Cedar's own formatter, and nothing else about them changed.

Rules kept here:

- A file is written only if what it would hold afterwards means what it meant: the same policies in the same order with the same
  annotations, and every comment in its order.
- A file whose policies do not parse is left alone, and said to be.
- A file is replaced whole or not at all: what is written first stands beside it until it is complete.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import cedarpy

from licet_engine.workbench.checked import check_policy
from licet_engine.workbench.errors import ProjectError, WorkbenchError
from licet_engine.workbench.files import inside
from licet_engine.workbench.spans import read_policies
from licet_policies.tokens import tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

    from licet_engine.workbench.project import Project
    from licet_engine.workbench.spans import SourceFile

_LINE_CHARS: Final = 100
_INDENT_CHARS: Final = 2


class FormatLost(WorkbenchError):
    """Cedar's formatter gave back something else than it was given: a defect of it, and nothing was written."""

    status = 500
    default_code = "format-lost"


def unformatted(project: Project) -> Iterator[tuple[SourceFile, str]]:
    """Every file of policies or invariants that is laid out in another way, with what it should hold.

    Raises:
        ProjectError: A policy of one does not parse.
        FormatLost: What the formatter gave back is something else.
    """
    for file in (*project.policies, *project.invariants):
        formatted = format_text(file)
        if formatted != file.text:
            yield file, formatted


def format_text(file: SourceFile) -> str:
    """The text of a file of policies, laid out.

    Raises:
        ProjectError: One of its policies does not parse.
        FormatLost: What the formatter gave back is something else.
    """
    for written in read_policies(file):
        checked = check_policy(written, "policy")
        # A template is Cedar, and lint says what is wrong with it.
        if checked.problem in ("syntax", "too-large"):
            span = checked.at or written.span()
            raise ProjectError(f"is not formatted: {checked.message}", file=file.name, line=span.line)
    if not any(token.kind != "skipped" for token in tokens(file.text)):
        return file.text
    formatted: str = cedarpy.format_policies(file.text, line_width=_LINE_CHARS, indent_width=_INDENT_CHARS)
    formatted = formatted.rstrip("\n") + "\n"
    if _meaning(formatted) != _meaning(file.text) or _comments(formatted) != _comments(file.text):
        raise FormatLost(f"{file.name}: is not formatted: Cedar's formatter would lose part of it; lay it out by hand")
    return formatted


def write_text(project: Project, file: SourceFile, text: str) -> None:
    """Replace a file of the project."""
    target = inside(project.root, file.name)
    mode = target.stat().st_mode & 0o777
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".licet-fmt-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as beside:
            beside.write(text)
            os.fchmod(beside.fileno(), mode)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _meaning(text: str) -> Any:
    parsed = json.loads(cedarpy.policies_to_json_str(text))
    return [parsed["staticPolicies"], parsed["templates"]]


def _comments(text: str) -> list[str]:
    return [token.text.rstrip() for token in tokens(text) if token.is_comment]
