"""Every command of ``docs/verify-without-us.md`` does what the page says, on the examples that are in the repository.

The page is played by its parts, each after the common beginning, so that what cannot be had for one keeps none of the others.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from played import WrongPage, blocks, play  # The line above finds it.

from foreign_tools import go_with_tlog, installed_npm

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BEGINNING, *PARTS = (
    part for part in (ROOT / "docs" / "verify-without-us.md").read_text("utf-8").split("\n## ") if "\n```sh" in part
)
TITLES = [part.partition("\n")[0] for part in PARTS]


def _node(folder: Path) -> None:
    (folder / "try").mkdir()
    installed_npm(folder / "try")


def _go(_: Path) -> None:
    go_with_tlog()


NEEDS: dict[str, Callable[[Path], None]] = {
    "Signatures, with Sigstore's library": _node,
    "The log, with Go's packages": _go,
}


def played(part: str, tmp_path: Path) -> None:
    folder, state = tmp_path / "auditor", tmp_path / "state"
    folder.mkdir()
    state.mkdir()
    for name in ("docs", "examples"):
        (folder / name).symlink_to(ROOT / name)
    # As an auditor has it: nothing of ours but what is copied, and Python with the libraries that the page names.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LICET_")}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "GOCACHE": str(tmp_path / "go-cache"),
        "npm_config_cache": str(tmp_path / "npm-cache"),
    }
    play(f"{BEGINNING}\n\n{part}", folder, environment, state)


def test_the_page_has_a_part_for_each_tool_that_it_names() -> None:
    assert set(NEEDS) <= set(TITLES)
    assert len(TITLES) == len(set(TITLES)) == 7
    told = "".join(block.commands for part in PARTS for block in blocks(part))
    for tool in ("dsse_verify", "sigstore_verify", "model_signing", "cyclonedx_validate", "tlogverify", "proofbundle"):
        assert tool in told
    assert "licet" not in told.replace("licet/log/", "")
    scripts = [
        path for path in (ROOT / "examples" / "verify-without-us").rglob("*") if path.suffix in {".py", ".mjs", ".go"}
    ]
    assert len(scripts) == 6
    # None of them takes a line of ours.
    assert not [path for path in scripts if "licet_" in path.read_text("utf-8")]


@pytest.mark.parametrize("part", PARTS, ids=TITLES)
def test_the_commands_of_the_page_show_what_it_says(part: str, tmp_path: Path) -> None:
    NEEDS.get(part.partition("\n")[0], lambda _: None)(tmp_path)
    played(part, tmp_path)


def test_a_page_that_shows_something_else_is_found(tmp_path: Path) -> None:
    with pytest.raises(WrongPage, match="shows something else"):
        played(PARTS[0].replace("approval:v1", "approval:v9"), tmp_path)
