"""Bundles of cases, composed once."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

# What tests of policies share is found by its bare name.
sys.path.insert(0, str(Path(__file__).parent))

from licet_policies.cases import Case, bundle_of

_BY_KEY: dict[str, dict[str, Any]] = {}


def _bundle(case: Case) -> dict[str, Any]:
    key = json.dumps([case.packs, case.body.get("own", "")])
    if key not in _BY_KEY:
        _BY_KEY[key] = bundle_of(case)
    return _BY_KEY[key]


@pytest.fixture(scope="session")
def bundle_for() -> Any:
    """Give the bundle of a case; cases with the same choices share it."""
    return _bundle
