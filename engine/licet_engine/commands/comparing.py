"""``licet policy bundle``, ``prove``, ``diff`` and ``replay``: what a change of policy means, without a server."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from licet_engine.commands.desk import guarded
from licet_engine.commands.failures import EXIT_DENIED
from licet_engine.commands.options import format_option
from licet_engine.commands.text import clean, labelled
from licet_engine.commands.workbench import answer, folder_argument, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from licet_engine.workbench.diffing import ActionDiff
    from licet_engine.workbench.findings import Finding
    from licet_engine.workbench.proving import ProofResult
    from licet_engine.workbench.replay import ReplayReport

_MAX_BUNDLE_BYTES = 16 << 20
_VERSION = "A project's folder, or a bundle as `licet policy bundle` writes it."
_TIME = click.option(
    "--time-limit",
    "time_limit_s",
    type=click.FloatRange(0.1, 600),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="For one question to the solver; what takes longer is not proved.",
)


def _read(version: Path) -> dict[str, Any]:
    """The bundle of a version: of a project, or of a file.

    Raises:
        ProjectError: It is neither.
    """
    from licet_attestations import canonical  # noqa: PLC0415  # Little else of the CLI needs what follows.
    from licet_attestations.errors import FormatError  # noqa: PLC0415  # As above.
    from licet_engine.decide.bundle import CompiledBundle  # noqa: PLC0415  # As above.
    from licet_engine.decide.errors import BundleError  # noqa: PLC0415  # As above.
    from licet_engine.workbench.errors import ProjectError  # noqa: PLC0415  # As above.
    from licet_engine.workbench.project import load_project  # noqa: PLC0415  # As above.

    if version.is_dir():
        return load_project(version).bundle()
    try:
        with version.open("rb") as file:
            data = file.read(_MAX_BUNDLE_BYTES + 1)
        bundle = canonical.loads(data.rstrip(b"\n"), canonical=True, max_bytes=_MAX_BUNDLE_BYTES)
        if not isinstance(bundle, dict):
            raise BundleError("a bundle is a JSON object")
        CompiledBundle.compile(bundle)
    except OSError as error:
        raise ProjectError(f"cannot be read: {error.strerror}", file=str(version)) from error
    except (FormatError, BundleError) as error:
        raise ProjectError(f"is neither a project's folder nor a bundle: {error}", file=str(version)) from error
    return bundle


class _Bar:
    """Tells on standard error how far something is, where that is a terminal."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._is_shown = sys.stderr.isatty()

    def told(self, done: int, total: int) -> None:
        if self._is_shown:
            click.echo(f"\r{self._what}: {done} of {total}", err=True, nl=done >= total)


@click.command()
@folder_argument
@click.option("--out", type=click.Path(path_type=Path), help="Where to; standard output if not given.")
@guarded
def bundle(folder: Path, out: Path | None) -> None:
    """Write the bundle that the project in DIR is: canonical JSON, which has the digest that is published."""
    import hashlib  # noqa: PLC0415  # As above.

    from licet_attestations import canonical  # noqa: PLC0415  # As above.
    from licet_engine.workbench.project import load_project  # noqa: PLC0415  # As above.

    data = canonical.dumps(load_project(folder).bundle())
    if out is None:
        click.echo(data.decode())
    else:
        out.write_bytes(data)
    click.echo(hashlib.sha256(data).hexdigest(), err=True)


@click.command()
@folder_argument
@_TIME
@click.option(
    "--verbose", "is_verbose", is_flag=True, help="Tell also what is proved, each in a line, and requests in full."
)
@format_option("json", "junit", "sarif")
@guarded
def prove(folder: Path, time_limit_s: float, format_: str, *, is_verbose: bool) -> None:
    """Prove of every request that could be made: what is in DIR keeps every invariant, and none of its policies errs.

    The invariants are those of the platform, of the packs enforced, and of the project. Exit codes: 0 all is proved, 1 something
    is refuted or cannot be told, 2 it could not be tried.
    """
    from licet_engine.workbench import formats, proving  # noqa: PLC0415  # As above.
    from licet_engine.workbench.project import load_project  # noqa: PLC0415  # As above.
    from licet_engine.workbench.symbolic import LIMITS  # noqa: PLC0415  # As above.

    project = load_project(folder)
    bar = _Bar("kinds of request")
    results = proving.prove_project(
        project, time_limit_s=time_limit_s, progress=lambda reached: bar.told(reached.done, reached.total)
    )
    base = formats.shown_from(project.root)
    found = proving.findings(project, results)
    if format_ == "text":
        _show_proofs(results, found, base, is_verbose=is_verbose)
        click.echo("\nWhat this does not show:")
        for sentence in LIMITS:
            click.echo(labelled("-", sentence, indent=2, label_chars=2))
    elif format_ == "json":
        body = {"proofs": [result.to_json() for result in results], "limits": list(LIMITS), "findings": len(found)}
        click.echo(formats.to_json("prove", body))
    else:
        answer("prove", format_, rules=proving.RULES, findings=found, base=base, checks=proving.checks(results))
    if found:
        raise click.exceptions.Exit(EXIT_DENIED)


def _show_proofs(results: Sequence[ProofResult], found: Sequence[Finding], base: str, *, is_verbose: bool) -> None:
    """What is not proved, each with the request that refutes it; what is proved as a count."""
    from licet_engine.workbench import proving  # noqa: PLC0415  # As above.

    for result in results:
        if is_verbose or result.rule is not None:
            colour = "green" if result.rule is None else "red"
            word = click.style(f"{result.word:<8}", fg=colour, bold=True)
            click.echo(f"{word} {clean(result.id)}  {clean(result.title)}")
    for finding in found:
        click.echo(shown(finding, base))
    for result in results:
        if lines := proving.shown(result):
            click.echo(f"\n{clean(result.id)} does not hold of this request:")
            click.echo("\n".join(labelled(label, text, indent=2, label_chars=11) for label, text in lines))
            if is_verbose:
                click.echo(clean(proving.detail(result), lines=True))
    words = [result.word for result in results]
    told = ", ".join(f"{words.count(word)} {word}" for word in ("proved", "refuted", "unknown") if word in words)
    click.echo(f"{told} of {len(results)} properties" + ("" if is_verbose else "; --verbose names each"))


@click.command()
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@_TIME
@format_option("json", "markdown")
@guarded
def diff(before: Path, after: Path, time_limit_s: float, format_: str) -> None:
    """Compare two versions of policy for everything that could happen, with a request for each difference.

    BEFORE and AFTER are each a project's folder, or a bundle as `licet policy bundle` writes it. Exit codes: 0 every request is
    decided as before, 1 not, 2 it could not be told.
    """
    from licet_engine.workbench import formats  # noqa: PLC0415  # As above.
    from licet_engine.workbench.diffing import counted, diff_bundles  # noqa: PLC0415  # As above.
    from licet_engine.workbench.markdown import diff_markdown  # noqa: PLC0415  # As above.

    bar = _Bar("kinds of request")
    found = diff_bundles(_read(before), _read(after), time_limit_s=time_limit_s, progress=bar.told)
    counts = counted(found)
    if format_ == "markdown":
        click.echo(diff_markdown(found), nl=False)
    elif format_ == "json":
        click.echo(formats.to_json("diff", {"counts": counts, "actions": [one.to_json() for one in found]}))
    else:
        for line in _diff_lines(found):
            click.echo(clean(line))
        told = ", ".join(f"{count} {relation}" for relation, count in counts.items() if count)
        click.echo(told or "nothing to compare", err=True)
    if any(count for relation, count in counts.items() if relation != "equivalent"):
        raise click.exceptions.Exit(EXIT_DENIED)


def _diff_lines(found: list[ActionDiff]) -> Iterator[str]:
    for one in found:
        if one.relation == "equivalent":
            continue
        yield f"{one.action} on {one.resource}: {one.relation}"
        for difference in one.differences:
            word = "now allowed" if difference.now_allowed else "now denied"
            by = ", ".join(difference.because) or "no permit"
            before = ", ".join(difference.before) or "no permit"
            yield f"  {word} for a {difference.principal}: by {by}; before by {before}"
            yield f"    {json.dumps(difference.example.to_json(), sort_keys=True)}"
        for reason in one.unknown:
            yield f"  cannot be told: {reason}"


@click.command()
@click.argument("version", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--archive",
    required=True,
    type=click.Path(path_type=Path),
    help="Evidence archive with the recorded decisions, as `licet evidence export` writes it.",
)
@click.option(
    "--before",
    type=click.Path(path_type=Path),
    help=f"Compare with this version and not with what was recorded. {_VERSION}",
)
@click.option(
    "--keep",
    type=click.IntRange(0, 10_000),
    default=100,
    show_default=True,
    help="How many flips to show, the first ones.",
)
@format_option("json", "markdown")
@guarded
def replay(version: Path, archive: Path, before: Path | None, keep: int, format_: str) -> None:
    """Decide what did happen again under the policies in DIR: which recorded decisions flip, for whom, and why.

    DIR is a project's folder, or a bundle as `licet policy bundle` writes it. The archive's signatures are not looked at: `licet
    verify` does that. Exit codes: 0 nothing flips, 1 something does, 2 it could not be told.
    """
    from licet_attestations import canonical  # noqa: PLC0415  # As above.
    from licet_engine.workbench import formats  # noqa: PLC0415  # As above.
    from licet_engine.workbench.markdown import replay_markdown  # noqa: PLC0415  # As above.
    from licet_engine.workbench.replay import replay_archive  # noqa: PLC0415  # As above.

    def told(found: Mapping[str, Any]) -> bytes:
        return canonical.dumps(dict(found))

    report = replay_archive(
        archive,
        told(_read(version)),
        before=None if before is None else told(_read(before)),
        keep=keep,
        progress=_Bar("records").told,
    )
    if format_ == "markdown":
        click.echo(replay_markdown(report), nl=False)
    elif format_ == "json":
        click.echo(formats.to_json("replay", report.to_json()))
    else:
        for line in _replay_lines(report):
            click.echo(clean(line))
    if report.flipped:
        raise click.exceptions.Exit(EXIT_DENIED)


def _replay_lines(report: ReplayReport) -> Iterator[str]:
    for flip in report.flips:
        request = flip.recorded.request
        yield (
            f"{flip.recorded.id}  {request.principal} {request.action} {request.resource}: {flip.before.word} before,"
            f" {flip.after.word} now, by {', '.join(flip.because)}"
        )
    for title, counts in (
        ("policy", report.by_policy),
        ("action", report.by_action),
        ("principal", report.by_principal),
    ):
        for name, count in counts.most_common(20):
            yield f"{title:<10}{count:>8}  {name}"
    for why, count in report.unreadable.items():
        yield f"{count} cannot be decided again: {why}"
    yield (
        f"{report.flipped} of {report.decided} decisions flip: {report.to_deny} to deny, {report.to_allow} to allow;"
        f" {report.other_reasons} come out the same for other reasons"
    )


COMMANDS = (bundle, prove, diff, replay)
"""What ``licet policy`` has for changes, beside what it has for a folder."""
