"""The OSCAL results of an archive, held against NIST's schema and read by a tool that is not ours.

Source: ``formats/README.md``; compliance-trestle.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from licet_engine.evidence.report import derived
from report_contents import MadeUp

SCHEMA = json.loads(
    Path(__file__).with_name("formats").joinpath("oscal-assessment-results-1.1.3.json").read_text("utf-8")
)
NAMES = ("credit", "<b>*x*</b> [y](javascript:z)\n\u202e", "=1+1", " ", "\u6771" * 700)


def oscal(made: MadeUp) -> bytes:
    return {name: b"".join(chunks) for name, chunks in derived(made)}["oscal.json"]


def pattern(_validator: Any, wanted: str, instance: object, _schema: object) -> Iterator[jsonschema.ValidationError]:
    """Patterns of the schema are those of ECMA 262, with letters and numbers of Unicode."""
    ours = wanted.replace(r"(\p{L}|_)(\p{L}|\p{N}|[.\-_])*", r"([^\W\d_]|_)(\w|[.\-_])*")
    assert r"\p" not in ours
    if isinstance(instance, str) and not re.search(ours, instance):
        yield jsonschema.ValidationError(f"{instance!r} does not match {wanted!r}")


VALIDATOR = jsonschema.validators.extend(jsonschema.Draft7Validator, {"pattern": pattern})(
    SCHEMA, format_checker=jsonschema.Draft7Validator.FORMAT_CHECKER
)


@pytest.mark.parametrize("name", NAMES)
def test_results_are_of_the_schema_of_nist(name: str) -> None:
    VALIDATOR.validate(json.loads(oscal(MadeUp(name, own=OWN))))


OWN = (
    '@id("team.weekend")\n@title("No promotions on weekends")\n@control("House-Rules:7 <b>")\n@severity("high")\n@owner("ana")\n'
    'forbid (principal, action == Action::"model.promote", resource);'
)


def test_results_of_nothing_are_of_the_schema_too() -> None:
    VALIDATOR.validate(json.loads(oscal(MadeUp(rounds=0))))


def test_the_schema_refuses_what_is_none() -> None:
    document = json.loads(oscal(MadeUp()))
    del document["assessment-results"]["results"][0]["findings"][0]["target"]["status"]
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(document)
    document = json.loads(oscal(MadeUp()))
    document["assessment-results"]["results"][0]["findings"][0]["target"]["target-id"] = "1 (a)"
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(document)


@pytest.mark.timeout(200)
def test_compliance_trestle_takes_the_results_in_and_finds_them_valid(tmp_path: Path) -> None:
    trestle = Path(sys.executable).with_name("trestle")
    workspace = tmp_path / "workspace"
    workspace.mkdir()

    def ran(*arguments: str) -> str:
        done = subprocess.run(
            [trestle, *arguments], cwd=workspace, capture_output=True, text=True, timeout=90, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    ran("init", "--local")
    for number, name in enumerate(NAMES[:2]):
        file = tmp_path / f"{number}.json"
        file.write_bytes(oscal(MadeUp(name, own=OWN)))
        ran("import", "-f", str(file), "-o", f"evidence-{number}")
    assert ran("validate", "-a").count("VALID: Model") == 2
