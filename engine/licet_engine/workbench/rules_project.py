"""Rules on the project beside its policies: files, parameters, invariants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from licet_engine.workbench.places import line_of
from licet_engine.workbench.rules import Context, Found, Rule
from licet_engine.workbench.rules_annotations import OF_INVARIANTS
from licet_policies import pack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from licet_engine.workbench.spans import SourceFile, Span


def _empty_file(context: Context) -> Iterator[Found]:
    project = context.project
    for file in (*project.policies, *project.invariants):
        if not any(policy.written.file is file for policy in context.all):
            yield Found(file.span(0, 0), "holds no policy, so it decides nothing: write one, or take the file away")


def _unused_parameter(context: Context) -> Iterator[Found]:
    project = context.project
    for name, chosen in project.config.packs.items():
        declared = pack(name)
        for parameter, value in chosen.parameters.items():
            default = declared.parameters[parameter].get("default")
            if default is not None and declared.check(parameter, value) == declared.check(parameter, default):
                yield Found(
                    line_span(project.config_file, ("packs", name, "parameters", parameter)),
                    f"packs.{name}.parameters.{parameter} is what the pack has by default: take it away",
                )


def line_span(file: SourceFile, keys: tuple[str, ...]) -> Span:
    """The line of a TOML file in which a key stands; the first if it cannot be told."""
    return file.line_span(line_of(file.text, keys) or 1)


def _invariant_form(context: Context) -> Iterator[Found]:
    for policy in context.invariants:
        if policy.problem is not None:
            continue
        borne = [name for name in OF_INVARIANTS if name in policy.annotations]
        if len(borne) != 1:
            yield Found(
                policy.written.span(),
                "an invariant bears either @never, for requests that must never be allowed, or @always",
                policy,
            )
        if policy.effect != "permit":
            yield Found(
                policy.written.span(policy.written.effect),
                "an invariant is a permit that describes requests; what must not be is said by @never",
                policy,
            )


RULES: Final = (
    Rule("empty-file", "warning", "A policy file holds a policy", _empty_file),
    Rule("unused-parameter", "warning", "A parameter of a pack changes something", _unused_parameter),
    Rule("invariant-form", "error", "An invariant is a permit with @never or @always", _invariant_form, fixed=True),
)
