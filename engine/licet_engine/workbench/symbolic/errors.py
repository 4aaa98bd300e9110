"""What the prover refuses, by what its caller can do about it."""

from __future__ import annotations

__all__ = ["InvariantError", "SchemaError", "SymbolicError", "UnsupportedError"]


class SymbolicError(Exception):
    """Root of this package's errors."""

    code = "symbolic-error"


class SchemaError(SymbolicError):
    """A schema that cannot be read: its author mends it."""

    code = "schema-refused"


class InvariantError(SymbolicError):
    """A file of invariants that cannot be read: its author mends it."""

    code = "invariant-refused"


class UnsupportedError(SymbolicError):
    """An expression that has no encoding: nothing is proved of the policy that holds it."""

    code = "unsupported"
