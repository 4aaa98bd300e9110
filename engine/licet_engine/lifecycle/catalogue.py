"""Everything that can be asked for, by action."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from licet_engine.lifecycle import (
    approvals,
    breakglass,
    checks,
    data,
    devices,
    models,
    oversight,
    people,
    policy,
    promotion,
    publication,
    serving,
    shadow,
    tickets,
    training,
    webhooks,
)
from licet_engine.lifecycle.verbs import Verb

VERBS: Mapping[str, Verb] = MappingProxyType(
    {
        verb.action: verb
        for family in (
            *(people, devices, breakglass, publication, policy, shadow, data, training, models, checks),
            *(approvals, promotion, tickets, serving, webhooks, oversight),
        )
        for verb in family.VERBS
    }
)
"""Action to verb."""
