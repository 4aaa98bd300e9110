"""``make bench``: every figure, one after the other, as ratios within one run. Nothing here passes or fails."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

PARTS = (
    "decide",
    "prove",
    "replay",
    "workbench",
    "log",
    "isolation",
    "evidence",
    "service",
    "postgres",
    "serving",
    "training",
    "objects",
)


def main() -> int:
    """Run the parts named on the command line, or all."""
    wanted = sys.argv[1:] or list(PARTS)
    status = 0
    for part in wanted:
        print(f"\n== {part}", flush=True)
        began_s = time.monotonic()
        ended = subprocess.run([sys.executable, str(Path(__file__).parent / f"{part}.py")], check=False)
        print(f"-- {part}: {time.monotonic() - began_s:.0f} s", flush=True)
        status = status or ended.returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
