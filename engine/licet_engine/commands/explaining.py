"""``licet policy explain``: why a decision came out as it did, and what would be needed, without a server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from licet_engine.commands.desk import guarded
from licet_engine.commands.options import format_option
from licet_engine.commands.render import explanation_lines
from licet_engine.commands.text import clean, labelled

if TYPE_CHECKING:
    from licet_engine.decide import Decision
    from licet_engine.workbench.explaining import Explained

_IDENTIFIER = re.compile(r"[0-9a-f]{32}")
_MOST_CLAIMS = 20
_FILE = click.Path(path_type=Path)


@click.command("explain")
@click.argument("subject", metavar="[ID|DIR]", required=False)
@click.option("--archive", type=_FILE, help="Evidence archive that holds decision ID.")
@click.option("--now", "is_now", is_flag=True, help="Explain what would be decided by the policies of --project.")
@click.option(
    "--project", type=_FILE, help="Folder of the project that --now decides by; the current one if not given."
)
@click.option("--test", metavar="NAME", help="Explain this test of the project in DIR.")
@click.option("--request", "file", type=_FILE, help="Explain this request, in JSON or YAML, by the project in DIR.")
@format_option("json")
@guarded
def explain_policies(
    subject: str | None,
    archive: Path | None,
    project: Path | None,
    test: str | None,
    file: Path | None,
    *,
    format_: str,
    is_now: bool,
) -> None:
    """Explain a decision part by part with its values, and what would have it allowed, without a server.

    \b
      licet policy explain 0f3c... --archive northbank.zip
      licet policy explain 0f3c... --archive northbank.zip --now --project DIR
      licet policy explain --test 'A release: goes to prod' DIR
      licet policy explain --request request.yaml DIR

    The archive's signatures are not looked at: `licet verify` does that. Of a service, ask `licet decision explain TENANT/ID`. Exit
    codes: 0 it was explained; 1 what was recorded does not follow, or --now decides otherwise; 2 it could not be told.
    """  # noqa: D301  # The backspace tells click not to wrap what follows.
    from licet_engine.workbench import explaining, formats  # noqa: PLC0415  # Little else of the CLI needs what follows.
    from licet_engine.workbench.project import load_project  # noqa: PLC0415  # As above.

    ways = [way for way, given in (("--archive", archive), ("--test", test), ("--request", file)) if given is not None]
    if len(ways) != 1:
        raise click.UsageError(_which(subject, ways))
    if archive is None and (is_now or project is not None):
        raise click.BadParameter(
            "is for a decision of an archive: name it with --archive", param_hint="--now, --project"
        )
    if archive is not None:
        if subject is None or not _IDENTIFIER.fullmatch(subject):
            raise click.BadParameter("name the decision by its 32 hexadecimal digits", param_hint="ID")
        if project is not None and not is_now:
            raise click.BadParameter("says by what --now decides: add --now", param_hint="--project")
        now = load_project(project or Path()).bundle() if is_now else None
        found = explaining.explain_recorded(archive, subject, now)
    else:
        loaded = load_project(Path(subject or "."))
        found = (
            explaining.explain_test(loaded, test)
            if test is not None
            else explaining.explain_request(loaded, file or Path())
        )
    if format_ == "json":
        click.echo(formats.to_json("explain", {**found.to_json(), "now": is_now}))
    else:
        click.echo("\n".join(_lines(found, is_now=is_now)))
    if found.differs:
        raise click.exceptions.Exit(1)


def _which(subject: str | None, ways: list[str]) -> str:
    if ways:
        return f"{' and '.join(ways)} are different ways to say what to explain: give one"
    if subject is not None and "/" in subject and _IDENTIFIER.fullmatch(subject.rpartition("/")[2]):
        return f"a decision of a service is explained by: licet decision explain {clean(subject)}"
    return "say what to explain: ID with --archive FILE, --test NAME, or --request FILE"


def _lines(found: Explained, *, is_now: bool) -> list[str]:
    from licet_engine.client_values import Explanation  # noqa: PLC0415  # As above.

    told = found.to_json()
    lines = explanation_lines(Explanation(told["decision"], told["explanation"], told["path"] or {}))
    if claimed := _claims(found.request.context.get("claimed")):
        lines += ["", labelled("claimed", f"{claimed}; the asker says so, and no more", indent=2, label_chars=10)]
    if found.before is None:
        return lines
    lines.append("")
    now = found.explanation.decision
    if not found.differs:
        word = (
            "the policies of now decide as was recorded" if is_now else "evaluated again: the same answer, as recorded"
        )
        return [*lines, labelled("", word, indent=2, label_chars=0)]
    lead = "the policies of now decide otherwise" if is_now else "evaluated again, it does NOT follow from its record"
    lines.append(labelled("", f"{lead}, in {', '.join(found.differs)}", indent=2, label_chars=0))
    lines.append(labelled("recorded", _decided(found.before), indent=4, label_chars=10))
    lines.append(labelled("now" if is_now else "again", _decided(now), indent=4, label_chars=10))
    return lines


def _claims(claimed: Any) -> str:
    """What the asker asserted; an archive may hold anything there."""
    pairs = [one for one in claimed if isinstance(one, dict)] if isinstance(claimed, list) else []
    return ", ".join(f"{one.get('name')} = {one.get('value')}" for one in pairs[:_MOST_CLAIMS])


def _decided(decision: Decision) -> str:
    observed = f"; observed by {', '.join(decision.observed)}" if decision.observed else ""
    return f"{decision.word}, by {', '.join(decision.because)}{observed}"


COMMANDS = (explain_policies,)
"""What ``licet policy`` has to explain."""
