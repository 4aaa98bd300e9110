"""The rules of lint, all in one place: ``REGISTRY``.

Rules kept here:

- A rule has an id that is never given to another, a severity, a sentence, and a section of its own in ``docs/policy-lint.md``
  with a bad and a good example; the tests run both.
- A rule that keeps a bundle from being composed cannot be switched off: it is ``fixed``.
- A source of rules is a module with ``RULES``. What needs more than the text, such as a prover, is a further source in
  ``_sources`` and asks the same ``Context``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple

import cedarpy

from licet_attestations import canonical
from licet_engine.workbench.checked import CheckedPolicy, check_policy
from licet_engine.workbench.findings import Severity
from licet_engine.workbench.project import Project
from licet_engine.workbench.spans import Span
from licet_engine.workbench.validation import Mismatch, mismatches

if TYPE_CHECKING:
    from licet_engine.workbench.solver import Solver


class Found(NamedTuple):
    """What a rule found: where, what is wrong and what to do, and in which policy."""

    span: Span
    message: str
    policy: CheckedPolicy | None = None


class Context:
    """What a rule may look at.

    Attributes:
        project: The project.
        policies: Its own policies, each parsed or with what is wrong with it, in the order of the files.
        invariants: Its invariants, likewise.
    """

    def __init__(self, project: Project) -> None:
        self.project = project
        self.policies = tuple(check_policy(written, "policy") for written in project.policy_texts())
        self.invariants = tuple(check_policy(written, "invariant") for written in project.invariant_texts())

    @property
    def all(self) -> tuple[CheckedPolicy, ...]:
        """Policies and invariants."""
        return (*self.policies, *self.invariants)

    @cached_property
    def parsed(self) -> tuple[CheckedPolicy, ...]:
        """The policies that are policies: what there is to say about their meaning."""
        return tuple(policy for policy in self.policies if policy.problem is None)

    @cached_property
    def schema(self) -> cedarpy.Schema:
        """Cedar's handle of the project's schema."""
        return cedarpy.Schema.from_json_str(canonical.dumps(dict(self.project.schema)).decode())

    @cached_property
    def solver(self) -> Solver:
        """The solver, for the rules that take it; it is an extra of its own."""
        from licet_engine.workbench.solver import Solver  # noqa: PLC0415  # Other rules do without the extra.

        return Solver(self.project.schema)

    @cached_property
    def mismatches(self) -> list[Mismatch]:
        """Everything in which policies and invariants do not fit the schema."""
        sound = [policy for policy in self.all if policy.problem is None]
        return mismatches(sound, self.schema, self.project.schema)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        id: Its name, in words.
        severity: Of its findings.
        title: What it demands, as a sentence without its full stop.
        check: Finds where it is broken.
        fixed: Whether it cannot be switched off.
        is_proof: Whether it takes the solver.
    """

    id: str
    severity: Severity
    title: str
    check: Callable[[Context], Iterable[Found]]
    fixed: bool = False
    is_proof: bool = False


def _sources() -> Iterable[tuple[Rule, ...]]:
    # Imported here, since each of them is written with what stands above.
    from licet_engine.workbench import (  # noqa: PLC0415  # As above.
        rules_annotations,
        rules_meaning,
        rules_project,
        rules_proof,
        rules_text,
    )

    return rules_text.RULES, rules_annotations.RULES, rules_meaning.RULES, rules_project.RULES, rules_proof.RULES


def _nothing(_context: Context) -> Iterable[Found]:
    return ()


SUPPRESSION_RULES: Final = (
    Rule("suppression-without-reason", "error", "A rule is switched off with a reason", _nothing, fixed=True),
    Rule("suppression-unknown", "error", "What is switched off is a rule that can be", _nothing, fixed=True),
    Rule("suppression-unused", "warning", "What is switched off for a policy would speak there", _nothing, fixed=True),
)
"""Found by ``lint`` itself, which alone knows what was switched off; here so that they have their id and section."""


def registry() -> Mapping[str, Rule]:
    """Every rule by its id, in the order of the documentation.

    Raises:
        ValueError: Two rules bear one id: a defect of ours.
    """
    found: dict[str, Rule] = {}
    for rule in (*(rule for source in _sources() for rule in source), *SUPPRESSION_RULES):
        if rule.id in found:
            raise ValueError(f"two rules are called {rule.id}")
        found[rule.id] = rule
    return found
