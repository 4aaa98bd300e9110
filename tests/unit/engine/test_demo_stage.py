"""What the demo shows: lines that fit a terminal, plain words, and one row per act."""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from licet_engine.client import Answer, DecidingPolicy, Explanation
from licet_engine.demo.stage import Stage, Unexpected, in_words

if TYPE_CHECKING:
    from pathlib import Path

TITLE = "Where more would have to hold than is told in a line, the rest of it stands below and not at the margin"
PATH = {
    "possible": True,
    "message": "a; then b",
    "steps": [{"name": "a", "describe": TITLE}, {"name": "b", "describe": "b"}],
}


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    made = Stage(tmp_path)
    made.console = Console(file=StringIO(), width=80, highlight=False)
    return made


def shown(stage: Stage) -> list[str]:
    file: Any = stage.console.file
    return [line.rstrip() for line in file.getvalue().splitlines()]


def denial() -> Answer:
    return Answer("model.promote", "t/m@1", "d" * 32, allowed=False, policies=(DecidingPolicy("pack.policy", TITLE),))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (True, "yes"),
        (False, "no"),
        ([], "none"),
        (["us", "eu"], "us, eu"),
        (None, "nothing"),
        (8, "8"),
        ("prod", "prod"),
    ],
)
def test_values_are_shown_in_words(value: object, words: str) -> None:
    assert in_words(value) == words


def test_long_lines_hang_under_themselves_and_fit_80_columns(stage: Stage) -> None:
    stage.ask("licet ask promote", denial, allowed=False, by=("pack.policy",))
    lines = shown(stage)
    begin = next(i for i, line in enumerate(lines) if "because" in line)
    assert lines[begin].startswith("   because  pack.policy: Where")
    assert lines[begin + 1].startswith(" " * 12)
    assert lines[begin + 1][12] != " "
    assert max(map(len, lines)) <= 80


def test_the_path_to_yes_is_a_numbered_list(stage: Stage) -> None:
    class Decisions:
        def explain(self, _tenant: str, _identifier: str) -> Explanation:
            return Explanation({}, {"deciding": []}, PATH)

    class Client:
        decision = Decisions()

    client: Any = Client()
    stage._clients["t/ana"] = client
    stage.explain("t/ana", denial())
    lines = shown(stage)
    assert lines[0] == "   path to yes"
    assert lines[1].startswith("     1. Where")
    assert lines[-1] == "     2. b"


def test_the_end_has_a_row_for_each_act_and_every_deviation(stage: Stage) -> None:
    stage.heading("1. The first act.")
    for number in range(5):
        stage.holds(f"value {number}", number, number)
    stage.heading("2. The second act.")
    stage.holds("regions", ["us"], ["us"])
    with pytest.raises(Unexpected):
        stage.holds("signed", found=False, expected=True)
    stage.fail("signed: expected yes, found no")
    file: Any = stage.console.file
    file.truncate(0)
    assert stage.curtain(3.0) == 1
    lines = shown(stage)
    (first,) = [line for line in lines if "The first act" in line]
    (second,) = [line for line in lines if "The second act" in line]
    assert first.split("│")[3].strip() == "5"
    assert second.split("│")[3].strip().startswith("2, 1 not")
    assert any(line.startswith("   not so   signed: expected yes, found no") for line in lines)
    assert not any("value 3" in line for line in lines)
