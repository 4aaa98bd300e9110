"""``licet policy init``, ``lint``, ``fmt``, ``test``, ``coverage`` and ``schema``: a folder of policies, without a server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from licet_engine.commands.desk import guarded
from licet_engine.commands.failures import EXIT_DENIED
from licet_engine.commands.options import format_option
from licet_engine.commands.text import clean

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from licet_engine.workbench.coverage import Coverage
    from licet_engine.workbench.findings import Finding
    from licet_engine.workbench.formats import Check, RuleText
    from licet_engine.workbench.project import Project
    from licet_engine.workbench.testing import Result, Runner

F = TypeVar("F", bound="Callable[..., Any]")
_COLOUR = {"error": "red", "warning": "yellow", "note": "blue"}


def folder_argument(function: F) -> F:
    """``DIR``: a project's folder, by default where the command runs."""
    return click.argument("folder", metavar="[DIR]", default=".", type=click.Path(path_type=Path))(function)


def shown(finding: Finding, base: str) -> str:
    """A finding in a line, as compilers write theirs."""
    word = click.style(finding.severity, fg=_COLOUR[finding.severity], bold=True)
    return f"{clean(base)}{clean(finding.span)}: {word}: {clean(finding.message)} [{finding.rule}]"


def answer(
    tool: str,
    format_: str,
    *,
    rules: Sequence[RuleText],
    findings: Sequence[Finding],
    base: str,
    checks: Sequence[Check],
) -> None:
    """Answer in one of the formats of a CI."""
    from licet_engine.workbench import formats  # noqa: PLC0415  # Little else of the CLI needs what follows.

    if format_ == "sarif":
        click.echo(formats.to_sarif(tool, rules, findings, base))
    elif format_ == "junit":
        click.echo(formats.to_junit(tool, checks))


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@guarded
def init(folder: Path) -> None:
    """Write a policy project into DIR: policies, tests, an invariant and licet.toml, as an example to change.

    Nothing is overwritten: where a file of it is there already, nothing is written at all.
    """
    from licet_engine.workbench.scaffold import write_project  # noqa: PLC0415  # As above.

    for name in write_project(folder):
        click.echo(f"  {clean(folder / name)}")
    click.echo(f"Go on with: licet policy lint {clean(folder)}")
    click.echo(f"            licet policy test {clean(folder)}")


@click.command()
@folder_argument
@click.option("--rules", "is_listing", is_flag=True, help="List the rules, and look at nothing.")
@click.option("--prove", "is_proving", is_flag=True, help="Ask the solver, too; needs 'licet[prove]'.")
@format_option("json", "junit", "sarif")
@guarded
def lint(folder: Path, format_: str, *, is_listing: bool, is_proving: bool) -> None:
    """Look for mistakes in the policies of the project in DIR, each with its place. docs/policy-lint.md has the rules.

    Exit codes: 0 nothing found, 1 something found, 2 it could not be told.
    """
    from licet_engine.workbench import formats  # noqa: PLC0415  # As above.
    from licet_engine.workbench import lint as linting  # noqa: PLC0415  # As above.
    from licet_engine.workbench.project import load_project  # noqa: PLC0415  # As above.
    from licet_engine.workbench.rules import registry  # noqa: PLC0415  # As above.

    known = registry()
    if is_listing:
        _list_rules(format_)
        return
    project = load_project(folder)
    found = linting.lint(project, prove=is_proving)
    counted = [finding for finding in found if finding.suppressed is None]
    base = formats.shown_from(project.root)
    if format_ == "text":
        for finding in counted:
            click.echo(shown(finding, base))
        off = len(found) - len(counted)
        count = len(project.policy_texts()) + len(project.invariant_texts())
        told = f"{len(counted)} finding(s) in {count} policies and invariants"
        click.echo(told + (f"; {off} switched off" if off else ""), err=True)
    elif format_ == "json":
        body = {"findings": [finding.to_json() for finding in found], "counted": len(counted)}
        click.echo(formats.to_json("lint", body))
    else:
        rules = [formats.RuleText(rule.id, rule.severity, rule.title) for rule in known.values()]
        checks = formats.rule_checks("lint", rules, found, base)
        answer("lint", format_, rules=rules, findings=found, base=base, checks=checks)
    if counted:
        raise click.exceptions.Exit(EXIT_DENIED)


def _list_rules(format_: str) -> None:
    from licet_engine.workbench import formats  # noqa: PLC0415  # As above.
    from licet_engine.workbench.rules import registry  # noqa: PLC0415  # As above.

    rules = list(registry().values())
    if format_ != "text":
        keys = ("id", "severity", "title", "fixed")
        click.echo(formats.to_json("lint", {"rules": [{key: getattr(r, key) for key in keys} for r in rules]}))
        return
    for rule in rules:
        click.echo(
            f"{rule.id:<28}{rule.severity:<9}{rule.title}"
            + (" (cannot be switched off)" if rule.fixed else " (with --prove)" if rule.is_proof else "")
        )


@click.command()
@folder_argument
@click.option("--check", "is_checking", is_flag=True, help="Write nothing; exit 1 if a file would change.")
@guarded
def fmt(folder: Path, *, is_checking: bool) -> None:
    """Lay out the policies and invariants of the project in DIR; comments, annotations and meaning stay.

    Exit codes: 0 done, or with --check nothing to do; 1 with --check a file would change; 2 it could not be done.
    """
    from licet_engine.workbench.formats import shown_from  # noqa: PLC0415  # As above.
    from licet_engine.workbench.formatting import unformatted, write_text  # noqa: PLC0415  # As above.
    from licet_engine.workbench.project import load_project  # noqa: PLC0415  # As above.

    project = load_project(folder)
    # All are told before any is written: one that cannot be formatted leaves the others as they were.
    changes = list(unformatted(project))
    for file, text in changes:
        if not is_checking:
            write_text(project, file, text)
        click.echo(f"{'would format' if is_checking else 'formatted'} {clean(shown_from(project.root) + file.name)}")
    if changes and is_checking:
        raise click.exceptions.Exit(EXIT_DENIED)


@click.command("test")
@folder_argument
@click.option("--match", metavar="TEXT", default="", help="Only the tests whose file or name contains TEXT.")
@format_option("json", "junit", "sarif")
@guarded
def test_policies(folder: Path, match: str, format_: str) -> None:
    """Decide every test of the project in DIR by the bundle that it is, and explain those that come out otherwise.

    Exit codes: 0 all pass, 1 some do not, 2 they could not be run.
    """
    from licet_engine.workbench import formats, testing  # noqa: PLC0415  # As above.
    from licet_engine.workbench.project import load_project  # noqa: PLC0415  # As above.

    project = load_project(folder)
    results = _run_tests(project, match)
    base = formats.shown_from(project.root)
    missed = [result for result in results if result.outcome != "passed"]
    if format_ == "text":
        for result in missed:
            _show_result(result, base)
        click.echo(f"{len(results) - len(missed)} of {len(results)} tests pass", err=True)
    elif format_ == "json":
        click.echo(formats.to_json("test", {"tests": [result.to_json() for result in results], "missed": len(missed)}))
    else:
        found = testing.findings(results)
        answer("test", format_, rules=testing.RULES, findings=found, base=base, checks=testing.checks(results))
    if missed:
        raise click.exceptions.Exit(EXIT_DENIED)


def _run_tests(project: Project, match: str) -> list[Result]:
    from licet_engine.workbench.cases import load_cases  # noqa: PLC0415  # As above.
    from licet_engine.workbench.errors import ProjectError  # noqa: PLC0415  # As above.
    from licet_engine.workbench.testing import Runner  # noqa: PLC0415  # As above.

    cases = [case for case in load_cases(project) if match in case.file or match in case.name]
    if not cases:
        raise ProjectError(f"no test has {match!r} in its file or name")
    runner = Runner(project)
    return [runner.run(case) for case in cases]


def _show_result(result: Result, base: str) -> None:
    word = click.style(result.outcome, fg="red", bold=True)
    place = f"{clean(base)}{clean(result.case.file)}:{result.case.line}"
    click.echo(f"{place}: {word}: {clean(result.case.name)}")
    click.echo(f"  {clean(result.message)}")
    for line in result.why:
        click.echo(f"    {clean(line)}")


@click.command()
@folder_argument
@click.option(
    "--threshold",
    type=click.IntRange(0, 100),
    metavar="PERCENT",
    help="The least share that must be covered; by default that of licet.toml.",
)
@click.option(
    "--suggest",
    "is_suggesting",
    is_flag=True,
    help="Write a test into tests/suggested for what is missing, found by the solver; needs 'licet[prove]'.",
)
@format_option("json", "junit", "sarif")
@guarded
def coverage(folder: Path, threshold: int | None, format_: str, *, is_suggesting: bool) -> None:
    """Measure what the tests of the project in DIR reach: its policies, their conjuncts, and both outcomes of each.

    Exit codes: 0 the threshold is reached and all tests pass, 1 not, 2 it could not be told. With --suggest: 0 there is a test now
    for whatever some request reaches, 1 for some of it there is none, 2 it could not be told.
    """
    if is_suggesting and format_ != "text":
        raise click.BadParameter("what --suggest does is told as text alone", param_hint="--format")
    from licet_engine.workbench import coverage as measuring  # noqa: PLC0415  # As above.
    from licet_engine.workbench import formats  # noqa: PLC0415  # As above.
    from licet_engine.workbench.cases import load_cases  # noqa: PLC0415  # As above.
    from licet_engine.workbench.project import load_project  # noqa: PLC0415  # As above.
    from licet_engine.workbench.testing import Runner  # noqa: PLC0415  # As above.

    project = load_project(folder)
    cases = load_cases(project)
    runner = Runner(project)
    results = [runner.run(case) for case in cases]
    measured = measuring.coverage(project, runner.compiled, results)
    least = project.config.coverage.threshold if threshold is None else threshold
    missed = sum(result.outcome != "passed" for result in results)
    base = formats.shown_from(project.root)
    if is_suggesting:
        _write_suggestions(project, runner, measured, base)
        return
    if format_ == "text":
        _show_coverage(measured, base, least)
        if missed:
            click.echo(f"{missed} of {len(results)} tests do not pass: see `licet policy test`", err=True)
    elif format_ == "json":
        click.echo(formats.to_json("coverage", {**measured.to_json(), "threshold": least, "tests_missed": missed}))
    else:
        own = [policy.id for policy in runner.compiled.policies if policy.source == "tenant"]
        checks = measuring.checks(measured, own)
        found = measuring.findings(measured)
        answer("coverage", format_, rules=measuring.RULES, findings=found, base=base, checks=checks)
    if missed or measured.percent < least:
        raise click.exceptions.Exit(EXIT_DENIED)


def _write_suggestions(project: Project, runner: Runner, measured: Coverage, base: str) -> None:
    from licet_engine.workbench.errors import FileExists  # noqa: PLC0415  # As above.
    from licet_engine.workbench.scaffold import write_new  # noqa: PLC0415  # As above.
    from licet_engine.workbench.suggest import FOLDER, suggest  # noqa: PLC0415  # It needs the solver, an extra of its own.

    # Before the search, which takes its time.
    if os.path.lexists(project.root / FOLDER):
        raise FileExists(f"{FOLDER} is there already: name what is in it, move it, and ask again; nothing was written")
    found = list(suggest(project, runner, measured.gaps))
    written = [one for one in found if one.text]
    write_new(project.root, [(one.name, one.text) for one in written])
    for one in found:
        if one.text:
            click.echo(f"wrote {clean(base)}{clean(one.name)}: {clean(one.gap.message)}")
        else:
            click.echo(f"{clean(base)}{clean(one.gap.span)}: {clean(one.gap.message)}; {clean(one.reason)}")
    told = f"{len(written)} written for {len(measured.gaps)} gaps; what they expect is what is decided today"
    click.echo(told, err=True)
    if len(written) < len(found):
        raise click.exceptions.Exit(EXIT_DENIED)


def _show_coverage(measured: Coverage, base: str, least: int) -> None:
    for gap in measured.gaps:
        click.echo(f"{clean(base)}{clean(gap.span)}: {clean(gap.message)} [{clean(gap.policy)}]")
    for label, (covered, of) in (
        ("policies", measured.policies),
        ("conjuncts", measured.parts),
        ("outcomes", measured.outcomes),
    ):
        click.echo(f"{label:<10}{covered:>6} of {of}")
    colour = "green" if measured.percent >= least else "red"
    share = click.style(f"{measured.percent} %", fg=colour, bold=True)
    click.echo(f"covered   {share}, demanded are {least} %")


@click.command()
@click.argument("kind", type=click.Choice(["toml", "tests", "cedar"]))
@click.argument("folder", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@guarded
def schema(kind: str, folder: Path | None) -> None:
    """Print a schema for an editor: the JSON schema of licet.toml or of the tests, or the Cedar schema.

    With DIR the Cedar schema has what the project there adds to it. docs/policy-editor.md says what to do with them.
    """
    from licet_engine.workbench import schemas  # noqa: PLC0415  # As above.
    from licet_engine.workbench.project import load_project  # noqa: PLC0415  # As above.

    project = None if folder is None else load_project(folder)
    text = {"toml": schemas.schema_of_toml, "tests": schemas.schema_of_tests}.get(kind)
    click.echo(schemas.schema_of_cedar(project) if text is None else text(), nl=False)


COMMANDS = (init, lint, fmt, test_policies, coverage, schema)
"""What ``licet policy`` has beside the verbs that ask a server."""
