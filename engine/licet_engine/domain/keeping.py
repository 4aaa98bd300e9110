"""How long evidence is kept: a time that may grow for everything, and shrink for what is logged from then on alone.

Rules kept here:

- An entry is kept for the longest of the times that were in force when it was logged or at any moment since.
- So whoever shortens the time cannot have anything erased by it that stands in the log already.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

DEFAULT_DAYS: Final = 2557
"""Seven years."""
MAX_DAYS: Final = 36_525
"""A hundred years."""
MAX_SHORTENED: Final = 16
"""How many longer times are remembered."""
DAY_MS: Final = 86_400_000

Before = Sequence[Sequence[int]]
"""Longer times that were in force before, as days and the moment up to which they were, the longest first."""


def kept_until_ms(time_ms: int, days: int, before: Before) -> int:
    """When an entry of that time may be erased.

    Args:
        time_ms: When it was logged.
        days: The time in force.
        before: Longer ones that were.
    """
    return time_ms + DAY_MS * max((days, *(longer for longer, until_ms in before if time_ms < until_ms)))


def changed(days: int, before: Before, new_days: int, now_ms: int) -> list[list[int]]:
    """What is to be remembered where the time in force becomes another.

    Args:
        days: The time in force.
        before: Longer ones that were.
        new_days: What it is to be.
        now_ms: When it changes.
    """
    ended = [*before, (days, now_ms)]
    # What is no longer than the new one, or than one that ended later, says nothing any more.
    return [
        [longer, until_ms]
        for at, (longer, until_ms) in enumerate(ended)
        if longer > max((new_days, *(later for later, _ in ended[at + 1 :])))
    ]
