"""Vectors from outside: found through LICET_VECTORS, skipped with the reason where they are absent."""

import os
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
VECTORS = Path(os.environ.get("LICET_VECTORS", str(CHECKOUT.parent / "shared" / "vectors")))


def _reason(folder: Path) -> str:
    return f"no vectors at {folder}: set LICET_VECTORS to the folder that holds them"


@pytest.fixture
def vectors() -> Path:
    """The folder of vectors."""
    if not VECTORS.is_dir():
        pytest.skip(_reason(VECTORS))
    return VECTORS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes ``vector`` runs once for each file of its marker ``@pytest.mark.vector_files(glob)``."""
    if "vector" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("vector_files")
    assert marker is not None, "a test that takes `vector` says which files by @pytest.mark.vector_files(glob)"
    paths = sorted(VECTORS.glob(marker.args[0]))
    if not paths:
        skipped = pytest.param(None, marks=pytest.mark.skip(reason=_reason(VECTORS)), id="absent")
        metafunc.parametrize("vector", [skipped])
        return
    metafunc.parametrize("vector", paths, ids=[str(path.relative_to(VECTORS)) for path in paths])


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "vector_files(glob): the vector files that a test runs over")
