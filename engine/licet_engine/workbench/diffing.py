"""Two versions of policy compared for everything that could happen: what one allows and the other does not.

Rules kept here:

- Compared is what is decided, for every request that the schema allows: not texts, and not what happened to be asked.
- Each difference is shown with a request that Cedar confirmed: one side allows it, the other does not.
- What cannot be told is said as such, and never counted as the same.
- Where the versions have other schemas, what only one of them can be asked is told apart; the rest is compared under the later one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from licet_engine.workbench.proving import counterexample_json
from licet_engine.workbench.symbolic import PolicySet, Prover, Refuted, SymbolicError, Unknown, implies

if TYPE_CHECKING:
    from licet_engine.workbench.symbolic import Counterexample, RequestEnvironment

Relation = Literal["equivalent", "stricter", "looser", "incomparable", "unknown", "added", "removed"]
RELATIONS: Final[tuple[Relation, ...]] = (
    "looser", "incomparable", "unknown", "added", "removed", "stricter", "equivalent"
)  # fmt: skip
"""In the order of how closely somebody should look."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Requests of one kind that are decided otherwise.

    Attributes:
        principal: The type of who asks.
        now_allowed: Whether they are allowed now; else they were.
        example: One of them.
        because: The policies that decide it now.
        before: The policies that decided it before.
    """

    principal: str
    now_allowed: bool
    example: Counterexample
    because: tuple[str, ...]
    before: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "principal": self.principal,
            "now": "allow" if self.now_allowed else "deny",
            "because": list(self.because),
            "before_because": list(self.before),
            "request": counterexample_json(self.example),
        }


@dataclass(slots=True)
class ActionDiff:
    """One action on one type of resource.

    Attributes:
        action: Its id.
        resource: The type of what it is done to.
        differences: One or two for each type of principal.
        unknown: What could not be told, and why.
        only_in: ``before`` or ``after`` where only one version can be asked this; else empty.
    """

    action: str
    resource: str
    differences: list[Difference] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    only_in: str = ""

    @property
    def relation(self) -> Relation:
        """How the later version stands to the earlier: the strongest that can be said of all types of principal."""
        if self.only_in:
            return "added" if self.only_in == "after" else "removed"
        ways = {difference.now_allowed for difference in self.differences}
        if len(ways) > 1:
            return "incomparable"
        if self.unknown:
            return "unknown"
        return "equivalent" if not ways else "looser" if ways == {True} else "stricter"

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "action": self.action,
            "resource": self.resource,
            "relation": self.relation,
            "differences": [difference.to_json() for difference in self.differences],
            "unknown": self.unknown,
        }


def diff_bundles(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    *,
    time_limit_s: float = 10.0,
    progress: Callable[[int, int], None] | None = None,
) -> list[ActionDiff]:
    """Compare two bundles.

    Args:
        before: As ``licet_policies.compose`` returned it.
        after: The same of the later version.
        time_limit_s: For one question to the solver.
        progress: Told how many kinds of request are compared, and of how many.

    Returns:
        One for each action and type of resource, in the order of `RELATIONS`, then by name.

    Raises:
        SymbolicError: A schema or a policy cannot be read.
    """
    prover = Prover(after["schema"], time_limit_s=time_limit_s)
    environments = prover.environments()
    known = {_kind(one) for one in environments}
    old = (
        known
        if before["schema"] == after["schema"]
        else {_kind(one) for one in Prover(before["schema"]).environments()}
    )
    was, now = PolicySet.of_bundle("before", before), PolicySet.of_bundle("after", after)
    found: dict[tuple[str, str], ActionDiff] = {}
    for done, environment in enumerate(environments, start=1):
        diff = _of(found, environment.action[1], environment.resource)
        if _kind(environment) not in old:
            diff.only_in = "after"
        else:
            _compare(prover, environment, was, now, diff)
        if progress is not None:
            progress(done, len(environments))
    for _, (_, action), resource in sorted(old - known):
        _of(found, action, resource).only_in = "before"
    return sorted(found.values(), key=lambda one: (RELATIONS.index(one.relation), one.action, one.resource))


def _kind(environment: RequestEnvironment) -> tuple[str, tuple[str, str], str]:
    return environment.principal, environment.action, environment.resource


def _of(found: dict[tuple[str, str], ActionDiff], action: str, resource: str) -> ActionDiff:
    return found.setdefault((action, resource), ActionDiff(action, resource))


def _compare(prover: Prover, environment: RequestEnvironment, was: PolicySet, now: PolicySet, diff: ActionDiff) -> None:
    applicable = [{policy.text for policy in one.applicable(prover.schema, environment)} for one in (was, now)]
    if applicable[0] == applicable[1]:
        return  # The same policies: nothing to ask.
    for left, right, now_allowed in ((was, now, False), (now, was, True)):
        try:
            outcome = prover.check(implies(left, right), environment, premise_is_met=True)
        except SymbolicError as error:
            outcome = Unknown(str(error), environment)
        if isinstance(outcome, Refuted):
            example = outcome.counterexample
            sides = [() if side is None else (*side.reasons, *side.errors) for side in (example.left, example.right)]
            old, new = reversed(sides) if now_allowed else sides
            diff.differences.append(Difference(environment.principal, now_allowed, example, new, old))
        elif isinstance(outcome, Unknown):
            diff.unknown.append(f"{environment}: {outcome.reason}")


def counted(diffs: Iterable[ActionDiff]) -> dict[Relation, int]:
    """How many actions and types of resource stand in each relation."""
    counts: dict[Relation, int] = dict.fromkeys(RELATIONS, 0)
    for diff in diffs:
        counts[diff.relation] += 1
    return counts
