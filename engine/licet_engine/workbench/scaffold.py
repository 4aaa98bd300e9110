"""``init``: a policy project to begin with, which shows by example what each part is for.

Rules kept here:

- Nothing is overwritten: if any file of it is there, none is written. Each file is made new, so that one which appears in
  between is not overwritten either.
- The project that is written is clean under its own lint, formatter, tests and coverage; a test runs them all.
"""

from __future__ import annotations

import os
from importlib import resources
from typing import TYPE_CHECKING

from licet_engine.workbench.errors import FileExists, ProjectError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from importlib.resources.abc import Traversable
    from pathlib import Path


def write_project(folder: Path) -> list[str]:
    """Write the example project.

    Args:
        folder: Into which; made if it is not there.

    Returns:
        The files that were written, by their path from there.

    Raises:
        FileExists: A file of the project is there already.
        ProjectError: The folder, or what should be a folder in it, is something else.
    """
    files = sorted(_files(resources.files("licet_engine.workbench").joinpath("example"), ""))
    write_new(folder, files)
    return [name for name, _ in files]


def write_new(folder: Path, files: Sequence[tuple[str, str]]) -> None:
    """Write files, each where there is none.

    Args:
        folder: Into which; made if it is not there.
        files: The name of each, from there, and its text.

    Raises:
        FileExists: One is there already; nothing was written.
        ProjectError: The folder, or what should be a folder in it, is something else.
    """
    taken = [name for name, _ in files if os.path.lexists(folder / name)]
    if taken:
        raise FileExists(f"{folder} holds {', '.join(taken)} already: nothing was written; name an empty folder")
    try:
        for name, text in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with (folder / name).open("x", encoding="utf-8", newline="") as file:
                file.write(text)
    except FileExistsError as error:
        raise ProjectError(f"{os.fsdecode(error.filename)} is in the way: name an empty folder") from error
    except NotADirectoryError as error:
        raise ProjectError(f"{folder} is not a folder, or lies below a file: name an empty folder") from error


def _files(folder: Traversable, above: str) -> Iterator[tuple[str, str]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _files(entry, f"{above}{entry.name}/")
        else:
            yield f"{above}{entry.name}", entry.read_text("utf-8")
