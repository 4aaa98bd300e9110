"""A project travels as one document: in one form, and never as what could harm who writes it down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from licet_engine.workbench.document import MAX_DOCUMENT_BYTES, MAX_DOCUMENT_FILES, ProjectDocument
from licet_engine.workbench.errors import FileExists, ProjectError
from licet_engine.workbench.project import load_project
from licet_engine.workbench.scaffold import write_project

CONFIG = ("licet.toml", "version = 1\n")


def document(*files: tuple[str, str]) -> ProjectDocument:
    return ProjectDocument.of([CONFIG, *files])


def test_a_folder_has_one_document_which_writes_the_same_folder(tmp_path: Path) -> None:
    write_project(tmp_path / "a")
    (tmp_path / "a" / "README.md").write_text("not the project's")
    (tmp_path / "a" / "policies" / ".hidden.cedar").write_text("neither")
    first = ProjectDocument.from_folder(tmp_path / "a")
    assert {name for name, _ in first.files} == {
        *("licet.toml", "policies/downloads.cedar", "policies/reading.cedar", "policies/release.cedar"),
        *("invariants/desk.cedar", "tests/downloads.yaml", "tests/fixtures.yaml", "tests/release.yaml"),
    }
    assert sorted(first.write(tmp_path / "b")) == sorted(name for name, _ in first.files)
    again = ProjectDocument.from_folder(tmp_path / "b")
    assert (again, again.digest_hex) == (first, first.digest_hex)
    assert ProjectDocument.from_json(first.to_json()) == first
    assert load_project(tmp_path / "b").bundle() == load_project(tmp_path / "a").bundle()
    with pytest.raises(FileExists):
        first.write(tmp_path / "b")


def test_the_order_of_the_files_does_not_matter_and_every_byte_does() -> None:
    one, other = ("policies/a.cedar", "a"), ("policies/b.cedar", "b")
    assert document(one, other).digest_hex == document(other, one).digest_hex
    assert document(one, other).digest_hex != document(one, ("policies/b.cedar", "c")).digest_hex
    assert document(one).digest_hex != document(("policies/b.cedar", "a")).digest_hex


@pytest.mark.parametrize(
    "name",
    [
        *("../evil.cedar", "policies/../../evil.cedar", "/etc/passwd", "policies//a.cedar", "policies/./a.cedar"),
        *("policies/.hidden.cedar", "policies/.git/a.cedar", "policies", "policies/", "", ".", "licet.toml/a.cedar"),
        *("policies/a.py", "policies/a.yaml", "tests/a.cedar", "other/a.cedar", "a.cedar", "README.md"),
        *("policies\\a.cedar", "policies/a\n.cedar", "policies/\x1b[2J.cedar", "policies/\u202ea.cedar"),
        "policies/" + "a" * 300 + ".cedar",
        "policies/" + "a/" * 8 + "a.cedar",
        "policies/\ud800.cedar",
    ],
)
def test_a_name_that_is_no_file_of_a_project_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ProjectError) as refused:
        document((name, "")).write(tmp_path)
    assert not list(tmp_path.iterdir())
    # What is told of it can be shown and written anywhere.
    str(refused.value).encode()


@pytest.mark.parametrize(
    "files",
    [
        [("policies/a.cedar", ""), ("policies/a.cedar", "")],
        [("policies/a.cedar", ""), ("policies/A.cedar", "")],
        [("policies/a.cedar", ""), ("policies/a.cedar/b.cedar", "")],
        [("licet.toml", "version = 1")],
        [(f"policies/{number}.cedar", "") for number in range(MAX_DOCUMENT_FILES)],
        [("policies/a.cedar", "x" * MAX_DOCUMENT_BYTES)],
        [("policies/a.cedar", "\n" * (MAX_DOCUMENT_BYTES - 300_000)), ("policies/b.cedar", "x" * 290_000)],
        [("policies/a.cedar", "\0")],
        [("policies/a.cedar", "\ufeffforbid")],
        [("policies/a.cedar", "\ud800")],
    ],
    ids=["twice", "by-case", "below-a-file", "config-twice", "many", "large", "escaped", "nul", "mark", "surrogate"],
)
def test_files_that_are_no_project_are_refused(files: list[tuple[str, str]]) -> None:
    with pytest.raises(ProjectError):
        document(*files)


def test_a_project_without_its_config_is_none() -> None:
    with pytest.raises(ProjectError, match=r"licet\.toml"):
        ProjectDocument.of([("policies/a.cedar", "")])


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from(["licet.toml", "policies/a.cedar"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["v", "files", "name", "text", "x"]), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(JSON)
def test_whatever_is_sent_is_a_document_or_is_refused(value: Any) -> None:
    try:
        read = ProjectDocument.from_json(value)
    except ProjectError:
        return
    assert ProjectDocument.from_json(read.to_json()) == read


def test_packs_and_own_policies_make_the_bundle_that_they_always_made(tmp_path: Path) -> None:
    from licet_policies import PackChoice, compose  # noqa: PLC0415  # Nothing else here needs it.

    own = '@id("team.x")\nforbid (principal, action == Action::"run.log", resource);'
    packs = [
        {"name": "sr-11-7", "mode": "observe", "parameters": {"auc_min_micro_low": 610_000}},
        {"name": "residency", "mode": "enforce", "parameters": {"regions": ["us", "eu"]}},
    ]
    ProjectDocument.of_parts(packs, own).write(tmp_path / "p")
    choices = [PackChoice(one["name"], one["mode"], one["parameters"]) for one in packs]  # type: ignore[arg-type]  # As the lists above say.
    assert load_project(tmp_path / "p").bundle() == compose(choices, own)
