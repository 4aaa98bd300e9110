"""What a policy bundle is, in a few words: its packs, how many policies of which source, and the modes of those that are asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from licet_engine.evidence.report.rows import text
from licet_policies import PLATFORM_SOURCES, controls
from licet_policies.errors import PolicySourceError
from licet_policies.source import parse_policies

_MAX_PACKS: Final = 40
_MAX_PARSED: Final = 500
"""Policies of a tenant's own that are parsed for the clause that they name."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A bundle.

    Attributes:
        digest_hex: Its digest.
        packs: Name, version and mode of each.
        packs_more: How many more there are.
        sources: Policies by source.
        modes: ``enforce`` or ``observe`` of those policies that were asked for, or that name a clause, by their ids.
        titles: Title of those policies that were asked for.
        named: Clauses that the tenant's own policies name with ``@control``, each with the ids of these policies.
    """

    digest_hex: str
    packs: tuple[tuple[str, str, str], ...]
    packs_more: int
    sources: Counter[str]
    modes: Mapping[str, str]
    titles: Mapping[str, str]
    named: Mapping[str, tuple[str, ...]]


def mapped_policies() -> frozenset[str]:
    """Ids of all shipped policies that are mapped to a clause of a framework."""
    return frozenset(policy for control in controls() for policy in (*control.policies, *control.also))


def summary_of(digest_hex: str, document: Mapping[str, Any], wanted: frozenset[str]) -> Summary:
    """Summarise a bundle.

    Args:
        digest_hex: Its digest.
        document: It.
        wanted: Ids of policies whose modes and titles are asked for.
    """
    packs = [p for p in _list(document, "packs") if isinstance(p, Mapping)]
    sources: Counter[str] = Counter()
    modes: dict[str, str] = {}
    titles: dict[str, str] = {}
    named: dict[str, list[str]] = {}
    parsed = 0
    for policy in _list(document, "policies"):
        if not isinstance(policy, Mapping):
            continue
        identifier, source, body = (text(policy, name) for name in ("id", "source", "text"))
        sources[source if source in {*PLATFORM_SOURCES, "tenant"} else "pack"] += 1
        own = source == "tenant" and "@control" in body and parsed < _MAX_PARSED
        if identifier not in wanted and not own:
            continue
        modes[identifier] = text(policy, "mode")
        parsed += own
        notes = _annotations(body, source)
        if "title" in notes:
            titles[identifier] = notes["title"]
        if own and notes.get("control"):
            named.setdefault(notes["control"], []).append(identifier)
    return Summary(
        digest_hex=digest_hex,
        packs=tuple((text(p, "name"), text(p, "version"), text(p, "mode")) for p in packs[:_MAX_PACKS]),
        packs_more=max(0, len(packs) - _MAX_PACKS),
        sources=sources,
        modes=modes,
        titles=titles,
        named={clause: tuple(ids) for clause, ids in named.items()},
    )


def _list(document: Mapping[str, Any], name: str) -> list[Any]:
    value = document.get(name)
    return value if isinstance(value, list) else []


def _annotations(body: str, source: str) -> Mapping[str, str]:
    try:
        policies = parse_policies(body, source)
    except PolicySourceError:
        return {}
    return policies[0].annotations if policies else {}
