"""A policy project as one document: what is sent to be published, and what comes back to be reviewed.

Rules kept here:

- A project has one canonical form, and so one digest: its files by name, each once, in the order of their names.
- What is read is verified before anything is written: names stay within the project's folders, no two fall together on
  any file system, texts are text, and number, size and depth are bounded.
- The files are those that the workbench reads, and no others: what nothing checks is not published beside what was checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from licet_attestations import canonical
from licet_attestations.errors import FormatError
from licet_engine.workbench.errors import ProjectError
from licet_engine.workbench.files import (
    BYTE_ORDER_MARK,
    CONFIG_FILE,
    FOLDERS,
    MAX_FILE_BYTES,
    MAX_LEVELS,
    list_files,
    project_root,
    read_text,
)
from licet_engine.workbench.scaffold import write_new

MAX_DOCUMENT_BYTES: Final = 768 << 10
"""Of its canonical JSON: it travels in one request, whose body is bounded by a mebibyte."""
MAX_DOCUMENT_FILES: Final = 1_000
OWN_FILE: Final = "policies/own.cedar"
_VERSION: Final = 1
_MAX_NAME_BYTES: Final = 255


@dataclass(frozen=True)
class ProjectDocument:
    """The files of a project, verified.

    Attributes:
        files: Name and text of each, by name.
    """

    files: tuple[tuple[str, str], ...]

    @classmethod
    def from_json(cls, value: object) -> ProjectDocument:
        """Read a document.

        Raises:
            ProjectError: It is none, or its files are not what a project may hold.
        """
        match value:
            case {"v": 1, "files": list(files), **more} if not more:
                return cls.of([_entry(file) for file in files])
        raise ProjectError('a project is sent as {"v": 1, "files": [{"name", "text"}]}')

    @classmethod
    def of(cls, files: Sequence[tuple[str, str]]) -> ProjectDocument:
        """A document of these files, whichever their order.

        Raises:
            ProjectError: They are not what a project may hold.
        """
        document = cls(tuple(sorted(files)))
        if len(files) > MAX_DOCUMENT_FILES:
            raise ProjectError(f"a project of {len(files)} files is too large: at most {MAX_DOCUMENT_FILES} are taken")
        taken: dict[str, str] = {}
        for name, text in document.files:
            _verify_name(name)
            _verify_text(name, text)
            # Neither twice, nor a file where another needs a folder; and not only where case tells names apart.
            folded = name.casefold()
            if folded in taken:
                raise ProjectError(f"is there twice (also as {taken[folded]!r}): name each file its own", file=name)
            taken[folded] = name
        for folded, name in taken.items():
            above = folded.rpartition("/")[0]
            while above:
                if above in taken:
                    raise ProjectError(f"lies below the file {taken[above]}: name it otherwise", file=name)
                above = above.rpartition("/")[0]
        if CONFIG_FILE not in taken:
            raise ProjectError(f"the project holds no {CONFIG_FILE}: `licet policy init DIR` makes one")
        if (size := len(document.to_bytes())) > MAX_DOCUMENT_BYTES:
            raise ProjectError(
                f"the project is too large to be published: {size >> 10} KiB, at most {MAX_DOCUMENT_BYTES >> 10} are taken"
            )
        return document

    @classmethod
    def from_folder(cls, folder: Path) -> ProjectDocument:
        """Read the project in a folder.

        Raises:
            ProjectError: It is no project, or one of its files cannot be used.
        """
        root = project_root(folder)
        names = [CONFIG_FILE]
        for below in FOLDERS:
            names += list_files(root, below)
        return cls.of([(name, read_text(root, name)) for name in names])

    @classmethod
    def of_parts(cls, packs: Sequence[Mapping[str, Any]], own: str) -> ProjectDocument:
        """The project that is packs and own policies alone, without tests of its own.

        Args:
            packs: ``{"name", "mode", "parameters"}`` each, the parameters whole numbers and lists of words.
            own: Its own policies.

        Raises:
            ProjectError: They make no project.
        """
        lines = ["version = 1"]
        for chosen in sorted(packs, key=lambda one: str(one["name"])):
            # What JSON calls a string, a whole number or a list of either is the same in TOML.
            name = json.dumps(chosen["name"])
            lines += ["", f"[packs.{name}]", f"mode = {json.dumps(chosen['mode'])}"]
            if chosen["parameters"]:
                lines += ["", f"[packs.{name}.parameters]"]
                lines += [
                    f"{json.dumps(key)} = {json.dumps(value)}" for key, value in sorted(chosen["parameters"].items())
                ]
        files = [(CONFIG_FILE, "\n".join(lines) + "\n")]
        return cls.of(files + ([(OWN_FILE, own)] if own else []))

    def to_json(self) -> dict[str, Any]:
        """The document."""
        return {"v": _VERSION, "files": [{"name": name, "text": text} for name, text in self.files]}

    def to_bytes(self) -> bytes:
        """Its canonical JSON.

        Raises:
            ProjectError: A text in it has no canonical form.
        """
        try:
            return canonical.dumps(self.to_json())
        except FormatError as error:
            raise ProjectError(f"the project has no canonical form: {error}") from error

    @property
    def digest_hex(self) -> str:
        """SHA-256 of its canonical JSON."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def write(self, folder: Path) -> list[str]:
        """Write the files into a folder in which none of them is yet; return their names.

        Raises:
            FileExists: One is there already; nothing was written.
            ProjectError: The folder, or what should be a folder in it, is something else.
        """
        write_new(folder, self.files)
        return [name for name, _ in self.files]


def _entry(file: object) -> tuple[str, str]:
    match file:
        case {"name": str(name), "text": str(text), **more} if not more:
            return name, text
    raise ProjectError('a file of a project is sent as {"name", "text"}')


def _verify_name(name: str) -> None:
    if name == CONFIG_FILE:
        return
    shown = name if name.isprintable() else ascii(name)
    if not name.isprintable() or "\\" in name or len(name.encode("utf-8", "replace")) > _MAX_NAME_BYTES:
        raise ProjectError(f"a name is printable, without \\, and of at most {_MAX_NAME_BYTES} bytes", file=shown[:300])
    folder, *below = name.split("/")
    if not below or any(not part or part.startswith(".") for part in below):
        raise ProjectError(
            "name a file by its path from the project's folder, without `..` or hidden parts", file=shown
        )
    if len(below) > MAX_LEVELS:
        raise ProjectError(f"lies more than {MAX_LEVELS} folders deep: move it up", file=shown)
    if not name.endswith(FOLDERS.get(folder, ())):
        wanted = ", ".join(f"{known}/*{ending}" for known, endings in FOLDERS.items() for ending in endings)
        raise ProjectError(f"is no file of a project: it holds {CONFIG_FILE}, {wanted}", file=shown)


def _verify_text(name: str, text: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise ProjectError("is no UTF-8 text: save it as UTF-8", file=name) from error
    if size > MAX_FILE_BYTES:
        raise ProjectError(f"is over {MAX_FILE_BYTES >> 10} KiB, the most that is read: divide it", file=name)
    if "\0" in text or text.startswith(BYTE_ORDER_MARK):
        raise ProjectError("holds a NUL or begins with a byte order mark: save it as UTF-8 without", file=name)
