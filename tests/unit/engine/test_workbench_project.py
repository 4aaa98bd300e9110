"""A project is foreign input: whatever is wrong with a file of it is told with its place, and nothing else is read."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from licet_engine.workbench.errors import FileExists, ProjectError
from licet_engine.workbench.files import MAX_FILE_BYTES, MAX_FILES, read_text
from licet_engine.workbench.places import line_of
from licet_engine.workbench.project import load_project, parse_config
from licet_engine.workbench.scaffold import write_project
from licet_engine.workbench.yamltext import MAX_VALUES, read_yaml

# Test files are imported each by itself; the project they share stands beside them.
sys.path.append(str(Path(__file__).parent))
from workbench_world import POLICY, write  # The line above finds it.

TOML_MISTAKES = {
    "no TOML": ("version = x\n", "licet.toml:1: is not TOML"),
    "the same key twice": ("version = 1\nversion = 2\n", "licet.toml:2: is not TOML"),
    "no version": ("", "licet.toml: version: must be given"),
    "another version": ("version = 2\n", "licet.toml:1: version: must be 1"),
    "a version that is text": ('version = "1"\n', "licet.toml:1: version: must be 1"),
    "an unknown key": ("version = 1\n\ncolour = 3\n", "licet.toml:3: colour: no such key; there are version, packs"),
    "an unknown key of a pack": (
        "version = 1\n[packs.sr-11-7]\n\nmod = 1\n",
        "licet.toml:4: packs.sr-11-7.mod: no such key; there are mode, parameters",
    ),
    "an unknown mode": (
        'version = 1\n[packs.sr-11-7]\nmode = "off"\n',
        "licet.toml:3: packs.sr-11-7.mode: must be 'enforce' or 'observe'",
    ),
    "an unknown pack": (
        "version = 1\n[packs.nonsense]\n",
        "licet.toml:2: packs.nonsense: no pack is called 'nonsense'",
    ),
    "an unknown parameter": (
        "version = 1\n[packs.sr-11-7.parameters]\nx = 1\n",
        "packs.sr-11-7: pack sr-11-7: no parameter is called x",
    ),
    "a parameter out of bounds": (
        "version = 1\n[packs.sr-11-7.parameters]\n\nauc_min_micro_low = 1\n",
        "licet.toml:4: packs.sr-11-7.parameters.auc_min_micro_low: pack sr-11-7",
    ),
    "a parameter that must be given": (
        "version = 1\n[packs.residency]\n",
        "licet.toml:2: packs.residency: pack residency: parameter regions must be given",
    ),
    "a threshold out of bounds": (
        "version = 1\n[coverage]\nthreshold = 101\n",
        "licet.toml:3: coverage.threshold: must be less than or equal to 100",
    ),
    "a reason that is no text": ("version = 1\n[lint.off]\nsyntax = 1\n", "licet.toml:3: lint.off.syntax: must be a"),
    "a table where there is none": ("version = 1\nschema = 3\n", "licet.toml:2: schema: must be"),
    "depth": (f"version = {'[' * 5000}", "licet.toml: nests too deep"),
    "an integer of many digits": (f"version = {'9' * 5000}", "licet.toml"),
}


@pytest.mark.parametrize("kind", TOML_MISTAKES)
def test_a_mistake_in_licet_toml_is_told_with_file_line_and_key(kind: str) -> None:
    text, told = TOML_MISTAKES[kind]
    with pytest.raises(ProjectError) as refused:
        parse_config(text)
    assert told in str(refused.value)


def test_the_line_of_a_key_is_found_in_tables_dotted_keys_and_quotes() -> None:
    text = 'a = 1\n[b]\nc.d = 2 # x\n["e.f".g] # y\nh = 3\n[[k]]\nl = 1\n'
    assert line_of(text, ("a",)) == 1
    assert line_of(text, ("b",)) == 2
    assert line_of(text, ("b", "c", "d")) == 3
    assert line_of(text, ("e.f", "g", "h")) == 5
    assert line_of(text, ("k", 0, "l")) == 7
    assert line_of(text, ("b", "unknown")) == 2
    assert line_of(text, ("nowhere",)) is None


def test_a_folder_without_licet_toml_is_no_project(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ProjectError):
            load_project(folder)


def test_a_link_out_of_the_project_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.cedar"
    secret.write_text(POLICY)
    root = write(tmp_path / "p", {"policies/a.cedar": POLICY})
    (root / "policies" / "b.cedar").symlink_to(secret)
    with pytest.raises(ProjectError, match=r"policies/b\.cedar: leads out of the project"):
        load_project(root)


def test_a_link_within_the_project_is_a_file_of_it(tmp_path: Path) -> None:
    root = write(tmp_path, {"policies/a.cedar": POLICY})
    (root / "policies" / "b.cedar").symlink_to("a.cedar")
    assert [file.name for file in load_project(root).policies] == ["policies/a.cedar", "policies/b.cedar"]


@pytest.mark.parametrize("name", ["policies", "policies/more"])
def test_a_folder_that_is_a_link_is_refused_and_not_passed_over(tmp_path: Path, name: str) -> None:
    elsewhere = write(tmp_path / "elsewhere", {"a.cedar": POLICY})
    root = write(tmp_path / "p", {"policies/a.cedar": POLICY} if "/" in name else {})
    (root / name).symlink_to(elsewhere)
    with pytest.raises(ProjectError, match="is a link"):
        load_project(root)


def test_licet_toml_that_leads_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text("version = 1\n")
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "licet.toml").symlink_to(tmp_path / "other.toml")
    with pytest.raises(ProjectError, match="leads out"):
        load_project(tmp_path / "p")


def test_a_pipe_holds_nobody_up(tmp_path: Path) -> None:
    root = write(tmp_path, {"policies/a.cedar": POLICY})
    os.mkfifo(root / "policies" / "b.cedar")
    began = time.monotonic()
    with pytest.raises(ProjectError, match="not a regular file"):
        load_project(root)
    assert time.monotonic() - began < 5


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path, {})
    (root / "policies").mkdir()
    (root / "policies" / "a.cedar").symlink_to("a.cedar")
    with pytest.raises(ProjectError, match=r"policies/a\.cedar"):
        load_project(root)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"\xff\xfe\x00", r"policies/a\.cedar:1: is not UTF-8"),
        (b"// x\n\x80", r"policies/a\.cedar:2: is not UTF-8"),
        (b"// x\n\0", r"policies/a\.cedar:2: holds a NUL"),
        (b"\xef\xbb\xbf// x", r"policies/a\.cedar:1: begins with a byte order mark"),
        (b"/" * (MAX_FILE_BYTES + 1), r"policies/a\.cedar: is over 1024 KiB"),
    ],
)
def test_what_is_no_text_within_bounds_is_refused(tmp_path: Path, data: bytes, told: str) -> None:
    with pytest.raises(ProjectError, match=told):
        load_project(write(tmp_path, {"policies/a.cedar": data}))


def test_an_unreadable_file_is_an_error_and_not_left_out(tmp_path: Path) -> None:
    root = write(tmp_path, {})
    # A folder by the name of a file cannot be read as one, whoever runs the test.
    (root / "policies" / "a.cedar").mkdir(parents=True)
    with pytest.raises(ProjectError, match="not a regular file"):
        read_text(root, "policies/a.cedar")
    with pytest.raises(ProjectError, match="cannot be read: No such file"):
        read_text(root, "policies/nothing.cedar")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a//b", "a/../b", "", "a\0b"])
def test_a_path_that_could_lead_out_is_refused_before_it_is_looked_at(tmp_path: Path, name: str) -> None:
    with pytest.raises(ProjectError, match=r"without `\.\.`"):
        read_text(tmp_path, name)


def test_the_number_of_files_and_their_depth_are_bounded(tmp_path: Path) -> None:
    root = write(tmp_path / "many", {f"policies/{i}.cedar": "" for i in range(MAX_FILES + 1)})
    with pytest.raises(ProjectError, match="more than 2000 files"):
        load_project(root)
    deep = write(tmp_path / "deep", {"policies/" + "d/" * 12 + "a.cedar": ""})
    with pytest.raises(ProjectError, match="folders deep"):
        load_project(deep)


def test_a_schema_file_that_licet_toml_does_not_name_is_told(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match=r"schema/a\.cedarschema: is not named in licet\.toml"):
        load_project(write(tmp_path, {"schema/a.cedarschema": "x"}))


def test_a_schema_extension_is_refused_with_its_place(tmp_path: Path) -> None:
    toml = 'version = 1\n[schema]\nextensions = ["schema/a.cedarschema"]\n'
    root = write(tmp_path, {"licet.toml": toml, "schema/a.cedarschema": "namespace A {\n entity V;\n}"})
    with pytest.raises(ProjectError, match=r"schema/a\.cedarschema:2: V: an entity type bears"):
        load_project(root)


@pytest.mark.parametrize("name", ["../a.json", "schema/a.txt", "schema/missing.json"])
def test_a_schema_extension_that_is_no_file_of_the_project_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ProjectError):
        load_project(write(tmp_path, {"licet.toml": f'version = 1\n[schema]\nextensions = ["{name}"]\n'}))


def test_init_overwrites_nothing_and_writes_nothing_beside_it(tmp_path: Path) -> None:
    root = write(tmp_path, {"tests/release.yaml": "mine"})
    (root / "licet.toml").unlink()
    with pytest.raises(FileExists, match=r"tests/release\.yaml"):
        write_project(root)
    assert [path.name for path in root.rglob("*") if path.is_file()] == ["release.yaml"]
    assert (root / "tests" / "release.yaml").read_text() == "mine"


def test_init_does_not_write_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "licet.toml").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExists):
        write_project(tmp_path / "p")
    assert not (tmp_path / "elsewhere").exists()


def test_init_into_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ProjectError, match="name an empty folder"):
            write_project(folder)


YAML_MISTAKES = {
    "an alias to itself": ("a: &a [*a]", "f:1: \\*a stands for nothing"),
    "a key twice": ("a: 1\nb: 2\na: 3", "f:3: 'a' stands here twice"),
    "a tag": ("a: !!python/object/apply:os.system [x]", "f:1: tags"),
    "a fraction": ("a: 1.5", "f:1: 1.5 is a fraction"),
    "a fraction that is none": ("a: .nan", "fraction"),
    "two documents": ("a: 1\n---\nb: 2", "f:2: holds a second document"),
    "nothing": ("", "f:1: is empty"),
    "a comment": ("# x\n", "f:1: is empty"),
    "an open bracket": ("a: [\n", "f:2: is not YAML"),
    "a merge": ("a: &x {b: 1}\nc:\n  <<: *x", "f:3: `<<` is not read"),
    "a key that is a list": ("? [a]\n: 1", "f:1: a key is a text"),
    "a key that is an alias": ("a: &x b\nc:\n  *x : 1", "f:3: a key is a text"),
    "an integer of many digits": (f"a: {'9' * 4000}", "f:1: an integer of more digits"),
    "depth": ("[" * 100_000, "levels deep"),
    "depth by dashes": ("- " * 100_000, "levels deep"),
    "control characters": ("a: \x07", "is not YAML"),
    "many values": ("- 1\n" * (MAX_VALUES + 2), "f:50000: holds more than 50000 values"),
    "many values behind aliases": (
        "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
        + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 40)),
        "f:5: holds more than 50000 values",
    ),
}


@pytest.mark.parametrize("kind", YAML_MISTAKES)
def test_yaml_that_is_no_plain_data_within_bounds_is_refused_soon(kind: str) -> None:
    text, told = YAML_MISTAKES[kind]
    began = time.monotonic()
    with pytest.raises(ProjectError, match=told):
        read_yaml("f", text)
    assert time.monotonic() - began < 5


def test_yaml_is_read_as_version_1_2_has_it_with_the_place_of_each_value() -> None:
    text = 'a: no\nb: [1, -2, "3", true, ~, 2026-01-01, é]\nc: &x {d: 0x1}\ne: *x\n'
    node = read_yaml("f", text)
    assert node.plain() == {
        "a": "no",
        "b": [1, -2, "3", True, None, "2026-01-01", "é"],
        "c": {"d": "0x1"},
        "e": {"d": "0x1"},
    }
    assert (node.at(("b", 6)).line, node.at(("b", 6)).column) == (2, 38)
    assert node.at(("c", "d", "nothing")).line == 3
