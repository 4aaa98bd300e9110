"""Everything that can be asked for, by action."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from licet_engine.lifecycle import (
    breakglass,
    checks,
    data,
    models,
    oversight,
    people,
    policy,
    promotion,
    serving,
    training,
)
from licet_engine.lifecycle.verbs import Verb

VERBS: Mapping[str, Verb] = MappingProxyType(
    {
        verb.action: verb
        for family in (people, breakglass, policy, data, training, models, checks, promotion, serving, oversight)
        for verb in family.VERBS
    }
)
"""Action to verb."""
