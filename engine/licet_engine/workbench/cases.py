"""The files of tests: what may stand in them, and the single cases that they make.

Rules kept here:

- A case asserts the decision and exactly the policies that determine it, so that a deny cannot pass for another reason than the
  one it names; both must be given, and for a deny that no policy demands the list is empty.
- The clock is pinned: by the row, the test, the file, or to ``DEFAULT_TIME``. Nothing reads the machine's.
- A file is read strictly; what is wrong is told with its line.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypedDict

from pydantic import Field, ValidationError

from licet_engine.workbench.errors import ProjectError
from licet_engine.workbench.files import TEST_FOLDER, list_files, read_text
from licet_engine.workbench.project import Project, Strict, Whole, refusal_text
from licet_engine.workbench.yamltext import Node, read_yaml

DEFAULT_TIME: Final = "2026-01-01T00:00:00Z"
MAX_CASES: Final = 20_000
_MAX_TESTS: Final = 2_000
_MAX_ENTITIES: Final = 500
_EVERY_ACTION: Final = "*"

Sentence = Annotated[str, Field(min_length=1, max_length=300)]
EntityName = Annotated[str, Field(min_length=4, max_length=512, description="An entity, as Type::id.")]
PolicyId = Annotated[str, Field(min_length=1, max_length=128)]
Time = Annotated[
    str | Whole, Field(description="The clock: 2026-01-31T12:00:00Z, 2026-01-31, or milliseconds since 1970.")
]
Values = dict[str, Any]


class Asked(Strict):
    """What a case asks and expects."""

    principal: EntityName | None = Field(default=None, description="Who asks.")
    action: Annotated[str, Field(min_length=1, max_length=300)] | None = Field(
        default=None, description="For what, such as model.promote; one of your own as Acme::Action::vendor.onboard."
    )
    resource: EntityName | None = Field(default=None, description="On what.")
    time: Time | None = Field(default=None, description="What context.now_ms is.")
    context: Values = Field(default_factory=dict, description="What else stands in the context; null takes away.")
    changes: dict[EntityName, Values] = Field(
        default_factory=dict,
        alias="set",
        description="Changes to facts: by entity, a dotted attribute and its value; null takes it away.",
    )
    expect: Literal["allow", "deny"] | None = Field(default=None, description="The decision.")
    because: list[PolicyId] | None = Field(
        default=None, description="Exactly the policies that determine it; none for a deny that no policy demands."
    )
    observed: list[PolicyId] | None = Field(
        default=None, description="Exactly the policies in observe mode that would have denied, if that is looked at."
    )


class Row(Asked):
    """One case of a table: what it says goes before what its test says."""

    name: Sentence | None = Field(default=None, description="What this row says, behind the name of its test.")


class Test(Asked):
    """One test: a case, or a case for each of its rows."""

    __test__ = False  # No test of ours, whatever pytest makes of the name.

    name: Sentence = Field(description="What the test says, as a sentence.")
    rows: list[Row] = Field(default_factory=list, max_length=_MAX_TESTS, description="A case for each.")


class TestFile(Strict):
    """A file of tests, or of what tests share."""

    __test__ = False  # As above.

    fixtures: list[Annotated[str, Field(min_length=1, max_length=255)]] = Field(
        default_factory=list, max_length=32, description="Files below tests/ whose entities and contexts are shared."
    )
    time: Time | None = Field(default=None, description="The clock of every test here that names none.")
    entities: dict[EntityName, Values] = Field(
        default_factory=dict,
        max_length=_MAX_ENTITIES,
        description="The facts: attributes by entity; `roles` and `in` say what it is in.",
    )
    contexts: dict[str, Values] = Field(
        default_factory=dict, max_length=_MAX_ENTITIES, description="What stands in the context, by action; * for all."
    )
    tests: list[Test] = Field(default_factory=list, max_length=_MAX_TESTS, description="The tests.")


class RequestFile(Asked):
    """One request with its entities, in a file of its own."""

    name: Sentence = Field(default="the request", description="What it is called.")
    entities: dict[EntityName, Values] = Field(
        max_length=_MAX_ENTITIES, description="The facts, as in a file of tests."
    )


@dataclass(frozen=True)
class Case:
    """One case, everything that it inherits written out.

    Attributes:
        file: In which it stands.
        line: Where, from 1.
        column: Where, from 1.
        name: Of the test, and of the row if it is one.
        asked: What it asks and expects.
        time_ms: The clock.
        entities: The facts before its changes, by name; shared with other cases, not to be changed.
        context: What stands in the context before ``asked.context``.
    """

    file: str
    line: int
    column: int
    name: str
    asked: Asked
    time_ms: int
    entities: Mapping[str, Values]
    context: Mapping[str, Any]


def load_request(path: Path) -> Case:
    """A request in a file of its own: what it asks, and the entities; what it expects is left out.

    The file, JSON or YAML, has the keys of a test, and ``entities`` beside them.

    Raises:
        ProjectError: It cannot be used.
    """
    node = read_yaml(path.name, read_text(path.resolve().parent, path.name))
    try:
        given = RequestFile.model_validate(node.plain())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = refusal_text(first["loc"], first["type"], first["msg"])
        raise ProjectError(message, file=path.name, line=node.at(first["loc"]).line) from error
    return _case(
        path.name,
        node,
        label=given.name,
        asked=given.model_copy(update={"expect": given.expect or "deny", "because": given.because or []}),
        entities=given.entities,
        contexts={},
    )


class _Shared(TypedDict):
    entities: Mapping[str, Values]
    contexts: Mapping[str, Mapping[str, Any]]


def load_cases(project: Project) -> list[Case]:
    """Every case of a project, by file and in its order.

    Raises:
        ProjectError: A file of tests cannot be used, or there is no case at all.
    """
    names = list_files(project.root, TEST_FOLDER)
    files = {name: _read(project, name) for name in names}
    cases = [case for name in names for case in _cases(name, files)]
    if not cases:
        raise ProjectError("holds no test: write one, `licet policy schema tests` says how", file=TEST_FOLDER)
    if len(cases) > MAX_CASES:
        raise ProjectError(f"holds more than {MAX_CASES} cases, the most that are run", file=TEST_FOLDER)
    return cases


def _read(project: Project, name: str) -> tuple[TestFile, Node]:
    node = read_yaml(name, read_text(project.root, name))
    try:
        return TestFile.model_validate(node.plain()), node
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = refusal_text(first["loc"], first["type"], first["msg"])
        raise ProjectError(message, file=name, line=node.at(first["loc"]).line) from error


def _cases(name: str, files: Mapping[str, tuple[TestFile, Node]]) -> list[Case]:
    given, node = files[name]
    if not given.tests:
        return []
    entities, contexts = _shared(name, files)
    shared: _Shared = {"entities": entities, "contexts": contexts}
    found: list[Case] = []
    for number, test in enumerate(given.tests):
        keys: tuple[str | int, ...] = ("tests", number)
        if not test.rows:
            found.append(_case(name, node.at(keys), label=test.name, asked=_with(given, [test]), **shared))
        for row_number, row in enumerate(test.rows):
            label = f"{test.name}: {row.name or f'row {row_number + 1}'}"
            place = node.at((*keys, "rows", row_number))
            found.append(_case(name, place, label=label, asked=_with(given, [test, row]), **shared))
    seen: set[str] = set()
    for case in found:
        if case.name in seen:
            raise ProjectError(f"two tests are called {case.name!r}: name each its own", file=name, line=case.line)
        seen.add(case.name)
    return found


def _shared(
    name: str, files: Mapping[str, tuple[TestFile, Node]]
) -> tuple[dict[str, Values], dict[str, dict[str, Any]]]:
    """The entities and contexts of a file, with those of the files it shares."""
    given, node = files[name]
    entities: dict[str, Values] = {}
    contexts: dict[str, dict[str, Any]] = {}
    for number, shared in enumerate([*given.fixtures, None]):
        other = name if shared is None else f"{TEST_FOLDER}/{shared}"
        line = node.at(("fixtures", number)).line
        if other not in files:
            raise ProjectError(f"fixtures: there is no {other}", file=name, line=line)
        body = files[other][0]
        if shared is not None and (body.fixtures or other == name):
            raise ProjectError(f"fixtures: {other} names fixtures itself; name them all here", file=name, line=line)
        twice = sorted(entities.keys() & body.entities.keys())
        if twice:
            raise ProjectError(
                f"{twice[0]} is described in {other} and in another file: describe it once, and change it by `set`",
                file=name,
                line=line,
            )
        entities |= body.entities
        for action, values in body.contexts.items():
            contexts[action] = {**contexts.get(action, {}), **values}
    return entities, contexts


def _with(file: TestFile, parts: Sequence[Asked]) -> Asked:
    """What parts say together, the later before the earlier."""
    said: dict[str, Any] = {"time": file.time}
    context: Values = {}
    changes: dict[str, Values] = {}
    for part in parts:
        given = {name: getattr(part, name) for name in Asked.model_fields if name not in ("context", "changes")}
        said |= {name: value for name, value in given.items() if value is not None}
        context |= part.context
        for entity, values in part.changes.items():
            changes[entity] = {**changes.get(entity, {}), **values}
    return Asked.model_construct(
        **{**dict.fromkeys(Asked.model_fields), **said, "context": context, "changes": changes}
    )


def _case(
    name: str,
    place: Node,
    *,
    label: str,
    asked: Asked,
    entities: Mapping[str, Values],
    contexts: Mapping[str, Mapping[str, Any]],
) -> Case:
    for key in ("principal", "action", "resource", "expect", "because"):
        if getattr(asked, key) is None:
            why = ", with [] for a deny that no policy demands" if key == "because" else ""
            raise ProjectError(f"{label}: {key} must be given{why}", file=name, line=place.line)
    context = {**contexts.get(_EVERY_ACTION, {}), **contexts.get(asked.action or "", {})}
    if "now_ms" in {*context, *asked.context}:
        raise ProjectError(f"{label}: now_ms is the clock: pin it by `time`", file=name, line=place.line)
    try:
        time_ms = _time_ms(DEFAULT_TIME if asked.time is None else asked.time)
    except ValueError as error:
        raise ProjectError(f"{label}: time: {error}", file=name, line=place.line) from error
    return Case(name, place.line, place.column, label, asked, time_ms, entities, context)


def _time_ms(time: str | int) -> int:
    if isinstance(time, int):
        return time
    try:
        moment = dt.datetime.fromisoformat(time)
    except ValueError as error:
        raise ValueError(f"{time!r:.60} is no time: write it as 2026-01-31T12:00:00Z") from error
    if moment.tzinfo is None:
        if moment.time() != dt.time():
            raise ValueError(f"{time!r:.60} names no offset: write it with Z, or such as +01:00")
        moment = moment.replace(tzinfo=dt.UTC)
    return int(moment.timestamp() * 1000)
