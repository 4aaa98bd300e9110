"""The path to yes: what could still be got that would turn a deny into an allow.

Rules kept here:

- Only what the asker may read is considered at all: what it may not read can neither be shown nor be told from the answer.
- Start from all of it. If even that would not do, say so, and say what still denies. Else drop one at a time and keep what
  the answer needs, until no single one can be dropped.
- Every answer is a real evaluation, of supposed facts; their number is bounded, and an answer that met the bound says so.
- What cannot be had together (two regions for one run) is tried each for itself.
- Not everything that can be got helps: another region may deny what this one allowed. Where all of it would not do, what
  leaves fewer denials by being left out is left out, and what then still denies is what is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from licet_engine.decide.decision import Decision, Request, decide
from licet_engine.decide.entities import EntityUid, Fact, FactSet
from licet_engine.decide.errors import FactError

if TYPE_CHECKING:
    from licet_engine.decide.bundle import CompiledBundle

MAX_EVALUATIONS = 64


@dataclass(frozen=True, slots=True)
class Change:
    """One difference that an obtainable would make to the facts or to the context.

    Attributes:
        op: ``set`` the value at the path, or ``add`` it to the set that stands there.
        path: Attribute names, at least one; records that are missing on the way are made.
        value: In Cedar's JSON form.
        entity: Whose attributes; None for the context.
    """

    op: Literal["set", "add"]
    path: tuple[str, ...]
    value: Any
    entity: EntityUid | None = None


@dataclass(frozen=True, slots=True)
class Obtainable:
    """Something that could be got: an approval, a passed check, a ticket, budget.

    Attributes:
        name: Such as ``approval:model-risk``, as ``@requires`` names it.
        describe: What to do to get it, for a person.
        patch: What would be true then.
        readable: Whether the asker may read that it exists.
        brings: Facts that the patch names and that may not be among those of the question.
    """

    name: str
    describe: str
    patch: tuple[Change, ...]
    readable: bool = True
    brings: tuple[Fact, ...] = ()

    def to_json(self) -> dict[str, str]:
        """For an answer; without the patch, which holds facts."""
        return {"name": self.name, "describe": self.describe}


@dataclass(frozen=True, slots=True)
class PathToYes:
    """The answer.

    Attributes:
        possible: Whether something was found that would permit.
        steps: What to get; empty if nothing is needed, or nothing would do.
        minimal: Whether it was confirmed that no single step can be left out.
        exhausted: Whether everything that can be had together was tried; if not, a no is only a no so far.
        still: Where it is not possible, the decision with all of it.
        evaluations: How many were made.
    """

    possible: bool
    steps: tuple[Obtainable, ...]
    minimal: bool
    exhausted: bool
    still: Decision | None
    evaluations: int

    @property
    def message(self) -> str:
        """The answer in a sentence."""
        if self.possible:
            return "; then ".join(step.describe for step in self.steps) or "It is permitted as it is."
        if not self.exhausted:
            return "Nothing found that would permit this, though not everything was tried."
        return "No declared fact would do: with all that could be got, what was asked is denied still. Ask for something else, as the advice says."

    def to_json(self) -> dict[str, Any]:
        """For an answer."""
        return {
            "possible": self.possible,
            "steps": [step.to_json() for step in self.steps],
            "minimal": self.minimal,
            "exhausted": self.exhausted,
            "still": None if self.still is None else self.still.to_json(),
            "evaluations": self.evaluations,
            "message": self.message,
        }


def path_to_yes(
    compiled: CompiledBundle,
    request: Request,
    facts: FactSet,
    obtainable: Sequence[Obtainable],
    *,
    max_evaluations: int = MAX_EVALUATIONS,
) -> PathToYes:
    """Find a smallest set of obtainable facts that would permit a request.

    Args:
        compiled: The policies in force.
        request: What was denied.
        facts: What is true now.
        obtainable: What could be got, the most easily got first: the last are dropped first.
        max_evaluations: Bound on the work; at least 2.

    Returns:
        What to get, or that nothing would do.
    """
    search = _Search(compiled, request, facts, max_evaluations)
    now = search.decide(())
    if now.allowed:
        return PathToYes(
            possible=True, steps=(), minimal=True, exhausted=True, still=None, evaluations=search.evaluations
        )
    readable = tuple(item for item in obtainable if item.readable)
    still = now
    for together in _together(readable):
        if search.spent:
            break
        kept, decision = search.without_harm(together)
        if decision.allowed:
            steps, minimal = search.drop(kept)
            return PathToYes(
                possible=True, steps=steps, minimal=minimal, exhausted=True, still=None, evaluations=search.evaluations
            )
        still = min(still, decision, key=lambda denied: len(_denying(denied)))
    return PathToYes(
        possible=False,
        steps=(),
        minimal=False,
        exhausted=not search.spent,
        still=still,
        evaluations=search.evaluations,
    )


def supposed(request: Request, facts: FactSet, items: Sequence[Obtainable]) -> tuple[Request, FactSet]:
    """The request and the facts as they would be with ``items``.

    Raises:
        FactError: A change names an entity that no fact is about, or adds to what is no set.
    """
    brought = {fact.uid: fact for item in items for fact in item.brings if facts.get(fact.uid.key) is None}
    facts = FactSet([*facts, *brought.values()])
    entities: dict[EntityUid, dict[str, Any]] = {}
    context = dict(request.context)
    for change in (change for item in items for change in item.patch):
        if change.entity is None:
            context = _changed(context, change, change.path)
            continue
        fact = facts.get(change.entity.key)
        if fact is None:
            raise FactError(f"an obtainable would change {change.entity}, which no fact is about")
        entity = entities.get(change.entity) or dict(fact.entity)
        entities[change.entity] = {**entity, "attrs": _changed(entity["attrs"], change, change.path)}
    kept = [fact for fact in facts if fact.uid not in entities]
    changed = FactSet([*kept, *(Fact.from_entity(entity) for entity in entities.values())])
    return Request(request.principal, request.action, request.resource, context), changed


def _changed(record: Mapping[str, Any], change: Change, path: Sequence[str]) -> dict[str, Any]:
    """A copy of a record with one change: what is shared with the facts is never written to."""
    name, rest = path[0], path[1:]
    before = record.get(name)
    if rest:
        if before is not None and not isinstance(before, Mapping):
            raise FactError(f"an obtainable would change {'.'.join(change.path)}, and {name} there is no record")
        return {**record, name: _changed(before or {}, change, rest)}
    if change.op == "set":
        return {**record, name: change.value}
    if not isinstance(before, list | None):
        raise FactError(f"an obtainable would add to {'.'.join(change.path)}, which is no set")
    items = before or []
    return {**record, name: items if change.value in items else [*items, change.value]}


def _conflict(one: Obtainable, other: Obtainable) -> bool:
    """Whether two cannot be had together: both set one place, to different values."""
    return any(
        a.entity == b.entity and a.path == b.path and a.value != b.value
        for a in one.patch
        for b in other.patch
        if a.op == b.op == "set"
    )


def _together(items: tuple[Obtainable, ...]) -> Iterator[tuple[Obtainable, ...]]:
    """Every largest choice of items that can be had together, the earlier items first; without conflict, all of them."""
    seen: set[tuple[int, ...]] = set()
    todo = [tuple(range(len(items)))]
    while todo:
        chosen = todo.pop()
        if chosen in seen:
            continue
        seen.add(chosen)
        clash = next(
            ((i, j) for n, i in enumerate(chosen) for j in chosen[n + 1 :] if _conflict(items[i], items[j])), None
        )
        if clash is None:
            yield tuple(items[i] for i in chosen)
        else:
            # Last in, first out: the choice that keeps the earlier of the two is tried first.
            todo += [tuple(i for i in chosen if i != clash[0]), tuple(i for i in chosen if i != clash[1])]


def _denying(decision: Decision) -> frozenset[str]:
    """What denies: the policies that forbid, and what erred."""
    return frozenset((*decision.reasons, *decision.errors))


class _Search:
    """Evaluations of supposed facts, counted."""

    def __init__(self, compiled: CompiledBundle, request: Request, facts: FactSet, max_evaluations: int) -> None:
        self._compiled = compiled
        self._request = request
        self._facts = facts
        self._max_evaluations = max_evaluations
        self.evaluations = 0

    @property
    def spent(self) -> bool:
        """Whether the bound is met."""
        return self.evaluations >= self._max_evaluations

    def decide(self, items: Sequence[Obtainable]) -> Decision:
        """What would be decided with ``items``."""
        self.evaluations += 1
        request, facts = supposed(self._request, self._facts, items)
        return decide(self._compiled, request, facts, remember=False)

    def without_harm(self, items: tuple[Obtainable, ...]) -> tuple[tuple[Obtainable, ...], Decision]:
        """Leave out, one at a time, what fewer policies would deny without; what is left, and what would be decided with it."""
        kept, best = items, self.decide(items)
        for item in reversed(items):
            if best.allowed or self.spent:
                break
            fewer = tuple(other for other in kept if other is not item)
            decision = self.decide(fewer)
            if decision.allowed or _denying(decision) < _denying(best):
                kept, best = fewer, decision
        return kept, best

    def drop(self, items: tuple[Obtainable, ...]) -> tuple[tuple[Obtainable, ...], bool]:
        """Leave out what the answer does not need; whether it is then certain that no single one can go."""
        kept = items
        # Policies may want a thing only beside another, so after a pass that dropped something all are tried again.
        changed = True
        while changed:
            changed = False
            for item in reversed(kept):
                if self.spent:
                    return kept, False
                fewer = tuple(other for other in kept if other is not item)
                if self.decide(fewer).allowed:
                    kept, changed = fewer, True
        return kept, True
