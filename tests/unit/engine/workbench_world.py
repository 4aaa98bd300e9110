"""A policy project for the tests of the workbench, made of texts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

TOML = "version = 1\n"

POLICY = """@id("desk.freeze")
@title("Nothing goes to prod in the freeze")
@advice("Wait.")
@severity("high")
@owner("ops")
forbid (principal is Person, action == Action::"model.download", resource is ModelVersion)
when { resource.tier == "high" && context.now_ms >= 1000 }
unless { resource.authors.contains(principal) || resource.signed };
"""

READ = """@id("desk.read")
@title("Auditors read public data")
@owner("ops")
permit (principal is Person in Role::"auditor", action == Action::"dataset.read", resource is Dataset)
when { resource.restrictions.classification == "public" && !resource.held };
"""

WORLD = """entities:
  Tenant::north: {region: us, suspended: false}
  Tenant::south: {region: us, suspended: false}
  Person::north/ines: {roles: [auditor], tenant: Tenant::north, active: true}
  Person::north/ana: {roles: [data-scientist], tenant: Tenant::north, active: true}
  Dataset::north/d:
    tenant: Tenant::north
    restrictions: {classification: public, protected: false, residency: [], uses: [], expires_at_ms: 1, held: false}
    held: false
    archived: false
    derived: 0
"""

READS = """fixtures: [world.yaml]
tests:
  - name: An auditor reads public data
    principal: Person::north/ines
    action: dataset.read
    resource: Dataset::north/d
    time: 1970-01-01
    set: {Dataset::north/d: {restrictions.expires_at_ms: 9}}
    expect: allow
    because: [desk.read]
"""


def write(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    """Write a project: ``licet.toml`` and what is given."""
    for name, text in {"licet.toml": TOML, **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder
