"""Pages whose commands are run as they stand there, and whose shown output is compared.

Rules kept here:

- Every block of ``sh`` is run, one after the other, in a shell that stops at the first command that fails. Folder and variables last from
  one to the next, as at a reader's terminal.
- A block ends with exit code 0, or with that of its fence, ``sh exit=1``: then it is the last line that ends so, and no other.
- A block of ``text`` right behind one of ``sh`` is what that shows, standard output and errors together. A line of ``…`` alone is any
  lines, and ``…`` in a line is any text; all else must be there, and nothing more.
- Any other kind of block is a mistake of the page, so that none is left out by being called otherwise.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

LONGEST_S = 120
_FENCE = re.compile(r"^```(.*)\n((?:.*\n)*?)^```$\n?", re.MULTILINE)
_KEEP = 'set -aeuo pipefail; cd "$(cat "$0/folder")"; . "$0/variables"; trap \'code=$?; pwd > "$0/folder"; export -p > "$0/variables"; exit $code\' EXIT\n'


@dataclass(frozen=True)
class Block:
    """Commands of a page.

    Attributes:
        line: Where they begin, from 1.
        commands: As they stand there.
        exit_code: What they end with.
        shown: What they show, or None if the page does not say.
    """

    line: int
    commands: str
    exit_code: int = 0
    shown: str | None = None


class WrongPage(AssertionError):
    """What a page says is not so."""


def blocks(page: str) -> list[Block]:
    """The commands of a page, in its order.

    Raises:
        WrongPage: A block is none of those there are, or stands where it says nothing.
    """
    found: list[Block] = []
    end, at_end_of_commands = 0, -1
    for fence in _FENCE.finditer(page):
        kind, body, line = fence[1], fence[2], page.count("\n", 0, fence.start()) + 2
        between, end = page[end : fence.start()], fence.end()
        if match := re.fullmatch(r"sh(?: exit=(\d+))?", kind):
            found.append(Block(line, body, int(match[1] or 0)))
            at_end_of_commands = end
        elif kind == "text" and at_end_of_commands >= 0 and not between.strip() and found[-1].shown is None:
            last = found.pop()
            found.append(Block(last.line, last.commands, last.exit_code, body))
        else:
            raise WrongPage(f"line {line}: a block of {kind!r} that belongs to no commands")
    if len(re.findall("^ *```", page, re.MULTILINE)) != 2 * len(list(_FENCE.finditer(page))):
        raise WrongPage("a fence is not closed, or nested")
    return found


def shows(expected: str, actual: str) -> bool:
    """Whether this is what was to be shown."""
    parts = [
        "(?:.*\n)*" if line.strip() == "…" else ".*".join(map(re.escape, line.rstrip().split("…"))) + r"[ \t]*\n"
        for line in expected.splitlines()
    ]
    return re.fullmatch("".join(parts), actual) is not None


def _with_mark(commands: str) -> str:
    """Commands that leave a file behind before the last line."""
    *before, last = commands.splitlines()
    return "\n".join([*before, ': > "$0/last"', last, ""])


def play(page: str, folder: Path, environment: Mapping[str, str], state: Path) -> None:
    """Run the commands of a page.

    Args:
        page: Its text.
        folder: Where it begins.
        environment: With what.
        state: An empty folder, not below the other.

    Raises:
        WrongPage: A block ends otherwise than it says, or shows something else.
    """
    (state / "folder").write_text(f"{folder}\n")
    (state / "variables").write_text("")
    for block in blocks(page):
        (state / "last").unlink(missing_ok=True)
        commands = _with_mark(block.commands) if block.exit_code else block.commands
        ran = subprocess.run(
            [shutil.which("bash") or "/bin/bash", "-c", _KEEP + commands, str(state)],
            cwd=folder,
            env=dict(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LONGEST_S,
            check=False,
        )
        if ran.returncode != block.exit_code or (block.exit_code and not (state / "last").exists()):
            raise WrongPage(f"line {block.line} ended with {ran.returncode}:\n{block.commands}\n{ran.stdout}")
        if block.shown is not None and not shows(block.shown, ran.stdout):
            raise WrongPage(f"line {block.line} shows something else:\n{block.commands}\n{ran.stdout}")
