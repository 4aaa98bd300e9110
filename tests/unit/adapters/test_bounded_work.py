"""What a tenant sends costs the worker no more than a small multiple of what it is."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from licet_adapters import modelfiles
from licet_adapters.errors import InputRefused
from licet_adapters.modelfiles import inspect_model_files
from licet_adapters.training import data as tables
from licet_adapters.training.data import CsvRecords, TableSchema, read_table, split_table
from licet_adapters.training.spec import training_units
from licet_engine.domain.errors import InvalidInput
from licet_engine.lifecycle.tabular import Tables

HMDA = Path(__file__).parents[3] / "examples" / "boston-hmda" / "hmda.csv"
PARAMETERS = {
    "label": "deny",
    "protected": ["black"],
    "missing": "drop",
    "exclude": ["dmi"],
    "split": {"held_out_micro": 400_000, "seed": 0},
}
_PEAK = """
import resource, sys
from pathlib import Path
from licet_engine.lifecycle.tabular import Tables
path, folder = Path(sys.argv[1]), Path(sys.argv[2])
parameters = {"label": "y", "protected": [], "missing": "refuse", "exclude": [],
              "split": {"held_out_micro": 400_000, "seed": 0}}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
columns = Tables().inspect(path, parameters).columns
Tables().split(path, folder, {**parameters, "columns": columns})
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10)
"""


def peak_bytes(tmp_path: Path, columns: int, size_bytes: int) -> int:
    """What registering and dividing a table of that size takes beside what the interpreter takes."""
    path, folder = tmp_path / f"{columns}.csv", tmp_path / f"{columns}"
    folder.mkdir()
    row = ",".join(["{}", *["7"] * (columns - 1)]) + "\n"
    with path.open("w") as file:
        file.write(",".join(["y", *(f"c{number}" for number in range(1, columns))]) + "\n")
        for number in range(size_bytes // len(row)):
            file.write(row.format("yes" if number % 2 else "no"))
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(path), str(folder)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.parametrize("columns", [4000, 2])
def test_memory_does_not_follow_the_size_of_a_table(tmp_path: Path, columns: int) -> None:
    """Measured was 42 times the size before."""
    size_bytes = 2_000_000
    assert peak_bytes(tmp_path, columns, size_bytes) < 8 * size_bytes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x,deny\n" + b"1" * (tables.MAX_RECORD_BYTES + 1), "bytes in one record"),
        (b"x,deny\n" + b'"\n",' * (tables.MAX_RECORD_BYTES // 4 + 1), "bytes in one record"),
        (b"x," * tables.MAX_COLUMNS + b"deny\n", "columns"),
        (b"x,deny\n" + b"," * tables.MAX_COLUMNS + b"\n", "columns"),
    ],
)
def test_no_record_is_gathered_without_end(content: bytes, message: str) -> None:
    with pytest.raises(InputRefused, match=message):
        list(CsvRecords(io.BytesIO(content)))


def test_what_is_divided_as_it_is_read_is_what_a_table_in_memory_gives(tmp_path: Path) -> None:
    table = Tables().inspect(HMDA, PARAMETERS)
    columns = table.columns
    assert table.rows == 2380
    train, held_out, record = Tables().split(HMDA, tmp_path, {**PARAMETERS, "columns": columns})
    kept = {name: kind for name, kind in columns.items() if name != "dmi"}
    schema = TableSchema.model_validate({"columns": kept, "label": "deny", "groups": ("black",), "missing": "drop"})
    whole = split_table(read_table(HMDA.read_bytes(), schema), held_out_micro=400_000, seed=0)
    assert train.path.read_bytes() == whole.train.to_csv()
    assert held_out.path.read_bytes() == whole.held_out.to_csv()
    assert record == whole.record


def test_what_a_table_loses_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(",a,b,deny\n" + "1,2,many words,yes\n2,3,few,no\n")
    table = Tables().inspect(path, {"label": "deny", "protected": [], "columns": {"a": "number", "deny": "yes-no"}})
    assert (table.columns, table.left_out) == (
        {"a": "number", "deny": "yes-no"},
        ("column 1, which has no name", "b"),
    )
    assert Tables().inspect(path, {"label": "deny", "protected": []}).left_out == table.left_out
    assert Tables().inspect(HMDA, PARAMETERS).left_out == ("column 1, which has no name",)


@pytest.mark.parametrize("name", ["black", "deny"])
def test_a_column_that_every_job_needs_is_not_excluded(tmp_path: Path, name: str) -> None:
    columns = Tables().inspect(HMDA, PARAMETERS).columns
    with pytest.raises(InvalidInput, match=rf"spec\.exclude: {name}"):
        Tables().split(HMDA, tmp_path, {**PARAMETERS, "columns": columns, "exclude": [name]})


def test_a_larger_network_costs_more() -> None:
    small = training_units(2_000, 2_000, 12, [16])
    assert small == training_units(2_000, 2_000, 12, []) == 4
    assert training_units(2_000, 2_000, 12, [2048, 2048]) > 1000 * small
    assert training_units(1, 1, 1, []) == 1


def test_many_tensors_that_read_like_pickles_are_not_all_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each stays below what one may take; together they would take hours."""
    tensors, opcodes = 50, 20_000
    monkeypatch.setattr(modelfiles, "_MAX_OPCODES_OF_ALL", 100_000)
    header = {
        f"t{number:02d}": {
            "dtype": "F32",
            "shape": [opcodes // 4],
            "data_offsets": [number * opcodes, (number + 1) * opcodes],
        }
        for number in range(tensors)
    }
    text = json.dumps(header).encode()
    # `N0` pushes a None and takes it away again: an unpickler would go on to the end of the tensor.
    weights = len(text).to_bytes(8, "little") + text + b"N0" * (opcodes // 2) * tensors
    (tmp_path / "model.safetensors").write_bytes(weights)
    architecture = {
        "v": 1,
        "kind": "mlp",
        "task": "binary-classification",
        "features": [{"name": "a"}],
        "hidden": [],
        "activation": "relu",
        "target": "b",
        "tensors": {name: [opcodes // 4] for name in header},
    }
    (tmp_path / "architecture.json").write_text(json.dumps(architecture))
    with pytest.raises(InputRefused) as refusal:
        inspect_model_files(tmp_path)
    assert refusal.value.code == "model.pickle"
    # Where each is followed by itself, none of them is taken for a pickle, and this one never comes up.
    found = re.search(r"tensor 't(\d\d)'", str(refusal.value))
    assert found is not None
    assert int(found[1]) == 100_000 // opcodes
