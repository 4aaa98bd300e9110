"""The policy tutorial leads where it says: its commands, as they stand there, against a fresh service."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from licet_engine.demo.stage import free_port

# Test files are imported each by itself; what plays a page stands beside them.
sys.path.append(str(Path(__file__).parent))
from played import WrongPage, blocks, play, shows  # The line above finds it.

PAGE = (Path(__file__).parents[2] / "docs" / "policy-tutorial.md").read_text("utf-8")
PROGRAMS = Path(sys.executable).parent
SERVE = "    licet serve --init\n"


def playable(page: str) -> str:
    """The page puts the repository's programs on the path; here they are those that run the tests."""
    before = '"$PWD/.venv/bin:'
    assert page.count(before) == 1
    return page.replace(before, f'"{PROGRAMS}:')


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """An empty folder, with a service that was started as the page says, on a port of its own."""
    assert SERVE in PAGE
    folder = tmp_path / "try-licet"
    folder.mkdir()
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LICET_")}
    environment |= {"LICET_URL": f"http://127.0.0.1:{port}", "LICET_ROUTER_PORT": str(free_port())}
    environment["COLUMNS"] = "100"  # What is shown does not depend on whose terminal the tests run in.
    command = [str(PROGRAMS / "licet"), *SERVE.split()[1:], "--port", str(port)]
    with (tmp_path / "serve.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=log, env=environment, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if "licet serves" in line:
                break
        else:
            pytest.fail(f"the service did not start:\n{(tmp_path / 'serve.log').read_text()}")
        yield folder, environment
    finally:
        process.send_signal(signal.SIGTERM)
        process.stdout.close()
        assert process.wait(60) == 0


@pytest.mark.slow
def test_the_tutorial_leads_from_an_empty_folder_to_a_bundle_in_force_and_back(
    folder: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    cwd, environment = folder
    (tmp_path / "state").mkdir()
    play(playable(PAGE), cwd, environment, tmp_path / "state")
    assert (cwd / "review" / "policies" / "data.cedar").read_bytes() == (
        cwd / "policies" / "policies" / "data.cedar"
    ).read_bytes()


def test_every_step_of_the_tutorial_is_among_what_is_run_and_it_is_no_longer_than_it_should_be() -> None:
    commands = "".join(block.commands for block in blocks(PAGE))
    steps = ("init", "lint", "fmt", "test", "coverage", "prove", "bundle", "publish", "show", "diff", "shadow", "flips")
    for step in (*steps, "activate", "rollback"):
        assert f"licet policy {step} " in commands, step
    assert "--suggest" in commands
    assert sum(block.shown is not None for block in blocks(PAGE)) > 15
    assert len(PAGE.splitlines()) <= 450


def without_a_server() -> str:
    """The sections of the page that need none."""
    first, last = PAGE.index("## A project\n"), PAGE.index("## Publication\n")
    return f'```sh\nexport PATH="{PROGRAMS}:$PATH"\n```\n\n' + PAGE[first:last]


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("licet policy fmt policies\nlicet policy lint policies", "licet policy format policies", "ended with 2"),
        ("licet policy init policies", "licet policy init policy", "shows something else"),
        ("resource.restrictions.classification/'", "resource.restrictions.clasification/'", "ended with 1"),
        ("15 of 15 tests pass", "16 of 16 tests pass", "shows something else"),
        ("expect: deny", "expect: allow", "ended with 1"),
        ("data.cedar:7:17", "data.cedar:7:18", "shows something else"),
    ],
)
def test_the_tutorial_with_one_thing_changed_is_refused(before: str, after: str, told: str, tmp_path: Path) -> None:
    page = without_a_server()
    assert before in page
    with pytest.raises(WrongPage, match=told):
        played(page.replace(before, after, 1), tmp_path)


def test_the_tutorial_holds_without_a_server_until_something_is_published(tmp_path: Path) -> None:
    played(without_a_server(), tmp_path)
    assert (tmp_path / "folder" / "bundle.json").is_file()


SMALL = '# A page\n\n```sh\nhere=$(pwd)\nexport THERE=1\n```\n\nThen\n\n```sh\ncd /; test "$here$THERE" != 1\necho "one $THERE"; echo two; echo three >&2\n```\n\n```text\none …\n…\nthree\n```\n\n```sh exit=3\nexit 3\n```\n'


def played(page: str, tmp_path: Path) -> None:
    for name in ("folder", "state"):
        (tmp_path / name).mkdir()
    play(page, tmp_path / "folder", dict(os.environ), tmp_path / "state")


def test_a_page_that_says_what_is_so_is_played_to_its_end(tmp_path: Path) -> None:
    played(SMALL + '\n```sh\ntest "$PWD" = / && touch "$here/end"\n```\n', tmp_path)
    assert (tmp_path / "folder" / "end").exists()


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("here=$(pwd)", "licet policy lnt", "line 4 ended with"),
        ("export THERE=1", "false\nexport THERE=1", "line 4 ended with 1"),
        ('"$here$THERE" != 1', '"$here$THERE" = 1', "line 11 ended with 1"),
        ("echo two", "echo two | grep three", "line 11 ended with 1"),
        ("echo three >&2", "echo four >&2", "line 11 shows something else"),
        ("one …\n…\nthree", "one 1\nthree", "line 11 shows something else"),
        ("one …\n…\nthree", "one …\n…\ntwo", "line 11 shows something else"),
        ("```sh exit=3", "```sh", "line 22 ended with 3"),
        ("exit 3\n", "exit 4\n", "line 22 ended with 4"),
        ("exit 3\n", "(exit 3)\ntrue\n", "line 22 ended with 3"),
        ("```sh exit=3", "```bash", "a block of 'bash'"),
        ("```sh exit=3", "```text", "a block of 'text'"),
        ("exit 3\n```", "exit 3\n", "a fence is not closed"),
    ],
)
def test_a_page_that_says_what_is_not_so_is_refused(before: str, after: str, told: str, tmp_path: Path) -> None:
    assert before in SMALL
    with pytest.raises(WrongPage, match=told):
        played(SMALL.replace(before, after), tmp_path)


def test_what_is_shown_is_compared_line_by_line() -> None:
    assert shows("a  …  c\n…\n", "a  b  c\n")
    assert shows("…\nb\n…\n", "a\nb\nc\nd\n")
    assert not shows("a\n", "a\nb\n")
    assert not shows("a …\n", "a\n")
    assert not shows("a.c\n", "abc\n")
