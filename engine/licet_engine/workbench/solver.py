"""The solver, as lint asks it about single policies.

Needs the extra ``prove``; whoever imports this module decides that it is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from licet_engine.workbench.symbolic import (
    Proved,
    Prover,
    Refuted,
    SinglePolicy,
    implies,
    never_allows,
    never_errors,
)

if TYPE_CHECKING:
    from licet_engine.workbench.symbolic import Outcome, Property, RequestEnvironment


@dataclass(frozen=True, slots=True)
class Answer:
    """What the solver says to a question about every request.

    Attributes:
        word: Whether it is so for every request; ``unknown`` where that cannot be told.
        told: For which kind of request it is not so, and what Cedar says there; or why it is unknown.
        is_vacuous: It is so since no request is one that the question speaks of.
    """

    word: Literal["yes", "no", "unknown"]
    told: str = ""
    is_vacuous: bool = False


class Solver:
    """Asks about single policies under one schema.

    Args:
        schema: In Cedar's JSON format.
        time_limit_s: For one question.
    """

    def __init__(self, schema: Mapping[str, Any], *, time_limit_s: float = 10.0) -> None:
        self._prover = Prover(schema, time_limit_s=time_limit_s)

    def policy(self, text: str, policy_id: str) -> SinglePolicy:
        """A policy to ask about."""
        return SinglePolicy.parse(text, policy_id)

    def kinds(self, policy: SinglePolicy) -> frozenset[RequestEnvironment]:
        """The kinds of request that are in its scope."""
        return frozenset(kind for kind in self._prover.environments() if policy.may_apply(self._prover.schema, kind))

    def never_err(self, policies: Iterable[SinglePolicy]) -> list[Answer]:
        """Whether each errs for no request."""
        return self._ask([never_errors(policy) for policy in policies])

    def never_apply(self, policies: Iterable[SinglePolicy]) -> list[Answer]:
        """Whether each applies to no request."""
        return self._ask([never_allows(policy) for policy in policies])

    def always_apply(self, policies: Iterable[SinglePolicy]) -> list[Answer]:
        """Whether each applies to every request in its scope."""
        asked = []
        for policy in policies:
            scope = {**policy.body, "conditions": []}
            asked.append(implies(SinglePolicy(policy.id, f"{policy.text}\n// its scope", policy.effect, scope), policy))
        return self._ask(asked)

    def apply_wherever(self, pairs: Iterable[tuple[SinglePolicy, SinglePolicy]]) -> list[Answer]:
        """Whether the second of each pair applies wherever the first does."""
        return self._ask([implies(first, second) for first, second in pairs])

    def _ask(self, properties: Sequence[Property]) -> list[Answer]:
        return [_answer(outcome) for outcome in self._prover.prove(properties)]


def _answer(outcome: Outcome) -> Answer:
    if isinstance(outcome, Proved):
        return Answer("yes", is_vacuous=outcome.vacuous)
    if isinstance(outcome, Refuted):
        left = outcome.counterexample.left
        said = "" if left is None else next(iter(left.errors), "")
        return Answer("no", f"{outcome.environment}; {said}" if said else str(outcome.environment))
    return Answer("unknown", outcome.reason)
