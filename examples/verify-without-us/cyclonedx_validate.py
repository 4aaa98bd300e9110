"""Validates bills of materials strictly, with the library of CycloneDX. Needs `pip install "cyclonedx-python-lib[json-validation]"`.

Usage: python cyclonedx_validate.py BOM.json...
"""

import json
import sys
from pathlib import Path

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator


def main() -> None:
    """Validate every file, or end at the first that is not valid."""
    for path in map(Path, sys.argv[1:]):
        text = path.read_text("utf-8")
        version = json.loads(text)["specVersion"]
        if error := JsonStrictValidator(SchemaVersion.from_version(version)).validate_str(text):
            sys.exit(f"NOT valid: {path.name}: {error}")
        print(f"valid: {path.name}: CycloneDX {version}")


main()
