"""Rules that a solver answers: of every request that could be made, not of the text. They are looked for where that is asked for.

Rules kept here:

- Only what fits the schema is asked about: of the rest the schema's own findings tell.
- A policy is shadowed by another of the same effect that applies wherever it does: alone, without the rest of the bundle.
  Of two that say the same the later one is told; those of the same text are told by ``duplicate-policy``.
- What the solver cannot tell is said, and is a finding like what it found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from licet_engine.workbench.rules import Context, Found, Rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from licet_engine.workbench.checked import CheckedPolicy
    from licet_engine.workbench.symbolic import Outcome, Prover, SinglePolicy

MAX_PAIRS: Final = 20_000
"""Pairs of policies of one effect that are compared; beyond that it is said that some were not."""


def _sound(context: Context) -> list[CheckedPolicy]:
    """The policies about whose meaning the solver can be asked."""
    if not context.is_proving:
        return []
    # By identity: what is compared would be whole trees.
    unsound = {id(mismatch.policy) for mismatch in context.mismatches}
    return [policy for policy in context.parsed if id(policy) not in unsound and policy.id]


def _subject(policy: CheckedPolicy) -> SinglePolicy:
    from licet_engine.workbench.symbolic import SinglePolicy  # noqa: PLC0415  # The solver is an extra of its own.

    return SinglePolicy.parse(policy.written.text, policy.id)


def _prover(context: Context) -> Prover:
    from licet_engine.workbench.symbolic import Prover  # noqa: PLC0415  # As above.

    return Prover(context.project.schema)


def _told(outcome: Outcome) -> str | None:
    """Why it is not known; None if it is."""
    from licet_engine.workbench.symbolic import Unknown  # noqa: PLC0415  # As above.

    return outcome.reason if isinstance(outcome, Unknown) else None


def _can_err(context: Context) -> Iterator[Found]:
    from licet_engine.workbench.symbolic import Refuted, never_errors  # noqa: PLC0415  # As above.

    policies = [policy for policy in _sound(context) if policy.effect == "forbid"]
    if not policies:
        return
    outcomes = _prover(context).prove([never_errors(_subject(policy)) for policy in policies])
    for policy, outcome in zip(policies, outcomes, strict=True):
        where = policy.written.span()
        if isinstance(outcome, Refuted):
            left = outcome.counterexample.left
            said = "" if left is None else next(iter(left.errors), "")
            yield Found(
                where,
                f"this can err, and an error means no, whatever it is about: for {outcome.environment}; {said[:200]}",
                policy,
            )
        elif (reason := _told(outcome)) is not None:
            yield Found(where, f"whether this can err cannot be told: {reason[:300]}", policy)


def _never_applies(context: Context) -> Iterator[Found]:
    from licet_engine.workbench.symbolic import Proved, never_allows  # noqa: PLC0415  # As above.

    policies = _sound(context)
    if not policies:
        return
    outcomes = _prover(context).prove([never_allows(_subject(policy)) for policy in policies])
    for policy, outcome in zip(policies, outcomes, strict=True):
        if isinstance(outcome, Proved):
            yield Found(policy.written.span(), "no request that could be made is one that this applies to", policy)
        elif (reason := _told(outcome)) is not None:
            yield Found(policy.written.span(), f"whether this ever applies cannot be told: {reason[:300]}", policy)


def _always_applies(context: Context) -> Iterator[Found]:
    from licet_engine.workbench.symbolic import Proved, SinglePolicy, implies  # noqa: PLC0415  # As above.

    policies = [policy for policy in _sound(context) if policy.ast["conditions"]]
    if not policies:
        return
    asked = []
    for subject in map(_subject, policies):
        scope = {**subject.body, "conditions": []}
        asked.append(implies(SinglePolicy(subject.id, f"{subject.text}\n// its scope", subject.effect, scope), subject))
    for policy, outcome in zip(policies, _prover(context).prove(asked), strict=True):
        if isinstance(outcome, Proved) and not outcome.vacuous:
            yield Found(
                policy.written.span(),
                "its conditions hold of every request in its scope: leave them out, or mend them",
                policy,
            )


def _shadowed(context: Context) -> Iterator[Found]:
    from licet_engine.workbench.symbolic import Proved, SinglePolicy, implies  # noqa: PLC0415  # As above.

    own = [(policy, _subject(policy)) for policy in _sound(context)]
    if not own:
        return
    platform = [
        SinglePolicy.parse(entry["text"], entry["id"])
        for entry in context.project.bundle()["policies"]
        if entry["mode"] == "enforce" and entry["source"] != "tenant"
    ]
    prover = _prover(context)
    kinds = {
        one: frozenset(kind for kind in prover.environments() if one.may_apply(prover.schema, kind))
        for one in (*(subject for _, subject in own), *platform)
    }
    pairs = [
        (at, other)
        for at, (_, subject) in enumerate(own)
        for other in (*platform, *(one for _, one in own))
        if other is not subject and other.effect == subject.effect and kinds[subject] and kinds[subject] <= kinds[other]
    ]
    outcomes = prover.prove([implies(own[at][1], other) for at, other in pairs[:MAX_PAIRS]])
    by: dict[int, list[SinglePolicy]] = {}
    for (at, other), outcome in zip(pairs[:MAX_PAIRS], outcomes, strict=True):
        if isinstance(outcome, Proved) and not outcome.vacuous:
            by.setdefault(at, []).append(other)
    place = {subject: at for at, (_, subject) in enumerate(own)}
    for at, (policy, subject) in enumerate(own):
        shadows = [other for other in by.get(at, ()) if _says_more(other, at, subject, place, by)]
        if shadows:
            yield Found(
                policy.written.span(),
                f"wherever this applies, {shadows[0].id} does, too: take one of them away",
                policy,
            )
    if len(pairs) > MAX_PAIRS:
        left = (
            f"{len(pairs) - MAX_PAIRS} of {len(pairs)} pairs of policies were not compared: lint parts of the project"
        )
        yield Found(own[0][0].written.span(), left, own[0][0])


def _says_more(
    other: SinglePolicy,
    at: int,
    subject: SinglePolicy,
    place: dict[SinglePolicy, int],
    by: dict[int, list[SinglePolicy]],
) -> bool:
    """Whether ``other`` shadows a policy: not where both say the same and it comes later, or has the same text."""
    if other not in place:
        return True
    if other.body["conditions"] == subject.body["conditions"] and all(
        other.body[slot] == subject.body[slot] for slot in ("principal", "action", "resource")
    ):
        return False
    return place[other] < at or subject not in by.get(place[other], ())


RULES: Final = (
    Rule("can-err", "error", "A forbid never errs", _can_err, is_proof=True),
    Rule("never-applies", "warning", "A policy applies to some request", _never_applies, is_proof=True),
    Rule("always-applies", "warning", "A policy's conditions leave some request out", _always_applies, is_proof=True),
    Rule("shadowed-policy", "warning", "A policy says what no other says already", _shadowed, is_proof=True),
)
