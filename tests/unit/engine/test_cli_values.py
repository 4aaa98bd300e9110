"""What the command line reads, and how values become text."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import click
import pytest

from licet_engine.commands.ask import action_of
from licet_engine.commands.desk import read_token
from licet_engine.commands.options import JSON_PAIR, MOMENT, PAIR, SECONDS, read_json_object, words
from licet_engine.commands.policy import chosen_packs
from licet_engine.commands.text import block, clean, labelled, micro_text, table, time_text, value_text

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("verb", "ref", "action"),
    [
        ("promote", "northbank/credit-risk@1", "model.promote"),
        ("rollback", "northbank/credit-risk@1", "model.roll-back"),
        ("approve", "northbank/credit-risk@1", "model.approve"),
        ("download", "northbank/credit-risk@1", "model.download"),
        ("delete", "northbank/credit-risk@1", "model.delete"),
        ("delete", "northbank/hmda", "dataset.delete"),
        ("register", "northbank/credit-risk@2", "model.register"),
        ("train", "northbank/run-1", "training.launch"),
        ("export", "northbank", "evidence.export"),
        ("administer", "northbank", "tenant.administer"),
        ("administer", "northbank/ana", "person.administer"),
        ("read", "northbank/hmda", "dataset.read"),
        ("endpoint.deploy", "northbank/e", "endpoint.deploy"),
        # The verb alone is plain; what is wrong with the reference, the server says.
        ("promote", "northbank/credit-risk", "model.promote"),
    ],
)
def test_a_short_verb_means_the_action_that_fits_the_resource(verb: str, ref: str, action: str) -> None:
    assert action_of(verb, ref) == action


@pytest.mark.parametrize(("verb", "ref"), [("fly", "northbank/hmda"), ("delete", "northbank"), ("", "northbank/hmda")])
def test_a_verb_that_means_nothing_or_too_much_is_refused_with_the_choices(verb: str, ref: str) -> None:
    with pytest.raises(click.BadParameter, match="use one of"):
        action_of(verb, ref)


def test_every_short_verb_is_an_action_of_the_engine() -> None:
    from licet_engine.commands import ask  # noqa: PLC0415  # Its tables are its own.
    from licet_engine.lifecycle.catalogue import VERBS  # noqa: PLC0415  # As above.

    named = {action for known in (ask._OF_VERSION, ask._OF_NAME, ask._OF_TENANT) for action in known.values()}
    assert named <= set(VERBS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2030-01-01", 1_893_456_000_000),
        ("2030-01-01T00:00:00Z", 1_893_456_000_000),
        ("2030-01-01T01:00:00+01:00", 1_893_456_000_000),
    ],
)
def test_a_date_is_utc_unless_it_says_otherwise(text: str, expected: int) -> None:
    assert MOMENT.convert(text, None, None) == expected


@pytest.mark.parametrize("text", ["01.01.2030", "tomorrow", "", "2030-13-01"])
def test_what_is_no_date_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        MOMENT.convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "expected"), [("90", 90), ("90s", 90), ("15m", 900), ("1.5h", 5400), ("30d", 2_592_000)]
)
def test_lengths_of_time(text: str, expected: float) -> None:
    assert SECONDS.convert(text, None, None) == expected


@pytest.mark.parametrize("text", ["", "s", "-1", "1w", "1 h", "nan"])
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        SECONDS.convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("epochs=300", 300), ("hidden=[32,16]", [32, 16]), ("group=black", "black"), ("a=b=c", "b=c"), ('x="5"', "5")],
)
def test_a_parameter_is_json_where_it_is_json(text: str, expected: Any) -> None:
    assert JSON_PAIR.convert(text, None, None)[1] == expected


@pytest.mark.parametrize("text", ["epochs", "=3", ""])
def test_a_parameter_needs_a_name_and_a_value(text: str) -> None:
    with pytest.raises(click.BadParameter):
        PAIR.convert(text, None, None)


def test_words_may_be_repeated_or_stand_together() -> None:
    assert words(("us,eu", "us", " uk ")) == ["us", "eu", "uk"]


def test_packs_are_chosen_with_mode_and_parameters() -> None:
    chosen = chosen_packs(["sr-11-7:observe", "residency"], [("residency.regions", ["us"])])
    assert chosen == [
        {"name": "sr-11-7", "mode": "observe", "parameters": {}},
        {"name": "residency", "mode": "enforce", "parameters": {"regions": ["us"]}},
    ]


@pytest.mark.parametrize(
    ("packs", "parameters"),
    [(["a:maybe"], []), (["a", "a"], []), ([":observe"], []), (["a"], [("b.x", 1)]), (["a"], [("a", 1)])],
)
def test_a_choice_of_packs_that_makes_no_sense_is_refused(packs: list[str], parameters: list[Any]) -> None:
    with pytest.raises(click.BadParameter):
        chosen_packs(packs, parameters)


@pytest.mark.parametrize("content", [b"[1]", b"{", b"\xff", b""])
def test_a_file_that_holds_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "spec.json"
    file.write_bytes(content)
    with pytest.raises(click.BadParameter, match=r"spec\.json"):
        read_json_object(file, "--spec-file")


# --- tokens -------------------------------------------------------------------------------------------------------------


def test_a_token_is_read_from_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("licet_abc\n")
    file.chmod(0o600)
    assert read_token(file, "licet_other") == "licet_abc"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_token_file_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "token"
    file.write_text("licet_abc\n")
    file.chmod(mode)
    with pytest.raises(click.UsageError, match="chmod 600") as caught:
        read_token(file, "")
    assert "licet_abc" not in caught.value.message


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"a\nb", b"\xff\xfe", b"x" * 5000])
def test_a_file_that_holds_no_token_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(click.UsageError, match="does not hold a token"):
        read_token(file, "")


def test_without_a_token_the_user_is_told_how_to_give_one() -> None:
    with pytest.raises(click.UsageError, match="LICET_TOKEN_FILE"):
        read_token(None, " ")
    assert read_token(None, "licet_abc\n") == "licet_abc"


# --- text ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hostile", ["\x1b[2J", "\x9b31m", "\x07", "a\rb", "\u202egnirts", "\u200b", "\ud800", "\u2066", "\x00"]
)
def test_text_from_elsewhere_cannot_steer_the_terminal(hostile: str) -> None:
    shown = clean(f"before{hostile}after", lines=True) + labelled("x", hostile) + value_text("x", hostile)
    assert all(char.isprintable() for char in shown)
    assert "\n" in clean("a\nb", lines=True)
    assert "\n" not in clean("a\nb")


@pytest.mark.parametrize(
    ("micro", "text"), [(0, "0"), (741_234, "0.741234"), (-500_000, "-0.5"), (2_000_000, "2"), (-1, "-0.000001")]
)
def test_millionths_are_written_as_decimals(micro: int, text: str) -> None:
    assert micro_text(micro) == text


def test_times_are_written_in_utc_and_nonsense_as_it_is() -> None:
    assert time_text(1_893_456_000_000) == "2030-01-01 00:00:00Z"
    assert time_text(1 << 62) == str(1 << 62)


def test_values_are_written_as_their_names_say() -> None:
    assert value_text("expires_at_ms", 1_893_456_000_000) == "2030-01-01 00:00:00Z"
    assert value_text("auc_lower_micro", 700_000) == "0.7"
    assert value_text("digest_hex", "ab" * 32, short=True) == "ab" * 8
    assert value_text("signed", value=True) == "yes"
    assert value_text("roles", []) == "-"
    assert value_text("checks", {"auc_micro": 1}) == "auc=0.000001"
    assert value_text("values_micro", {"loss": 250_000}) == "loss=0.25"
    assert value_text("interval_micro", [250_000, 500_000]) == "0.25, 0.5"


def test_a_table_is_as_wide_as_its_cells() -> None:
    rows = [{"name": "hmda", "expires_at_ms": 0}, {"name": "a-longer-name"}]
    assert table(rows, ["name", "expires_at_ms"]) == [
        "NAME           EXPIRES AT",
        "hmda           1970-01-01 00:00:00Z",
        "a-longer-name  -",
    ]


def test_a_block_indents_what_is_deep() -> None:
    lines = block({"a": 1, "deep": {"b": [1, 2]}, "list": [{"x": 1, "y": 2}, {"x": 3}]})
    assert block({"values_micro": {"loss": 500_000}}) == ["values:", "  loss  0.5"]
    assert lines == ["a  1", "deep:", "  b  1, 2", "list:", "  - x  1", "    y  2", "  - x  3"]


# --- what is imported ---------------------------------------------------------------------------------------------------


def test_the_command_line_starts_without_what_only_servers_and_pipelines_need() -> None:
    heavy = "{'httpx','cedarpy','torch','litestar','sqlmodel','sqlalchemy','pydantic','rich','dbos','numpy','licet_policies'}"
    code = f"import sys, licet_engine.cli; print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert out.stdout.strip() == "[]"
