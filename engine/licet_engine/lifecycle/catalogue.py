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
    erasing,
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
    workload,
)
from licet_engine.lifecycle.verbs import Verb

VERBS: Mapping[str, Verb] = MappingProxyType(
    {
        verb.action: verb
        for family in (
            *(people, devices, breakglass, publication, policy, shadow, data, training, models, checks),
            *(approvals, promotion, tickets, serving, webhooks, workload, oversight, erasing),
        )
        for verb in family.VERBS
    }
)
"""Action to verb."""
