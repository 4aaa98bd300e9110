"""A symbolic compiler from Cedar to SMT, and what is proved with it: of every request that the schema allows.

``prove`` answers for each property with ``Proved``, ``Refuted`` with a request that Cedar confirmed, or ``Unknown``, which is
no pass. ``bundle_properties`` are those that must hold of a bundle. What a proof does not show is listed in ``LIMITS``.
"""

from licet_engine.workbench.symbolic.counterexample import Counterexample, Evaluated
from licet_engine.workbench.symbolic.errors import InvariantError, SchemaError, SymbolicError, UnsupportedError
from licet_engine.workbench.symbolic.invariants import Invariant, bundle_properties, read_invariants
from licet_engine.workbench.symbolic.limits import LIMITS
from licet_engine.workbench.symbolic.prover import Outcome, Progress, Proved, Prover, Refuted, Unknown, prove
from licet_engine.workbench.symbolic.subjects import (
    PolicySet,
    Property,
    SinglePolicy,
    always_allows,
    disjoint,
    equivalent,
    implies,
    never_allows,
    never_errors,
)
from licet_engine.workbench.symbolic.types import RequestEnvironment

__all__ = [
    "LIMITS",
    "Counterexample",
    "Evaluated",
    "Invariant",
    "InvariantError",
    "Outcome",
    "PolicySet",
    "Progress",
    "Property",
    "Proved",
    "Prover",
    "Refuted",
    "RequestEnvironment",
    "SchemaError",
    "SinglePolicy",
    "SymbolicError",
    "Unknown",
    "UnsupportedError",
    "always_allows",
    "bundle_properties",
    "disjoint",
    "equivalent",
    "implies",
    "never_allows",
    "never_errors",
    "prove",
    "read_invariants",
]
