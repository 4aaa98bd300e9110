"""The files of a project, read within bounds.

Rules kept here:

- Nothing outside of the project's folder is read: a link that leads out is refused, not followed, and so is a path of
  ``licet.toml`` with ``..`` in it.
- Only regular files are opened, so that a pipe or a device cannot hold the command up.
- A file is bounded before it is read whole, and so is the number of files.
- What is left out silently would count as checked: a folder that is a link is refused, not skipped.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from licet_engine.workbench.errors import ProjectError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CONFIG_FILE: Final = "licet.toml"
POLICY_FOLDER: Final = "policies"
INVARIANT_FOLDER: Final = "invariants"
TEST_FOLDER: Final = "tests"
SCHEMA_FOLDER: Final = "schema"
FOLDERS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        POLICY_FOLDER: (".cedar",),
        INVARIANT_FOLDER: (".cedar",),
        # Both are common, and one that is passed over would count as a test that passes.
        TEST_FOLDER: (".yaml", ".yml"),
        SCHEMA_FOLDER: (".cedarschema", ".json"),
    }
)
"""Which files are a project's, beside ``licet.toml``: below which folders, and how their names end."""
MAX_FILE_BYTES: Final = 1 << 20
MAX_FILES: Final = 2_000
MAX_LEVELS: Final = 8
BYTE_ORDER_MARK: Final = "\ufeff"


def project_root(folder: Path) -> Path:
    """The folder of a project, resolved.

    Raises:
        ProjectError: It is no folder, or no project.
    """
    root = folder.resolve()
    if not root.is_dir():
        raise ProjectError(f"{folder} is not a folder: name the folder of a policy project")
    if not os.path.lexists(root / CONFIG_FILE):
        raise ProjectError(
            f"{folder} holds no {CONFIG_FILE}, so it is no policy project: `licet policy init DIR` makes one"
        )
    return root


def read_text(root: Path, name: str, *, max_bytes: int = MAX_FILE_BYTES) -> str:
    """The text of a file of the project.

    Args:
        root: The project's folder, resolved.
        name: The file from there, with ``/`` between folders.
        max_bytes: How large it may be.

    Raises:
        ProjectError: It is not there, leads out of the project, is no regular file, is too large, or is no UTF-8 text.
    """
    inside(root, name)
    try:
        # A pipe would hold up whoever opens it; without waiting it can be told to be one.
        descriptor = os.open(root / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise ProjectError(f"cannot be read: {error.strerror}", file=name) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ProjectError("is not a regular file: put a plain file there", file=name)
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ProjectError(f"is over {max_bytes >> 10} KiB, the most that is read: divide it", file=name)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ProjectError(f"is not UTF-8 text (byte {error.start}): save it as UTF-8", file=name, line=line) from error
    if text.startswith(BYTE_ORDER_MARK):
        raise ProjectError("begins with a byte order mark: save it as UTF-8 without one", file=name, line=1)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ProjectError("holds a NUL, so it is no text: save it as UTF-8", file=name, line=line)
    return text


def inside(root: Path, name: str) -> Path:
    """Where a file of the project is.

    Raises:
        ProjectError: Its name, or a link on its way, leads out of the project.
    """
    parts = name.split("/")
    if name.startswith("/") or not all(parts) or ".." in parts or "\0" in name:
        raise ProjectError("name a file by its path from the project's folder, without `..`", file=name)
    try:
        found = (root / name).resolve()
    except (OSError, RuntimeError) as error:  # A link that leads to itself is either, by the version of Python.
        raise ProjectError("is a link that leads nowhere: put a plain file there", file=name) from error
    if not found.is_relative_to(root):
        raise ProjectError("leads out of the project: what belongs to it lies in its folder", file=name)
    return found


def list_files(root: Path, folder: str) -> list[str]:
    """The project's files below one of its folders, sorted; none where the folder is not there.

    Hidden files and folders, such as those an editor leaves, are not the project's.

    Raises:
        ProjectError: A folder cannot be read, is a link, or lies too deep, or there are too many files.
    """
    if not os.path.lexists(root / folder):
        return []
    found = sorted(_walk(root, folder, FOLDERS[folder], MAX_LEVELS))
    if len(found) > MAX_FILES:
        raise ProjectError(f"holds more than {MAX_FILES} files, the most that are read", file=folder)
    return found


def _walk(root: Path, folder: str, endings: tuple[str, ...], levels: int) -> Iterator[str]:
    if levels == 0:
        raise ProjectError(f"lies more than {MAX_LEVELS} folders deep: move it up", file=folder)
    if (root / folder).is_symlink():
        raise ProjectError("is a link: a folder of the project is a plain folder", file=folder)
    try:
        entries = list(os.scandir(root / folder))
    except OSError as error:
        raise ProjectError(f"cannot be read: {error.strerror}", file=folder) from error
    for entry in entries:
        name = f"{folder}/{entry.name}"
        if entry.name.startswith("."):
            continue
        # A link to a folder is a folder here, and refused above when its turn comes.
        if _is_folder(entry):
            yield from _walk(root, name, endings, levels - 1)
        elif entry.name.endswith(endings):
            yield name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link to itself: it is refused where it is read.
        return False
