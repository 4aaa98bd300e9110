"""How long tests go on that try moments at random.

By default briefly, so that all of them pass on every change. ``TEST_ROUNDS`` (a whole number, 1 by default) has them go on that many
times longer: before a release, or while one of them is looked into.
"""

from __future__ import annotations

import os
from typing import Final

FACTOR: Final = int(os.environ.get("TEST_ROUNDS", "1"))
if FACTOR < 1:
    raise SystemExit(f"TEST_ROUNDS is how many times as many rounds are gone, 1 or more, not {FACTOR}")


def rounds(usual: int) -> int:
    """How many rounds to go, where ``usual`` are enough for every change."""
    return usual * FACTOR
