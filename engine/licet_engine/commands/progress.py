"""How far long work has come, told to a person."""

from __future__ import annotations

import sys
import time

import click

from licet_engine.commands.text import clean

_TELL_EVERY_S = 1.0


class Progress:
    """Tells on standard error how far long work has come, about once a second, to a person."""

    def __init__(self, format_: str) -> None:
        self._is_shown = format_ == "text"
        self._what = ""
        self._told_at_s = self._began_s = time.monotonic()

    def tell(self, what: str, done: int, size: int) -> None:
        """Tell, if it is time."""
        now_s = time.monotonic()
        if what != self._what:
            self._what, self._began_s = what, now_s
        if not self._is_shown or now_s - self._told_at_s < _TELL_EVERY_S:
            return
        self._told_at_s = now_s
        rate = int(done / max(now_s - self._began_s, 0.001))
        click.echo(f"{clean(what)}: {done} of {size} entries, {rate}/s", file=sys.stderr)
