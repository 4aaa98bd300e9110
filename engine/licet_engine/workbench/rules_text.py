"""Rules on what a policy must be before anything can be said about what it means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from licet_engine.workbench.rules import Context, Found, Rule
from licet_policies.bounds import verify_text
from licet_policies.bundle import MAX_OWN_CHARS, MAX_OWN_POLICIES, MAX_OWN_STEPS, reserved_id_words
from licet_policies.source import ID_PATTERN, MAX_ID_CHARS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from licet_engine.workbench.checked import CheckedPolicy


def _syntax(context: Context) -> Iterator[Found]:
    for policy in context.all:
        if policy.problem == "syntax" and policy.at is not None:
            yield Found(policy.at, f"this is not Cedar: {policy.message}", policy)


def _template(context: Context) -> Iterator[Found]:
    for policy in context.all:
        if policy.problem == "template" and policy.at is not None:
            yield Found(
                policy.at, "a template decides nothing: write out its principal and resource instead of a slot", policy
            )


def _too_large(context: Context) -> Iterator[Found]:
    for policy in context.all:
        if policy.problem == "too-large" and policy.at is not None:
            yield Found(policy.at, policy.message, policy)
    project = context.project
    if not context.policies:
        return
    first = context.policies[0].written.file.span(0, 0)
    if len(context.policies) > MAX_OWN_POLICIES:
        yield Found(
            first, f"{len(context.policies)} policies in all; a bundle takes at most {MAX_OWN_POLICIES} own ones"
        )
    if len(project.own_text) > MAX_OWN_CHARS:
        yield Found(first, f"{len(project.own_text)} characters in all; a bundle takes at most {MAX_OWN_CHARS}")
    steps = sum(verify_text(policy.written.text, "policy") for policy in context.parsed)
    if steps > MAX_OWN_STEPS:
        yield Found(
            first,
            f"{steps} brackets, operators, accessors and conditions in all; a bundle takes at most {MAX_OWN_STEPS}:"
            " write the policies more simply",
        )


def _named(policy: CheckedPolicy) -> bool:
    return policy.problem is None


def _missing_id(context: Context) -> Iterator[Found]:
    for policy in context.all:
        if _named(policy) and not policy.id:
            yield Found(
                policy.written.span(),
                'bears no @id: give it one by which decisions name it, such as @id("team.no-weekend-promotions")',
                policy,
            )


def _malformed_id(context: Context) -> Iterator[Found]:
    for policy in context.all:
        name = policy.id
        if _named(policy) and name and (len(name) > MAX_ID_CHARS or not ID_PATTERN.fullmatch(name)):
            yield Found(
                policy.written.span(),
                f"{name[:MAX_ID_CHARS]!r}: an id is of lower-case words joined by dots, at most {MAX_ID_CHARS} characters,"
                ' such as "team.no-weekend-promotions"',
                policy,
            )


def _reserved_id(context: Context) -> Iterator[Found]:
    reserved = reserved_id_words()
    for policy in context.policies:
        name = policy.id or ""
        if _named(policy) and "." in name and name.split(".", 1)[0] in reserved:
            yield Found(
                policy.written.span(),
                f"{name!r}: ids that begin with {name.split('.', 1)[0]!r} belong to the platform; begin with another word",
                policy,
            )


def _duplicate_id(context: Context) -> Iterator[Found]:
    for policies in (context.policies, context.invariants):
        first: dict[str, CheckedPolicy] = {}
        for policy in policies:
            name = policy.id
            if not name:
                continue
            if name in first:
                yield Found(
                    policy.written.span(),
                    f"{name!r} is the id of the policy at {first[name].written.span()} already; give each its own",
                    policy,
                )
            else:
                first[name] = policy


def _schema(context: Context) -> Iterator[Found]:
    for policy, span, message in context.mismatches:
        yield Found(span, message, policy)


RULES: Final = (
    Rule("syntax", "error", "A policy is Cedar", _syntax, fixed=True),
    Rule("template", "error", "A policy is no template", _template, fixed=True),
    Rule(
        "too-large",
        "error",
        "A policy, and all of them together, are within the bounds of a bundle",
        _too_large,
        fixed=True,
    ),
    Rule("missing-id", "error", "A policy bears an id", _missing_id, fixed=True),
    Rule("malformed-id", "error", "An id is of lower-case words joined by dots", _malformed_id, fixed=True),
    Rule("reserved-id", "error", "An own policy takes no id of the platform's", _reserved_id, fixed=True),
    Rule("duplicate-id", "error", "Every policy has an id of its own", _duplicate_id, fixed=True),
    Rule("schema", "error", "A policy fits the schema", _schema, fixed=True),
)
