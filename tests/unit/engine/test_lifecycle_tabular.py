"""A file that is no table of ours is refused with what a table is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from licet_engine.domain.errors import InvalidInput
from licet_engine.lifecycle.tabular import Tables

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("text", ["income;deny\n1;no\n2;yes\n", "income,deny\n", "deny\nno\n"])
@pytest.mark.parametrize("protected", [[], ["minor"]])
def test_a_file_without_columns_or_rows_is_refused_in_words(tmp_path: Path, text: str, protected: list[str]) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        Tables().inspect(path, {"label": "deny", "protected": protected})
    assert caught.value.code == "input.csv"
    assert "validation" not in caught.value.message
    assert "comma" in caught.value.message or "column minor is missing" in caught.value.message
