"""No cell is a formula, whatever stands in it, and with whatever separator the file is read."""

from __future__ import annotations

import csv
import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from licet_engine.evidence.report.sheet import cell
from licet_engine.evidence.report.text import visible

HOSTILE = st.text(
    st.one_of(
        st.sampled_from("=+-@\t\r\n\"',;|: \uff1d\uff0b\uff0d\uff20\u2212\u202e\ufeff\x00"),
        st.characters(),
    ),
    max_size=40,
)


def begins_a_formula(text: str) -> bool:
    text = text.lstrip()
    return unicodedata.normalize("NFKC", text[:1])[:1] in tuple("=+-@") or text[:1] in ("\u2212", "\u2013", "\u2014")


@given(st.lists(HOSTILE, min_size=1, max_size=5))
def test_a_row_comes_back_as_its_cells(values: list[str]) -> None:
    line = ",".join(map(cell, values)) + "\r\n"
    (found,) = list(csv.reader(io.StringIO(line, newline=""), strict=True))
    for back, value in zip(found, values, strict=True):
        assert back.replace("'", "") == visible(value, 512).replace("'", "")
        assert not begins_a_formula(back)
        assert back.isprintable()


@given(st.lists(HOSTILE, min_size=1, max_size=5), st.sampled_from(",;\t|:"), st.booleans())
@pytest.mark.filterwarnings("error")
def test_no_cell_is_a_formula_with_another_separator(values: list[str], separator: str, quoted: bool) -> None:  # noqa: FBT001 - given by Hypothesis.
    line = ",".join(map(cell, values))
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    for row in csv.reader(io.StringIO(line, newline=""), delimiter=separator, quoting=quoting):
        for found in row:
            assert not begins_a_formula(found.lstrip('"'))


def test_the_property_sees_what_it_is_for() -> None:
    assert begins_a_formula(" \uff1d1")
    assert not begins_a_formula("'=1")
