"""Licet's policies: the Cedar schema, guardrails, role grants and packs, read as package data.

Rules kept: this room is data and what reads it. It evaluates nothing in production; ``licet_policies.cases`` evaluates
the cases that come with the policies.
"""

from licet_policies.bundle import (
    PLATFORM_SOURCES,
    bundle_digest,
    bundle_digest_hex,
    compose,
    guardrails,
    policies_for,
    roles,
    safety_valve_actions,
)
from licet_policies.controls import Control, controls
from licet_policies.errors import LicetPoliciesError, PackError, PolicySourceError, SchemaExtensionError
from licet_policies.extension import Extension, read_extension
from licet_policies.invariants import bundle_invariants, platform_invariants
from licet_policies.packs import Pack, PackChoice, pack, pack_names
from licet_policies.schema import load_schema, resource_types, schema_text
from licet_policies.source import Policy

__all__ = [
    "PLATFORM_SOURCES",
    "Control",
    "Extension",
    "LicetPoliciesError",
    "Pack",
    "PackChoice",
    "PackError",
    "Policy",
    "PolicySourceError",
    "SchemaExtensionError",
    "bundle_digest",
    "bundle_digest_hex",
    "bundle_invariants",
    "compose",
    "controls",
    "guardrails",
    "load_schema",
    "pack",
    "pack_names",
    "platform_invariants",
    "policies_for",
    "read_extension",
    "resource_types",
    "roles",
    "safety_valve_actions",
    "schema_text",
]
