"""RFC 8785's own examples: those in our subset byte for byte through ours, the others refused by ours."""

import json
from pathlib import Path

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from licet_attestations import canonical
from licet_attestations.errors import FormatError

IN_SUBSET = {"arrays.json", "unicode.json"}
"""The others hold floats or keys beyond ASCII."""


def _expected(vector: Path) -> bytes:
    expected = (vector.parent.parent / "output" / vector.name).read_bytes()
    in_hex = (vector.parent.parent / "outhex" / vector.with_suffix(".txt").name).read_text()
    assert bytes.fromhex(in_hex) == expected
    return expected


@pytest.mark.vector_files("jcs/input/*.json")
def test_canonical_form(vector: Path) -> None:
    data = vector.read_bytes()
    if vector.name in IN_SUBSET:
        assert canonical.dumps(canonical.loads(data)) == _expected(vector)
    else:
        with pytest.raises(FormatError):
            canonical.loads(data)
        with pytest.raises(FormatError):
            canonical.dumps(json.loads(data))
    assert rfc8785.dumps(json.loads(data)) == _expected(vector)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(max_codepoint=127), max_size=6), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(VALUES)
def test_in_the_subset_ours_is_the_very_bytes_of_rfc_8785(value: object) -> None:
    data = canonical.dumps(value)
    assert data == rfc8785.dumps(value)  # type: ignore[arg-type]  # Hypothesis makes JSON values.
    assert canonical.loads(data, canonical=True) == value
