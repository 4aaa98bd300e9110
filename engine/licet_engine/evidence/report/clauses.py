"""The clauses of frameworks that policies in force are mapped to, and what each is called in OSCAL.

Rules kept here:

- A clause is looked at where its pack was enabled in a bundle that decided, or where the tenant's own policies name it.
- What a tenant named is told apart from what is shipped: its words are in no title, and its identifier is made of its digest.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from licet_engine.evidence.report.bundles import Summary
from licet_policies import controls

_MAX_OWN: Final = 100
_NIST: Final = "NIST-SP-800-53"


@dataclass(frozen=True, slots=True)
class Clause:
    """A clause that policies in force enforce.

    Attributes:
        id: Its control id in this document.
        title: In our words; of a clause that a tenant named, none of its words.
        framework: Whose.
        clause: Which.
        policies: Ids of the policies that are mapped to it.
        evidence: What shows it; ours, or empty.
    """

    id: str
    title: str
    framework: str
    clause: str
    policies: frozenset[str]
    evidence: str


def clauses_of(bundles: Mapping[str, Summary]) -> Iterator[Clause]:
    """The clauses that any policy of these bundles is mapped to: shipped ones first, then those that tenants name themselves."""
    present: frozenset[str] = frozenset().union(*(summary.modes for summary in bundles.values()))
    enabled = {"platform"} | {pack for summary in bundles.values() for pack, _, _ in summary.packs}
    for control in controls():
        policies = frozenset((*control.policies, *control.also))
        # A pack's table speaks of guardrails, too, which are always in force: without the pack nobody asked about its clauses.
        if control.pack in enabled and policies & present:
            yield Clause(
                control_id(control.framework, control.clause),
                control.title,
                control.framework,
                control.clause,
                policies,
                control.evidence,
            )
    shipped = {f"{control.framework}:{control.clause}" for control in controls()}
    named: dict[str, set[str]] = {}
    for summary in bundles.values():
        for reference, policies_of in summary.named.items():
            if reference not in shipped and (reference in named or len(named) < _MAX_OWN):
                named.setdefault(reference, set()).update(policies_of)
    for reference, own in sorted(named.items()):
        framework, _, clause = reference.partition(":")
        key = hashlib.sha256(reference.encode("utf-8", "backslashreplace")).hexdigest()[:16]
        title = "A clause that the tenant's own policies name"
        yield Clause(f"own-{key}", title, framework, clause or framework, frozenset(own), "")


def control_id(framework: str, clause: str) -> str:
    """A token for a clause; of NIST SP 800-53 the one of its catalogue."""
    if framework == _NIST:
        return re.sub(r"\(([0-9]+)\)", r".\1", clause.lower())
    return re.sub(r"[^a-z0-9.]+", "-", f"{framework}-{clause}".lower()).strip("-.")
