"""The errors of the workbench, under the engine's root: one subclass per reaction of whoever ran it.

What a tool finds in a project is a value, a ``Finding``. What raises here is that a tool could not do its work.
"""

from __future__ import annotations

from licet_engine.domain.errors import LicetError


class WorkbenchError(LicetError):
    """Root of the errors of the workbench."""

    status = 400
    default_code = "workbench"


class ProjectError(WorkbenchError):
    """A file of the project cannot be used as it is: its author mends it.

    Attributes:
        said: What is wrong, without the place that the message begins with.
        file: Which one, from the root of the project; empty for the project as a whole.
        line: In that file, from 1; None where it is not known.
    """

    default_code = "invalid-project"

    def __init__(self, message: str, *, file: str = "", line: int | None = None) -> None:
        where = f"{file}:{line}: " if file and line else f"{file}: " if file else ""
        super().__init__(where + message)
        self.said = message
        self.file = file
        self.line = line


class FileExists(WorkbenchError):
    """What would be written is there already: nothing is overwritten."""

    status = 409
    default_code = "file-exists"
