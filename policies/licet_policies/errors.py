"""What the policies room raises.

Rules kept: one root; a subclass per reaction of the caller; a stable ``code`` on each.
"""

__all__ = ["LicetPoliciesError", "PackError", "PolicySourceError", "SchemaExtensionError"]


class LicetPoliciesError(Exception):
    """Root of everything this room raises.

    Attributes:
        code: Stable name of the reason, for HTTP bodies, log lines and metrics.
    """

    code = "policies-error"


class PolicySourceError(LicetPoliciesError):
    """Policy text that is refused: its author mends it."""

    code = "policy-refused"


class PackError(LicetPoliciesError):
    """A choice of packs or parameters that is refused: whoever configures the tenant mends it."""

    code = "pack-refused"


class SchemaExtensionError(LicetPoliciesError):
    """What a tenant would add to the schema is refused: its author mends it."""

    code = "schema-extension-refused"
