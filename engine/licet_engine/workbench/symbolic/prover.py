"""Properties proved or refuted: one question to the solver for each property and kind of request.

Rules kept:

- Proved means that the solver found every kind of request free of a violation. ``unknown``, a time-out, an expression
  without an encoding, a counterexample that Cedar does not confirm: each is ``Unknown``, which is no pass.
- A counterexample is shown only after Cedar itself confirmed it.
- A counterexample whose numbers a record can hold (below 2**53) is shown rather than another. Where there is none, the other is shown:
  the bound is asked for only after the property was refuted without it, so it can turn no refutation into a pass.
- A property whose premise no request meets is proved, and says that it is vacuous.
- What a policy says is encoded once for a kind of request, whatever the number of properties that ask for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import cvc5

from licet_engine.workbench.symbolic.counterexample import (
    RECORDED,
    Counterexample,
    evaluate,
    extract,
    has_wide_number,
    violates,
)
from licet_engine.workbench.symbolic.encode import Compiler, Encoded
from licet_engine.workbench.symbolic.errors import UnsupportedError
from licet_engine.workbench.symbolic.logic import Logic, Term
from licet_engine.workbench.symbolic.stores import SymbolicStore
from licet_engine.workbench.symbolic.subjects import Property, SinglePolicy, Subject
from licet_engine.workbench.symbolic.types import RequestEnvironment, Schema

__all__ = ["Outcome", "Progress", "Proved", "Prover", "Refuted", "Unknown", "prove"]

DEFAULT_TIME_LIMIT_S: Final = 10.0
"""For one question to the solver; what is shipped takes milliseconds."""


@dataclass(frozen=True)
class Proved:
    """It holds of every request that the schema allows.

    Attributes:
        environments: Kinds of request that were looked at.
        vacuous: No request meets what it is about, so that it says nothing.
    """

    environments: int
    vacuous: bool = False


@dataclass(frozen=True)
class Refuted:
    """It does not hold of a request, which Cedar confirmed."""

    environment: RequestEnvironment
    counterexample: Counterexample
    replayed: bool = True


@dataclass(frozen=True)
class Unknown:
    """Neither is known, which is a failure.

    Attributes:
        reason: What stood in the way.
        environment: The kind of request at which it did.
        internal: The prover contradicts Cedar: a fault of ours, to be reported.
    """

    reason: str
    environment: RequestEnvironment | None = None
    internal: bool = False


Outcome = Proved | Refuted | Unknown


@dataclass(frozen=True)
class Progress:
    """How far a proof has come: kinds of request done, and of how many."""

    done: int
    total: int
    environment: RequestEnvironment


class _Workplace:
    """Everything encoded for one kind of request."""

    def __init__(self, schema: Schema, environment: RequestEnvironment) -> None:
        self.schema = schema
        self.environment = environment
        self.logic = Logic(schema)
        self.store = SymbolicStore(self.logic, environment)
        self._compiler = Compiler(self.logic, self.store)
        self._encoded: dict[str, Encoded | UnsupportedError] = {}
        # By identity: to hash a set is to hash every policy in it. The subject is kept, so that its identity stays its own.
        self._held: dict[int, tuple[Subject, Term]] = {}

    def policy(self, policy: SinglePolicy) -> Encoded:
        """What ``policy`` says."""
        if policy.text not in self._encoded:
            try:
                self._encoded[policy.text] = self._compiler.policy(policy.body)
            except UnsupportedError as error:
                self._encoded[policy.text] = UnsupportedError(f"policy {policy.id}: {error}")
        found = self._encoded[policy.text]
        if isinstance(found, UnsupportedError):
            raise found
        return found

    def holds(self, subject: Subject) -> Term:
        """Where a policy is satisfied, or a set allows."""
        if id(subject) not in self._held:
            self._held[id(subject)] = subject, self._holds(subject)
        return self._held[id(subject)][1]

    def _holds(self, subject: Subject) -> Term:
        logic = self.logic
        if isinstance(subject, SinglePolicy):
            return self.policy(subject).satisfied if subject.may_apply(self.schema, self.environment) else logic.false
        permits: list[Term] = []
        forbids: list[Term] = []
        errs: list[Term] = []
        for policy in subject.applicable(self.schema, self.environment):
            encoded = self.policy(policy)
            (permits if policy.effect == "permit" else forbids).append(encoded.satisfied)
            errs.append(encoded.errs)
        stops = [*forbids, *(errs if subject.semantics == "licet" else [])]
        return logic.and_(logic.or_(*permits), logic.not_(logic.or_(*stops)))

    def errs(self, subject: Subject) -> Term:
        """Where some policy errs."""
        if isinstance(subject, SinglePolicy):
            applicable: Sequence[SinglePolicy] = [subject] if subject.may_apply(self.schema, self.environment) else []
        else:
            applicable = subject.applicable(self.schema, self.environment)
        return self.logic.or_(*(self.policy(policy).errs for policy in applicable))

    def violation(self, property_: Property) -> Term:
        """Where the property does not hold."""
        logic, left, right = self.logic, property_.left, property_.right
        match property_.kind:
            case "never-errors":
                return self.errs(left)
            case "always-allows":
                return logic.not_(self.holds(left))
            case "never-allows":
                return self.holds(left)
        assert right is not None  # noqa: S101  # A property with two sides has two.
        premise = self.holds(left)
        if property_.kind == "equivalent":
            return logic.not_(logic.equal(premise, self.holds(right)))
        if logic.is_false(premise):
            return premise
        return logic.and_(premise, self.holds(right) if property_.kind == "disjoint" else logic.not_(self.holds(right)))

    def solver(self, goal: Term, time_limit_s: float) -> Any:
        """A solver that was told of the hierarchy and of ``goal``."""
        solver = cvc5.Solver(self.logic.tm)
        solver.setOption("produce-models", "true")
        solver.setOption("tlimit-per", str(max(1, int(time_limit_s * 1000))))
        solver.setLogic("ALL")
        for term in (*self.store.enforce(), *self.logic.lemmas, goal):
            solver.assertFormula(term)
        return solver


class Prover:
    """Asks the solver about policies under one schema.

    Args:
        schema: In Cedar's JSON format.
        time_limit_s: For one question to the solver.

    Raises:
        SchemaError: The schema cannot be read.
    """

    def __init__(self, schema: Mapping[str, Any], *, time_limit_s: float = DEFAULT_TIME_LIMIT_S) -> None:
        self.schema = Schema.parse(schema)
        self._time_limit_s = time_limit_s
        self._workplace: _Workplace | None = None

    def environments(self) -> tuple[RequestEnvironment, ...]:
        """Every kind of request that the schema allows."""
        return tuple(self.schema.environments())

    def check(self, property_: Property, environment: RequestEnvironment, *, premise_is_met: bool = False) -> Outcome:
        """Prove or refute one property for one kind of request.

        Several properties of one kind of request share what is encoded, if they are checked one after the other.

        Args:
            property_: What to prove.
            environment: One of ``environments()``.
            premise_is_met: Do not ask whether any request is one that the property is about.
        """
        try:
            return self._check(property_, self._at(environment), premise_is_met=premise_is_met)
        except UnsupportedError as error:
            return Unknown(str(error), environment)
        except RuntimeError as error:
            # cvc5 raises nothing more exact; whatever it is, nothing is proved.
            return Unknown(f"the solver gave up: {error}", environment)

    def prove(
        self, properties: Sequence[Property], progress: Callable[[Progress], None] | None = None
    ) -> list[Outcome]:
        """Prove or refute each property for every kind of request.

        Args:
            properties: What to prove; all of them are taken through one kind of request before the next.
            progress: Called after each kind of request.

        Returns:
            One outcome for each, in order. A property that is refuted is not looked at further.
        """
        environments = self.environments()
        if not environments:
            return [Unknown("the schema allows no request at all") for _ in properties]
        worst: list[Outcome] = [Proved(0, vacuous=True) for _ in properties]
        for done, environment in enumerate(environments, 1):
            for place, property_ in enumerate(properties):
                before = worst[place]
                if not isinstance(before, Refuted):
                    # That a premise is met once is enough; it need not be asked again.
                    met = not (isinstance(before, Proved) and before.vacuous)
                    worst[place] = _worse(before, self.check(property_, environment, premise_is_met=met))
            if progress is not None:
                progress(Progress(done, len(environments), environment))
        return worst

    def _at(self, environment: RequestEnvironment) -> _Workplace:
        if self._workplace is None or self._workplace.environment != environment:
            self._workplace = _Workplace(self.schema, environment)
        return self._workplace

    def _check(self, property_: Property, place: _Workplace, *, premise_is_met: bool) -> Outcome:
        goal = place.violation(property_)
        if not place.logic.is_false(goal):
            solver = place.solver(goal, self._time_limit_s)
            result = solver.checkSat()
            if result.isSat():
                return self._narrowed(property_, place, goal, self._refuted(property_, place, solver))
            if not result.isUnsat():
                return Unknown(f"the solver answered {result}", place.environment)
        return Proved(1, vacuous=not premise_is_met and self._is_vacuous(property_, place))

    def _narrowed(self, property_: Property, place: _Workplace, goal: Term, found: Outcome) -> Outcome:
        """A refutation that can be recorded, if ``found`` cannot and there is one; else ``found``."""
        if not isinstance(found, Refuted) or not has_wide_number(found.counterexample):
            return found
        try:
            solver = place.solver(place.logic.and_(goal, *place.store.within(RECORDED)), self._time_limit_s)
            if not solver.checkSat().isSat():
                return found
            narrow = self._refuted(property_, place, solver)
        except (UnsupportedError, RuntimeError):
            # What was refuted stays refuted, whatever becomes of the search for a nicer request.
            return found
        is_better = isinstance(narrow, Refuted) and not has_wide_number(narrow.counterexample)
        return narrow if is_better else found

    def _is_vacuous(self, property_: Property, place: _Workplace) -> bool:
        """Whether no request of this kind is one that the property is about."""
        if property_.kind not in ("implies", "disjoint"):
            return False
        premise = place.holds(property_.left)
        if premise.isBooleanValue():
            return place.logic.is_false(premise)
        return not place.solver(premise, self._time_limit_s).checkSat().isSat()

    def _refuted(self, property_: Property, place: _Workplace, solver: Any) -> Outcome:
        found = extract(place.logic, place.store, solver, place.environment)
        left = evaluate(property_.left, found, self.schema)
        right = None if property_.right is None else evaluate(property_.right, found, self.schema)
        found = replace(found, left=left, right=right)
        if violates(property_, left, right):
            return Refuted(place.environment, found)
        shown = json.dumps(found.to_json())
        return Unknown(f"Cedar does not confirm the counterexample {shown[:4000]}", place.environment, internal=True)


def prove(
    schema: Mapping[str, Any],
    properties: Iterable[Property],
    *,
    time_limit_s: float = DEFAULT_TIME_LIMIT_S,
    progress: Callable[[Progress], None] | None = None,
) -> list[Outcome]:
    """Prove or refute each property for every request that ``schema`` allows.

    Args:
        schema: In Cedar's JSON format.
        properties: What to prove.
        time_limit_s: For one question to the solver.
        progress: Called after each kind of request.

    Returns:
        One outcome for each property, in order.

    Raises:
        SchemaError: The schema cannot be read.
    """
    return Prover(schema, time_limit_s=time_limit_s).prove(tuple(properties), progress)


def _worse(one: Outcome, other: Outcome) -> Outcome:
    """The outcome of both: a refutation says most, then what is not known."""
    if isinstance(one, Proved) and isinstance(other, Proved):
        return Proved(one.environments + other.environments, one.vacuous and other.vacuous)
    if isinstance(other, Refuted) or isinstance(one, Proved):
        return other
    return one
