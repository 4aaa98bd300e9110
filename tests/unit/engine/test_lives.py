"""The worker does not die over one operation for ever, and what is no death is not counted as one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from licet_engine.lifecycle.lives import Lives

OPERATION = "0123456789abcdef" * 2
_LIFE = """
import os, signal, sys
from pathlib import Path
from licet_engine.lifecycle.lives import Lives
lives = Lives(Path(sys.argv[1]))
with lives.at_work("northbank", sys.argv[2]) as life:
    print(life.deaths, flush=True)
    if sys.argv[3] == "goes on":
        life.went_on()
    if sys.argv[3] == "told":
        lives.put_down()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def live(folder: Path, how: str = "dies") -> int:
    """A life that ends in the midst of work; return how many deaths it found."""
    done = subprocess.run(
        [sys.executable, "-c", _LIFE, str(folder), OPERATION, how], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    return int(done.stdout)


def test_deaths_in_a_row_are_counted_over_lives(tmp_path: Path) -> None:
    assert [live(tmp_path) for _ in range(4)] == [0, 1, 2, 3]


def test_what_got_further_begins_to_count_anew(tmp_path: Path) -> None:
    assert [live(tmp_path), live(tmp_path), live(tmp_path, "goes on"), live(tmp_path), live(tmp_path)] == [
        0,
        1,
        2,
        1,
        2,
    ]


def test_being_told_to_stop_is_no_death(tmp_path: Path) -> None:
    assert [live(tmp_path, "told") for _ in range(4)] == [0, 0, 0, 0]
    assert [live(tmp_path), live(tmp_path, "told"), live(tmp_path)] == [0, 1, 1]


def test_what_ended_leaves_nothing(tmp_path: Path) -> None:
    live(tmp_path)
    with Lives(tmp_path).at_work("northbank", OPERATION) as life:
        assert life.deaths == 1
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - whatever lies there.


def test_operations_of_one_tenant_are_counted_apart_however_many_are_at_work(tmp_path: Path) -> None:
    lives = Lives(tmp_path)
    operations = [f"{number:032x}" for number in range(8)]

    def work(operation: str) -> None:
        for _ in range(20):
            with lives.at_work("northbank", operation) as life:
                assert life.deaths == 0
                life.write(0)
                assert (tmp_path / f"northbank.{operation}").read_text() == "0"

    with ThreadPoolExecutor(len(operations)) as threads:
        list(threads.map(work, operations))
    assert list(tmp_path.iterdir()) == []


def test_an_operation_is_performed_even_where_nothing_can_be_counted(tmp_path: Path) -> None:
    lives = Lives(tmp_path / "lives")
    (tmp_path / "lives" / f"northbank.{OPERATION}").write_text("")
    with lives.at_work("northbank", OPERATION) as life:
        assert life.deaths == 0
    (tmp_path / "lives").rmdir()
    with lives.at_work("northbank", OPERATION) as life:
        assert life.deaths == 0
