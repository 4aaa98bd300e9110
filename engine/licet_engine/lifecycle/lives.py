"""What the worker had at work when it died, so that it does not die over the same thing for ever.

Rules kept here:

- A file for each operation at work holds how often in a row the worker died over it. It is there before the work begins
  and gone when it ends, so that one that is found tells of a death.
- An operation is performed whether or not this can be counted: with the disk full it ends as the work itself does.
- What gets further than any life before begins to count anew. Whoever is told to stop has not died.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)


class Life:
    """One performance of one operation.

    Args:
        path: Its file.
        deaths: How often in a row the worker died over the operation before.

    Attributes:
        deaths: The same; none once it went on.
    """

    def __init__(self, path: Path, deaths: int) -> None:
        self._path = path
        self.deaths = deaths
        self.write(deaths)

    def went_on(self) -> None:
        """It got further than before."""
        if self.deaths:
            self.deaths = 0
            self.write(0)

    def put_down(self) -> None:
        """The worker stops because it was told to: the next life finds the count as it is now."""
        self.write(self.deaths - 1)

    def write(self, deaths: int) -> None:
        """Make durable what the next life adds one to."""
        # Beside the whole name: what follows its dot is the operation, and others of the tenant are at work as well.
        part = self._path.with_name(f"{self._path.name}.part")
        try:
            with part.open("w", encoding="ascii") as file:
                file.write(str(deaths))
                file.flush()
                os.fsync(file.fileno())
            part.replace(self._path)
        except OSError as error:
            logger.warning("deaths over an operation are not counted", extra={"reason": str(error)})


class Lives:
    """The operations at work in this worker.

    Args:
        folder: Where their files lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._at_work: set[Life] = set()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextlib.contextmanager
    def at_work(self, tenant: str, operation: str) -> Iterator[Life]:
        """An operation is at work for as long as the block lasts."""
        path = self._folder / f"{tenant}.{operation}"
        try:
            deaths = int(path.read_text("ascii")) + 1
        except (OSError, ValueError):
            deaths = 0  # As a rule there is none.
        life = Life(path, deaths)
        with self._lock:
            self._at_work.add(life)
        try:
            yield life
        finally:
            with self._lock:
                self._at_work.discard(life)
                with contextlib.suppress(OSError):
                    path.unlink()

    def put_down(self) -> None:
        """The worker is about to end because it was told to. Nothing that is at work may end any more."""
        self._lock.acquire()  # Held until the process ends: what ends now would take away a file that counts.
        for life in self._at_work:
            life.put_down()
