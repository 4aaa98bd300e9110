"""The display of an operation's progress, on a real terminal and where there is none."""

from __future__ import annotations

import os
import pty
import select
import sys
from typing import TYPE_CHECKING

from licet_engine.client import Operation
from licet_engine.commands.live import live_display, status_line
from licet_engine.commands.render import operation_lines, progress_text

if TYPE_CHECKING:
    import pytest

RUNNING = Operation(
    id="1",
    tenant="northbank",
    state="running",
    action="training.launch",
    resource="northbank/run-1\x1b[2J",
    attempt=2,
    progress={"epoch": 12, "epochs": 300, "auc_micro": 751_363},
)


def test_a_line_says_what_runs_which_attempt_and_how_far() -> None:
    line = status_line(RUNNING, 4.4)
    assert line == "training.launch northbank/run-1\ufffd[2J: running · attempt 2 · epoch 12/300, auc 0.751363 · 4 s"


def test_progress_may_be_nested() -> None:
    assert progress_text({"train": {"loss_micro": 500_000}, "step": 3}) == "loss 0.5, step 3"
    assert progress_text({"epoch": 3, "values_micro": {"loss": 250_000}}) == "epoch 3, loss 0.25"


def test_a_terminal_shows_it_live_and_cannot_be_steered(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        with live_display("northbank/1") as update:
            update(RUNNING)
        terminal.flush()
        # A terminal hands over what it has, which may be but a part; what is not there yet comes.
        shown = b""
        while "running · attempt 2".encode() not in shown:
            assert select.select([master], [], [], 10.0)[0], shown
            shown += os.read(master, 1 << 16)
    os.close(master)
    assert b"run-1\x1b[2J" not in shown


def test_without_a_terminal_each_new_state_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with live_display("northbank/1") as update:
        for _ in range(3):
            update(RUNNING)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_end_of_a_failed_operation_names_its_error() -> None:
    failed = Operation(id="1", tenant="t", state="failed", error={"code": "pickle", "message": "it is a pickle"})
    assert "it is a pickle [pickle]" in "\n".join(operation_lines(failed))
