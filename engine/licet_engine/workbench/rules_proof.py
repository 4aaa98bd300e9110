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
from licet_policies import compose

if TYPE_CHECKING:
    from collections.abc import Iterator

    from licet_engine.workbench.checked import CheckedPolicy
    from licet_engine.workbench.symbolic import SinglePolicy

MAX_PAIRS: Final = 20_000
"""Pairs of policies of one effect that are compared; beyond that it is said that some were not."""
_MAX_CHARS: Final = 300


def _sound(context: Context) -> list[tuple[CheckedPolicy, SinglePolicy]]:
    """The policies about whose meaning the solver can be asked, and as it is asked about them."""
    # By identity: what is compared would be whole trees.
    unsound = {id(mismatch.policy) for mismatch in context.mismatches}
    return [
        (policy, context.solver.policy(policy.written.text, policy.id))
        for policy in context.parsed
        if id(policy) not in unsound and policy.id
    ]


def _untold(policy: CheckedPolicy, what: str, reason: str) -> Found:
    return Found(policy.written.span(), f"whether {what} cannot be told: {reason[:_MAX_CHARS]}", policy)


def _can_err(context: Context) -> Iterator[Found]:
    sound = [(policy, asked) for policy, asked in _sound(context) if policy.effect == "forbid"]
    answers = context.solver.never_err(asked for _, asked in sound)
    for (policy, _), answer in zip(sound, answers, strict=True):
        if answer.word == "no":
            said = f"this can err, and an error means no, whatever it is about: for {answer.told[:_MAX_CHARS]}"
            yield Found(policy.written.span(), said, policy)
        elif answer.word == "unknown":
            yield _untold(policy, "this can err", answer.told)


def _never_applies(context: Context) -> Iterator[Found]:
    sound = _sound(context)
    answers = context.solver.never_apply(asked for _, asked in sound)
    for (policy, _), answer in zip(sound, answers, strict=True):
        if answer.word == "yes":
            yield Found(policy.written.span(), "no request that could be made is one that this applies to", policy)
        elif answer.word == "unknown":
            yield _untold(policy, "this ever applies", answer.told)


def _always_applies(context: Context) -> Iterator[Found]:
    sound = [(policy, asked) for policy, asked in _sound(context) if policy.ast["conditions"]]
    answers = context.solver.always_apply(asked for _, asked in sound)
    for (policy, _), answer in zip(sound, answers, strict=True):
        if answer.word == "yes" and not answer.is_vacuous:
            said = "its conditions hold of every request in its scope: leave them out, or mend them"
            yield Found(policy.written.span(), said, policy)
        elif answer.word == "unknown":
            yield _untold(policy, "its conditions leave some request out", answer.told)


def _shadowed(context: Context) -> Iterator[Found]:
    sound = _sound(context)
    if not sound:
        return
    solver = context.solver
    own = [asked for _, asked in sound]
    # Without its own policies: one of them that is none would keep the bundle from being composed.
    above = compose(context.project.packs, extension=context.project.extension)
    platform = [solver.policy(one["text"], one["id"]) for one in above["policies"] if one["mode"] == "enforce"]
    kinds = {one: solver.kinds(one) for one in (*own, *platform)}
    pairs = [
        (one, other)
        for one in own
        for other in (*platform, *own)
        if other is not one and other.effect == one.effect and kinds[one] and kinds[one] <= kinds[other]
    ]
    answers = dict(zip(pairs[:MAX_PAIRS], solver.apply_wherever(pairs[:MAX_PAIRS]), strict=True))
    covered = {pair for pair, answer in answers.items() if answer.word == "yes" and not answer.is_vacuous}
    place = {one: at for at, one in enumerate(own)}
    for policy, one in sound:
        by = [other for first, other in covered if first is one and _is_told(one, other, place, covered)]
        if by:
            first = min(by, key=lambda other: (place.get(other, -1), other.id))
            said = f"wherever this applies, {first.id} does, too: take one of them away"
            yield Found(policy.written.span(), said, policy)
        elif reason := next((a.told for (first, _), a in answers.items() if first is one and a.word == "unknown"), ""):
            yield _untold(policy, "another says what this says", reason)
    if len(pairs) > MAX_PAIRS:
        said = (
            f"{len(pairs) - MAX_PAIRS} of {len(pairs)} pairs of policies were not compared: lint parts of the project"
        )
        yield Found(sound[0][0].written.span(), said, sound[0][0])


def _is_told(
    one: SinglePolicy,
    other: SinglePolicy,
    place: dict[SinglePolicy, int],
    covered: set[tuple[SinglePolicy, SinglePolicy]],
) -> bool:
    """Whether it is told that ``other`` shadows ``one``: not where both say the same and it comes later, or has the same text."""
    if other not in place:
        return True
    if all(other.body[part] == one.body[part] for part in ("principal", "action", "resource", "conditions")):
        return False
    return place[other] < place[one] or (other, one) not in covered


RULES: Final = (
    Rule("can-err", "error", "A forbid never errs", _can_err, is_proof=True),
    Rule("never-applies", "warning", "A policy applies to some request", _never_applies, is_proof=True),
    Rule("always-applies", "warning", "A policy's conditions leave some request out", _always_applies, is_proof=True),
    Rule("shadowed-policy", "warning", "A policy says what no other says already", _shadowed, is_proof=True),
)
