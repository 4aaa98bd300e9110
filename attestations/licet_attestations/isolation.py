"""The isolation answer: what a tenant's log says about others who reached for what is the tenant's.

Rules kept here:

- It is computed from leaf headers, which cannot be erased, and from records where they are still there.
- What cannot be told (an erased record of a foreign decision) is never counted in favour: the answer is then ``unknown``.
- Whoever is of another tenant is decided on in their own tenant's log; in the owner's, it stands as an ``attempt`` with its outcome.
- Operators (tenant ``platform``) are counted apart, action by action; the answer names what they were allowed.
- The answer says what it does not prove.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from licet_attestations.leaf import Leaf

PLATFORM = "platform"
DECISION_KINDS = frozenset({"decision", "attempt"})

Answer = Literal["holds", "broken", "unknown"]

LIMITS: tuple[str, ...] = (
    (
        "It covers what was asked of Licet. Access that went around it (a copy made elsewhere, a leaked file, an administrator "
        "of the machine) leaves no entry; compare with the records of storage and network."
    ),
    (
        "It shows what was decided and recorded. A compromised service could have recorded a false decision; evaluating every "
        "decision again from its record, and witnesses of the log, make that show."
    ),
    (
        "It covers the entries of this range of this tenant's log, up to this checkpoint. Decisions on principals of other tenants "
        "stand in those tenants' logs, which tell the same from the other side."
    ),
)


@dataclass(frozen=True, slots=True)
class Isolation:
    """The answer over a range of a tenant's log.

    Attributes:
        tenant: Whose log.
        foreign: For every other tenant but the operators': its entries by outcome (``allow``, ``deny``, ``erased``,
            ``other`` for what is neither a decision nor an attempt).
        operators: What operators were decided on: counts by action, then outcome.
        outward: Decisions that allowed one of the tenant's own principals something of another tenant's.
    """

    tenant: str
    foreign: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    operators: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    outward: int = 0

    @property
    def answer(self) -> Answer:
        """Whether isolation holds on record."""
        counts = list(self.foreign.values())
        if self.outward or any(c.get("allow", 0) for c in counts):
            return "broken"
        if any(c.get("erased", 0) or c.get("other", 0) for c in counts):
            return "unknown"
        return "holds"

    def sentence(self) -> str:
        """The answer in words."""
        denied = sum(c.get("deny", 0) for c in self.foreign.values())
        actors = ", ".join(sorted(self.foreign))
        match self.answer:
            case "holds":
                asked = f"{denied} times {actors} asked, and was denied" if self.foreign else "no other tenant asked"
                return (
                    f"On record, no decision let another tenant touch anything of {self.tenant!r}, nor {self.tenant!r} anything "
                    f"of another's: {asked}."
                )
            case "broken":
                allowed = sum(c.get("allow", 0) for c in self.foreign.values())
                return (
                    f"Isolation of {self.tenant!r} is broken on record: {allowed} allowed to other tenants, {self.outward} "
                    "allowed to its own on what is another's."
                )
            case "unknown":
                return (
                    f"Whether isolation of {self.tenant!r} holds cannot be told: there are entries of other tenants ({actors}) "
                    "whose records are erased or are no decisions."
                )

    def to_predicate(self) -> dict[str, Any]:
        """The answer as a predicate of type ``urn:licet:isolation:v1``."""
        return {
            "v": 1,
            "tenant": self.tenant,
            "answer": self.answer,
            "sentence": self.sentence(),
            "foreign": {actor: dict(counts) for actor, counts in self.foreign.items()},
            "operators": {action: dict(counts) for action, counts in self.operators.items()},
            "outward": self.outward,
            "does_not_prove": list(LIMITS),
        }


def tenant_of(uid: Any) -> str | None:
    """The tenant that an entity ``{"type", "id"}`` belongs to by its name, or None where its name tells none."""
    if not isinstance(uid, Mapping) or not isinstance(uid.get("id"), str):
        return None
    identifier: str = uid["id"]
    if uid.get("type") == "Tenant":
        return identifier
    tenant, slash, _ = identifier.partition("/")
    return tenant if slash else None


class IsolationCount:
    """Counts a tenant's entries, one after another.

    Args:
        tenant: Whose log they are of.
    """

    def __init__(self, tenant: str) -> None:
        self._tenant = tenant
        self._foreign: dict[str, dict[str, int]] = {}
        self._operators: dict[str, dict[str, int]] = {}
        self._outward = 0

    def take(self, leaf: Leaf, record: Mapping[str, Any] | None) -> None:
        """Count an entry; ``record`` is None where it is erased."""
        outcome = _outcome(leaf, record)
        if leaf.actor == self._tenant:
            if outcome == "allow" and self._tenant != PLATFORM and record is not None:
                self._outward += tenant_of(record.get("resource")) not in (None, self._tenant, PLATFORM)
            return
        if leaf.actor == PLATFORM:
            action = str(record["action"]) if record is not None and "action" in record else leaf.kind
            counts = self._operators.setdefault(action, {})
        else:
            counts = self._foreign.setdefault(leaf.actor, {})
        counts[outcome] = counts.get(outcome, 0) + 1

    def answer(self) -> Isolation:
        """The answer over what was counted."""
        return Isolation(self._tenant, self._foreign, self._operators, self._outward)


def _outcome(leaf: Leaf, record: Mapping[str, Any] | None) -> str:
    if leaf.kind not in DECISION_KINDS:
        return "other"
    if record is None:
        return "erased"
    return "allow" if record.get("decision") == "allow" else "deny"
