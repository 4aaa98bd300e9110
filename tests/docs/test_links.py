"""What the documents point at is there: links, files, tests, make targets and commands."""

import re
from pathlib import Path

import click
import pytest

from licet_engine.cli import cli
from licet_engine.lifecycle.catalogue import VERBS

ROOT = Path(__file__).parents[2]
ROOMS = ("adapters", "attestations", "bench", "docs", "engine", "examples", "policies", "tests")
DOCUMENTS = sorted(
    path
    for path in (*ROOT.glob("*.md"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.md")))
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)
OF_THE_ENGINE = ROOT / "engine" / "licet_engine"
# Written by `licet demo`; no part of the repository.
MADE = ("demo/", "data/")
README = (ROOT / "README.md").read_text("utf-8")

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ +(.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def code_spans(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def command_lines(text: str) -> list[str]:
    """Every `licet ...` and `make ...` in code: spans, indented lines, fenced lines."""
    blocks = re.findall(r"^```(?:sh|bash|console)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += [line for line in text.splitlines() if line.startswith("    ")]
    return [line.strip().removeprefix("$ ").removeprefix(".venv/bin/") for line in [*lines, *code_spans(text)]]


def test_the_documents_are_there() -> None:
    names = {str(path.relative_to(ROOT)) for path in DOCUMENTS}
    assert names >= {
        "README.md",
        "SECURITY.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "docs/architecture.md",
        "docs/threat-model.md",
        "docs/configuration.md",
        "docs/formats.md",
        "docs/cli.md",
    }
    assert not [name for name in names if name.startswith(MADE)]


@each_document
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    broken = []
    text = document.read_text("utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", without_code(text)) + re.findall(
        r"^\[[^\]]+\]: (\S+)$", text, re.MULTILINE
    )
    for target in targets:
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        found = (document.parent / name).resolve() if name else document
        is_there = found.exists() and found.is_relative_to(ROOT)
        if not is_there or (anchor and anchor not in anchors(found.read_text("utf-8"))):
            broken.append(target)
    assert not broken


@each_document
def test_every_file_named_is_there(document: Path) -> None:
    missing = []
    for span in code_spans(document.read_text("utf-8")):
        if "SHA256" in span:  # A file of an evidence archive.
            continue
        is_of_the_repository = re.fullmatch(rf"(?:{'|'.join(ROOMS)}|\.ci)/[\w./*-]*", span)
        is_of_the_engine = re.fullmatch(
            r"(?:api|commands|decide|domain|evidence|lifecycle|log|store)/(?:\w+\.py)?", span
        )
        below = ROOT if is_of_the_repository else OF_THE_ENGINE if is_of_the_engine else None
        # It may be named from the folder of the document too, as in the README of a room.
        if below and not any(list(folder.glob(span.rstrip("/"))) for folder in (below, document.parent)):
            missing.append(span)
    assert not missing


@each_document
def test_every_command_named_is_one(document: Path) -> None:
    unknown = []
    for line in command_lines(document.read_text("utf-8")):
        words = re.match(r"licet ([a-z][a-z-]*)(?: ([a-z][a-z-]*))?(?=\s|$)", line)
        if words is None:
            continue
        command = cli.commands.get(words[1])
        is_known = command is not None and (
            not isinstance(command, click.Group) or words[2] is None or words[2] in command.commands
        )
        if not is_known:
            unknown.append(line)
    assert not unknown


@each_document
def test_every_make_target_named_is_one(document: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = {m[1] for line in command_lines(document.read_text("utf-8")) if (m := re.match(r"make ([a-z]+)\b", line))}
    assert named <= targets


def test_the_readme_is_short() -> None:
    assert len(README.split()) < 600


def test_the_readme_names_the_two_commands_and_how_to_go_on() -> None:
    lines = command_lines(README)
    for begin in ("make demo", "make test", "licet serve --data demo", "licet verify demo/northbank.evidence.zip"):
        assert any(line.startswith(begin) for line in lines), begin


def test_every_option_in_the_readme_is_one_of_its_command() -> None:
    for line in command_lines(README):
        words = line.split()
        if len(words) < 2 or words[0] != "licet" or words[1] not in cli.commands:
            continue
        options = {name for parameter in cli.commands[words[1]].params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, line


def test_every_adr_has_its_number_once_and_the_same_parts() -> None:
    records = sorted((ROOT / "docs" / "adr").glob("*.md"))
    numbers = [int(path.name[:4]) for path in records]
    assert numbers == list(range(1, len(records) + 1))
    for number, path in zip(numbers, records, strict=True):
        text = path.read_text("utf-8")
        assert text.startswith(f"# {number}. ")
        assert re.search(r"^Status: (proposed|accepted|superseded)", text, re.MULTILINE), path
        parts = re.findall(r"^## (.+)$", text, re.MULTILINE)
        assert parts == ["The question", "The decision", "What follows", "What else was considered"], path


def test_the_architecture_tells_which_actions_have_no_verb() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    assert "`key.rotate`" in text
    assert "key.rotate" not in VERBS
    assert not [action for action in VERBS if action.startswith("secret.")]


@each_document
def test_no_document_names_a_folder_of_some_machine_or_an_index_of_packages(document: Path) -> None:
    text = document.read_text("utf-8")
    assert not re.findall(r"(?<![\w/.])/(?:home|root|work|tmp)/\w+", text)
    assert not re.findall(r"index-url[ =]+http", text)
