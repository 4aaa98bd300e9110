"""Tables are read strictly and split for good."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from licet_adapters.errors import InputRefused
from licet_adapters.training.data import TableSchema, read_table, split_table

HMDA = Path(__file__).parents[3] / "examples" / "boston-hmda" / "hmda.csv"
HMDA_SCHEMA = TableSchema(
    columns={
        "dir": "number",
        "hir": "number",
        "lvr": "number",
        "ccs": "number",
        "mcs": "number",
        "pbcr": "yes-no",
        "self": "yes-no",
        "single": "yes-no",
        "uria": "number",
        "comdominiom": "number",
        "black": "yes-no",
        "deny": "yes-no",
    },
    label="deny",
    groups=("black",),
    missing="drop",
)
SMALL = TableSchema(columns={"x": "number", "black": "yes-no", "deny": "yes-no"}, label="deny", groups=("black",))


def test_the_example_reads_and_drops_its_one_incomplete_row() -> None:
    table = read_table(HMDA.read_bytes(), HMDA_SCHEMA)
    assert (len(table.rows), table.dropped_lines) == (2380, (2382,))
    assert "dmi" not in table.to_csv().decode().splitlines()[0]
    assert HMDA_SCHEMA.features[-1] == "comdominiom"
    assert len(HMDA_SCHEMA.features) == 10


def test_the_example_is_refused_where_nothing_may_be_missing() -> None:
    strict = HMDA_SCHEMA.model_copy(update={"missing": "refuse"})
    with pytest.raises(InputRefused, match="line 2382, column pbcr: missing"):
        read_table(HMDA.read_bytes(), strict)


def test_the_canonical_form_reads_back_as_itself() -> None:
    table = read_table(HMDA.read_bytes(), HMDA_SCHEMA)
    again = read_table(table.to_csv(), HMDA_SCHEMA)
    assert again.to_csv() == table.to_csv()


@pytest.mark.parametrize(
    ("text", "message", "code"),
    [
        (b"", "empty", "input.csv"),
        (b"x,black,deny\n", "no rows", "input.csv"),
        (b"x,deny\n1,no\n", "line 1: column black is missing", "input.csv"),
        (b"x;black;deny\n1;no;no\n", "is missing; columns are separated by commas", "input.csv"),
        (b"x,x,black,deny\n1,1,no,no\n", "line 1: column x stands there twice", "input.csv"),
        (b"x,black,deny\n1,no,no\n1,no\n", "line 3: 2 cells", "input.csv"),
        (b"x,black,deny\n1,no,no,no\n", "line 2: 4 cells", "input.csv"),
        (b"x,black,deny\n1,no,no\n\n1,no,no\n", "line 3: 0 cells", "input.csv"),
        (b"x,black,deny\none,no,no\n", "line 2, column x: not a number", "input.csv"),
        (b"x,black,deny\n1_0,no,no\n", "line 2, column x: not a finite number", "input.csv"),
        (b"x,black,deny\nnan,no,no\n", "line 2, column x: not a finite number", "input.csv"),
        (b"x,black,deny\n-inf,no,no\n", "line 2, column x: not a finite number", "input.csv"),
        (b"x,black,deny\n1e999,no,no\n", "line 2, column x: not a finite number", "input.csv"),
        (b"x,black,deny\n,no,no\n", "line 2, column x: missing; to leave out the rows that lack a value", "input.csv"),
        (b"x,black,deny\n1,maybe,no\n", "line 2, column black: neither", "input.csv"),
        (b"x,black,deny\n1,NA,no\n", "line 2, column black: missing; a protected column", "input.csv"),
        (b"x,black,deny\n1,no,NaN\n", "line 2, column deny: neither", "input.label"),
        (b"x,black,deny\n1,no,NA\n", "line 2, column deny: the label is missing", "input.label"),
        (b"x,black,deny\n1,no,\n", "line 2, column deny: the label is missing", "input.label"),
        (b"x,black,deny\n1,no,no\n1,no,n", "line 3, column deny: neither", "input.label"),
        (b"x,black,deny\n1,no,no\n1,no,no", "line end", "input.csv"),
        (b'x,black,deny\n"1,no,no\n', "line 2", "input.csv"),
        (b'x,black,deny\n"1"2,no,no\n', "line 2", "input.csv"),
        (b"x,black,deny\n1,no,no\n\xff,no,no\n", "line 3: not UTF-8", "input.csv"),
        (b"x,black,deny\n1\x00,no,no\n", "NUL", "input.csv"),
        (b"x,black,deny\n" + b"1" * 5000 + b",no,no\n", "line 2, column x: more than", "input.csv"),
    ],
)
def test_a_broken_table_is_refused_with_its_line(text: bytes, message: str, code: str) -> None:
    with pytest.raises(InputRefused) as refusal:
        read_table(text, SMALL)
    assert message in str(refusal.value)
    assert refusal.value.code == code


def test_a_missing_label_is_refused_even_where_rows_may_be_dropped() -> None:
    lenient = SMALL.model_copy(update={"missing": "drop"})
    assert read_table(b"x,black,deny\n,no,no\n1,no,no\n", lenient).dropped_lines == (2,)
    with pytest.raises(InputRefused, match="label"):
        read_table(b"x,black,deny\n1,no,NA\n", lenient)


def test_a_message_shows_no_value() -> None:
    with pytest.raises(InputRefused) as refusal:
        read_table(b"x,black,deny\nsecret-name,no,no\n", SMALL)
    assert "secret" not in str(refusal.value)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_table_or_refused(data: bytes) -> None:
    try:
        table = read_table(b"x,black,deny\n" + data, SMALL)
    except InputRefused:
        return
    assert all(len(row) == 3 for row in table.rows)
    assert read_table(table.to_csv(), SMALL).rows == table.rows


def test_the_split_keeps_all_rows_once_in_order_and_stratified() -> None:
    table = read_table(HMDA.read_bytes(), HMDA_SCHEMA)
    split = split_table(table, held_out_micro=400_000, seed=0)
    assert (len(split.train.rows), len(split.held_out.rows)) == (1428, 952)
    assert sorted([*split.train.rows, *split.held_out.rows]) == sorted(table.rows)
    positions = {id(row): number for number, row in enumerate(table.rows)}
    order = [positions[id(row)] for row in split.train.rows]
    assert order == sorted(order)
    for name in ("deny", "black"):
        shares = [part.column(name).count("yes") / len(part.rows) for part in (split.train, split.held_out)]
        assert abs(shares[0] - shares[1]) < 0.002
    assert split.record == {
        "method": "licet-split:v1",
        "seed": 0,
        "held_out_micro": 400_000,
        "train_rows": 1428,
        "held_out_rows": 952,
        "dropped_rows": 1,
    }


def test_the_split_is_fixed_by_its_seed_alone() -> None:
    table = read_table(HMDA.read_bytes(), HMDA_SCHEMA)
    first, same, other = (split_table(table, held_out_micro=400_000, seed=seed) for seed in (0, 0, 1))
    assert first.train.to_csv() == same.train.to_csv()
    assert first.train.to_csv() != other.train.to_csv()


@pytest.mark.parametrize("share", [0, 1_000_000, -1])
def test_a_share_that_holds_out_nothing_or_all_is_refused(share: int) -> None:
    with pytest.raises(InputRefused, match="share"):
        split_table(read_table(b"x,black,deny\n1,no,no\n", SMALL), held_out_micro=share, seed=0)


def test_a_table_too_small_to_split_is_refused() -> None:
    with pytest.raises(InputRefused, match="too small"):
        split_table(read_table(b"x,black,deny\n1,no,no\n", SMALL), held_out_micro=100_000, seed=0)


def test_a_schema_names_its_label_and_groups_among_its_columns() -> None:
    for wrong in ({"label": "gone"}, {"groups": ("x",)}, {"groups": ("deny",)}):
        with pytest.raises(ValueError, match=r"column|label"):
            TableSchema.model_validate({**SMALL.model_dump(), **wrong})


def test_quoted_cells_and_a_byte_order_mark_are_read() -> None:
    table = read_table(b'\xef\xbb\xbf"x","black","deny"\r\n" 1 ","YES","False"\r\n', SMALL)
    assert table.rows == [("1.0", "yes", "no")]
    assert next(csv.reader(io.StringIO(table.to_csv().decode()))) == ["x", "black", "deny"]
