"""What a suite is: a class whose ``case_*`` methods each take a fresh world and raise if the adapter is wrong."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from licet_adapters.conformance.world import World
from licet_adapters.errors import AdapterError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_PREFIX = "case_"


class ConformanceFailed(AssertionError):  # A finding, not a defect of this program.
    """The adapter does not keep what its port promises."""


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that an adapter must keep.

    Attributes:
        name: A sentence, with underscores.
        check: Does it in a world.
        end: Called when it is over, before the world's folder goes.
    """

    name: str
    check: Callable[[World], None]
    end: Callable[[], None]

    def run(self) -> None:
        """Check it in a fresh world.

        Raises:
            ConformanceFailed: The adapter does not keep it.
        """
        with tempfile.TemporaryDirectory(prefix="licet-conformance-") as folder:
            try:
                self.check(World(Path(folder)))
            finally:
                self.end()

    def __str__(self) -> str:
        return self.name


class Suite:
    """Base of the suites."""

    def cases(self) -> Sequence[Case]:
        """All cases, in the order they are written."""
        names = [name for kind in reversed(type(self).__mro__) for name in vars(kind) if name.startswith(_PREFIX)]
        return [Case(name.removeprefix(_PREFIX), getattr(self, name), self.end_case) for name in dict.fromkeys(names)]

    def end_case(self) -> None:
        """Stop what a case has started; most start nothing."""


def run(suite: Suite) -> int:
    """Run every case; return how many there were.

    Raises:
        ConformanceFailed: Some failed; the message names each and why. A suite without cases fails, too.
    """
    failed = []
    cases = suite.cases()
    for case in cases:
        try:
            case.run()
        except (ConformanceFailed, AdapterError) as error:
            failed.append(f"{case.name}: {error}")
    if failed or not cases:
        raise ConformanceFailed("\n".join(failed) or "the suite has no cases")
    return len(cases)


def expect(found: Any, expected: Any, what: str) -> None:
    """Raise unless ``found`` is ``expected``."""
    if found != expected:
        raise ConformanceFailed(f"{what}: expected {expected!r}, found {found!r}")


@contextmanager
def refused(*codes: str) -> Iterator[None]:
    """Raise unless the block raises an ``AdapterError`` with one of ``codes`` (or one below it, after a dot)."""
    try:
        yield
    except AdapterError as error:
        if not any(error.code == code or error.code.startswith(f"{code}.") for code in codes):
            raise ConformanceFailed(f"refused with {error.code} ({error}), not {' or '.join(codes)}") from error
        return
    raise ConformanceFailed(f"not refused; {' or '.join(codes)} was expected")
