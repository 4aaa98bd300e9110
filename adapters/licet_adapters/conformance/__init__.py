"""Suites that any implementation of a port must pass; third parties run them, with pytest or without.

Without pytest::

    from licet_adapters.conformance import ObjectStoreConformance, run

    run(ObjectStoreConformance("my-objects", MyObjects))     # raises ConformanceFailed, naming every case that failed

With pytest::

    SUITE = ObjectStoreConformance("my-objects", MyObjects)

    @pytest.mark.parametrize("case", SUITE.cases(), ids=str)
    def test_my_objects(case):
        case.run()

A factory takes an ``AdapterContext``, as an entry point's class does. Each case runs in a world of its own: a real
signer with fresh keys in a temporary folder, and a real log. ``ObjectStoreConformance`` and ``RegistryConformance`` go
with ``GuardConformance``, which is told how one act is done; ``TrainingConformance``, ``ChecksConformance`` and
``ServingConformance`` contain it.
"""

from licet_adapters.conformance.checks import ChecksConformance
from licet_adapters.conformance.guards import GuardConformance, GuardedAct
from licet_adapters.conformance.objects import ObjectStoreConformance
from licet_adapters.conformance.registry import RegistryConformance
from licet_adapters.conformance.serving import ServingConformance
from licet_adapters.conformance.suite import Case, ConformanceFailed, Suite, run
from licet_adapters.conformance.tabular import ChecksExample, TrainingExample
from licet_adapters.conformance.training import TrainingConformance
from licet_adapters.conformance.world import World

__all__ = [
    "Case",
    "ChecksConformance",
    "ChecksExample",
    "ConformanceFailed",
    "GuardConformance",
    "GuardedAct",
    "ObjectStoreConformance",
    "RegistryConformance",
    "ServingConformance",
    "Suite",
    "TrainingConformance",
    "TrainingExample",
    "World",
    "run",
]
