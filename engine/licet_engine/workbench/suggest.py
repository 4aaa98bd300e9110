"""``coverage --suggest``: the cases that tests lack, found by the solver and written as tests.

Rules kept here:

- A request is looked for that Cedar would come to the missing outcome with: within the policy's scope, past what is asked before it.
- An ordinary request is looked for first: somebody with a role, on what is of their own tenant. Where none comes to it, any will do.
- What the solver found is made into facts that a person can read and the service would take: names in place of empty ones, and no
  number beyond what a fact may hold. Then it is decided and measured like any test; what does not reach what it was looked for is not suggested.
- What is expected of it is what the bundle decides today: whether that is right, its reader says. A case is written as a file of its own.
- That no request reaches an outcome is told: then there is nothing to test, and perhaps something to mend.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import yaml

from licet_engine.decide.conjuncts import clauses
from licet_engine.decide.entities import quoted
from licet_engine.workbench.cases import Asked, Case
from licet_engine.workbench.coverage import Gap, coverage
from licet_engine.workbench.symbolic import Proved, Prover, Refuted, SinglePolicy, never_allows
from licet_engine.workbench.testing import Runner
from licet_engine.workbench.trees import entities_named, texts

if TYPE_CHECKING:
    from licet_engine.decide import Policy
    from licet_engine.workbench.project import Project
    from licet_engine.workbench.symbolic import Counterexample, Outcome

# Of who is deactivated, or of a suspended tenant, a tenant's own policies are not asked.
_HEARD: Final = '@id("workbench.heard") permit (principal, action, resource) when { principal.active && !principal.tenant.suspended };'
SUGGESTED_FOLDER: Final = "tests/suggested"
_LIMIT: Final = (1 << 53) - 1
_ROLE: Final = "Role"


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A test for a gap, or why there is none.

    Attributes:
        gap: What is not covered.
        name: Of the file, from the root of the project; empty if there is no test.
        text: The file.
        reason: Why there is no test; empty if there is one.
    """

    gap: Gap
    name: str = ""
    text: str = ""
    reason: str = ""


def suggest(project: Project, runner: Runner, gaps: Sequence[Gap]) -> Iterator[Suggestion]:
    """Look for a test for each gap; one that covers several is suggested for the first of them.

    Args:
        project: The project.
        runner: Decides its cases.
        gaps: As ``coverage`` found them.
    """
    search = _Search(project, runner)
    open_ = list(gaps)
    for number, gap in enumerate(gaps, start=1):
        if gap in open_:
            suggestion, reached = search.test_for(gap, number)
            open_ = [one for one in open_ if one not in reached]
            yield suggestion


class _Search:
    """Looks for tests of one project.

    Args:
        project: The project.
        runner: Decides its cases.
    """

    def __init__(self, project: Project, runner: Runner) -> None:
        self._project = project
        self._runner = runner
        self._prover = Prover(project.schema)
        self._own = {policy.id: policy for policy in runner.compiled.policies if policy.source == "tenant"}
        # Names that a policy mentions must stay as they are.
        self._literals = texts([policy.ast for policy in runner.compiled.policies])
        self._ordinary = _ordinary(runner)
        self._every = set(coverage(project, runner.compiled, []).gaps)

    def test_for(self, gap: Gap, number: int) -> tuple[Suggestion, set[Gap]]:
        """A test for a gap, and all the gaps that it reaches."""
        policy = self._own[gap.policy]
        found = self._test_for(
            gap, number, self._prover.prove([never_allows(_asked_for(policy, gap, self._ordinary))])[0]
        )
        if found[0].text:
            return found
        return self._test_for(gap, number, self._prover.prove([never_allows(_asked_for(policy, gap))])[0])

    def _test_for(self, gap: Gap, number: int, outcome: Outcome) -> tuple[Suggestion, set[Gap]]:
        """A test made of what the solver answered."""
        if isinstance(outcome, Proved):
            return Suggestion(gap, reason="no request that could be made comes to it"), set()
        if not isinstance(outcome, Refuted):
            return Suggestion(gap, reason=f"it cannot be told: {outcome.reason}"), set()
        body = _readable(outcome.counterexample, self._literals)
        case, told = _case(body, gap, number)
        result = self._runner.run(case)
        if result.asking is None:
            return Suggestion(gap, reason=f"what the solver found is no test: {result.message}"), set()
        reached = self._every - set(coverage(self._project, self._runner.compiled, [result]).gaps)
        if gap not in reached:
            return Suggestion(gap, reason="what the solver found needs values that no fact may have"), set()
        decision = result.asking.decision
        told["tests"][0] |= {"expect": decision.word, "because": list(decision.reasons)}
        return Suggestion(gap, case.file, _yaml(told)), reached


def _ordinary(runner: Runner) -> SinglePolicy:
    """Who has a role, on what is of their own tenant."""
    named = entities_named([policy.ast for policy in runner.compiled.policies])
    roles = ", ".join(f"{_ROLE}::{quoted(name)}" for kind, name in sorted(named) if kind == _ROLE)
    return SinglePolicy.parse(
        '@id("workbench.ordinary") permit (principal, action, resource)'
        f" when {{ resource has tenant && principal.tenant == resource.tenant && principal in [{roles}] }};"
    )


def _asked_for(policy: Policy, gap: Gap, ordinary: SinglePolicy | None = None) -> SinglePolicy:
    """A permit of exactly the requests with which Cedar comes to what is missing; with ``ordinary``, of those that it describes."""
    ast = policy.ast
    conditions: list[dict[str, Any]] = [dict(condition) for condition in ast["conditions"]]
    if gap.clause is not None and gap.part is not None:
        clause = clauses(ast)[gap.clause]
        # Those before it in its clause let Cedar go on: true between `&&`, false between `||`.
        asked = [(part, clause.joiner == "and") for part in clause.parts[: gap.part]]
        asked.append((clause.parts[gap.part], gap.wanted == "true"))
        conditions = conditions[: gap.clause] + [
            {"kind": "when" if is_true else "unless", "body": part} for part, is_true in asked
        ]
    before = [
        *SinglePolicy.parse(_HEARD).body["conditions"],
        *(() if ordinary is None else ordinary.body["conditions"]),
    ]
    body = {**ast, "effect": "permit", "conditions": [*before, *conditions]}
    text = f"{policy.id}/{gap.clause}/{gap.part}/{gap.wanted}" + ("" if ordinary is None else "/ordinary")
    return SinglePolicy(policy.id, text, "permit", body)


class _Names:
    """Names in place of the solver's, which are often empty; those that a policy mentions stay as they are."""

    def __init__(self, literals: frozenset[str]) -> None:
        self._literals = literals
        self._given: dict[tuple[str, str], str] = {}

    def of(self, uid: Mapping[str, Any]) -> str:
        """An entity's name."""
        kind, name = uid["type"], uid["id"]
        if name in self._literals:
            return str(name)
        short = kind.rpartition("::")[2].lower()
        return self._given.setdefault((kind, name), f"{short}-{1 + sum(one == kind for one, _ in self._given)}")

    def text(self, uid: Mapping[str, Any]) -> str:
        """An entity as ``Type::id``."""
        return f"{uid['type']}::{self.of(uid)}"

    def value(self, given: Any) -> Any:
        """A value as tests write it, and as facts may hold it."""
        if type(given) is int:
            return max(-_LIMIT, min(_LIMIT, given))
        if isinstance(given, list | tuple):
            return [self.value(item) for item in given]
        if not isinstance(given, Mapping):
            return given
        if given.keys() == {"__entity"}:
            return self.text(given["__entity"])
        if given.keys() == {"__extn"}:
            return given["__extn"].get("arg")
        return {key: self.value(item) for key, item in given.items()}

    def entity(self, entity: Mapping[str, Any]) -> dict[str, Any]:
        """The attributes of an entity, and what it is in."""
        body: dict[str, Any] = self.value(entity["attrs"])
        roles = [self.of(parent) for parent in entity["parents"] if parent["type"] == _ROLE]
        inside = [self.text(parent) for parent in entity["parents"] if parent["type"] != _ROLE]
        return body | ({"roles": roles} if roles else {}) | ({"in": inside} if inside else {})


def _readable(found: Counterexample, literals: frozenset[str]) -> dict[str, Any]:
    """The request as a test has it."""
    names = _Names(literals)
    context = names.value(found.context)
    kind, action = found.action["type"], found.action["id"]
    return {
        "principal": names.text(found.principal),
        "action": action if kind == "Action" else f"{kind}::{action}",
        "resource": names.text(found.resource),
        "time": max(0, context.pop("now_ms", 0)),
        "context": {key: item for key, item in context.items() if not (key == "claimed" and item == [])},
        # A role has nothing but its name, and the schema has the actions.
        "entities": {
            names.text(entity["uid"]): names.entity(entity)
            for entity in found.entities
            if entity["uid"]["type"] != _ROLE and not entity["uid"]["type"].endswith("Action")
        },
    }


def _case(body: dict[str, Any], gap: Gap, number: int) -> tuple[Case, dict[str, Any]]:
    """The request as a case, and as the file that it is written to."""
    label = f"{gap.policy} applies" if gap.wanted == "applies" else f"{gap.policy}: `{gap.source}` is {gap.wanted}"
    test = {"name": label[:280], **{key: body[key] for key in ("principal", "action", "resource", "time", "context")}}
    if not test["context"]:
        del test["context"]
    asked = Asked.model_construct(
        **dict.fromkeys(Asked.model_fields)
        | {key: body[key] for key in ("principal", "action", "resource", "context")}
        | {"changes": {}, "expect": "deny", "because": [], "time": body["time"]}
    )
    name = f"{SUGGESTED_FOLDER}/{gap.policy}-{number}.yaml"
    case = Case(name, 1, 1, label, asked, body["time"], body["entities"], {})
    return case, {"entities": body["entities"], "tests": [test]}


def _yaml(told: Mapping[str, Any]) -> str:
    # Through JSON, so that what occurs twice is written twice, and no alias stands for it.
    plain = json.loads(json.dumps(told))
    return "# Suggested: what is expected is what is decided today. Say whether that is right, and name it.\n" + str(
        yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=110)
    )
