"""The live display of an operation's progress: one moving line for people, a line for each new state for logs."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from licet_engine.commands.render import progress_text
from licet_engine.commands.text import clean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from licet_engine.client_values import Operation


def status_line(operation: Operation, elapsed_s: float) -> str:
    """How an operation stands, in one line."""
    words = [
        f"{clean(operation.action or 'operation')} {clean(operation.resource or operation.ref)}: {clean(operation.state)}"
    ]
    if operation.attempt > 1:
        words.append(f"attempt {operation.attempt}")
    if operation.progress:
        words.append(progress_text(operation.progress))
    words.append(f"{elapsed_s:.0f} s")
    return " · ".join(words)


@contextmanager
def live_display(name: str) -> Iterator[Callable[[Operation], None]]:
    """Show progress on stderr until the block ends.

    Yields:
        What to call with every change.
    """
    began_s = time.monotonic()
    if not sys.stderr.isatty():
        seen: list[tuple[str, int, str]] = []

        def note(operation: Operation) -> None:
            standing = (operation.state, operation.attempt, str((operation.progress or {}).get("waiting", "")))
            if standing not in seen:
                seen.append(standing)
                click.echo(status_line(operation, time.monotonic() - began_s), err=True)

        yield note
        return

    from rich.console import Console  # noqa: PLC0415  # Only where a person watches.
    from rich.live import Live  # noqa: PLC0415  # As above.
    from rich.spinner import Spinner  # noqa: PLC0415  # As above.
    from rich.text import Text  # noqa: PLC0415  # As above.

    spinner = Spinner("dots", text=Text(f"operation {name}"))
    with Live(spinner, console=Console(stderr=True), refresh_per_second=8, transient=True):

        def update(operation: Operation) -> None:
            spinner.update(text=Text(status_line(operation, time.monotonic() - began_s)))

        yield update
