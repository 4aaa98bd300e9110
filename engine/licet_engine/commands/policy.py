"""``licet policy``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from licet_engine.commands.data import lister
from licet_engine.commands.desk import immediate, local, mutation, refuse_present, remote
from licet_engine.commands.flips import flip_lines
from licet_engine.commands.options import FOLDER, JSON_PAIR, MOMENT, read_json_object, read_text
from licet_engine.commands.published import bundle_lines
from licet_engine.commands.text import clean, labelled, value_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from licet_engine.client_values import Answer
    from licet_engine.commands.desk import Desk
    from licet_policies import Control

F = TypeVar("F", bound="Callable[..., Any]")
_MODES = ("enforce", "observe")
_LEAST_CHARS = 8
_MOST_ROWS = 1000


def PACKS_OPTIONS(function: F) -> F:  # noqa: N802  # Used as a decorator that stands for two options.
    """Options that choose packs."""
    function = click.option(
        "--pack-parameter",
        "pack_parameters",
        multiple=True,
        type=JSON_PAIR,
        metavar="PACK.NAME=VALUE",
        help="Parameter of a pack, in JSON. Repeatable.",
    )(function)
    return click.option(
        "--pack", "packs", multiple=True, metavar="NAME[:MODE]", help="Pack in force, enforced or :observe. Repeatable."
    )(function)


def chosen_packs(packs: Sequence[str], parameters: Sequence[tuple[str, Any]]) -> list[dict[str, Any]]:
    """The packs that the options choose.

    Raises:
        click.BadParameter: An unknown mode, a pack twice, or a parameter of a pack that is not chosen.
    """
    chosen: dict[str, dict[str, Any]] = {}
    for text in packs:
        name, _, mode = text.partition(":")
        if (mode or "enforce") not in _MODES or not name or name in chosen:
            raise click.BadParameter(
                f"{text!r}: name a pack once, as NAME, NAME:enforce or NAME:observe", param_hint="--pack"
            )
        chosen[name] = {"name": name, "mode": mode or "enforce", "parameters": {}}
    for text, value in parameters:
        name, dot, parameter = text.partition(".")
        if not dot or not parameter or name not in chosen:
            raise click.BadParameter(
                f"{text!r}: write PACK.NAME=VALUE, for a pack that --pack names", param_hint="--pack-parameter"
            )
        chosen[name]["parameters"][parameter] = value
    return list(chosen.values())


@click.group()
def policy() -> None:
    """Policies: packs, controls, publish, activate, rollback, shadow, flips, show, list, publications."""


@policy.command()
@click.argument("name", required=False)
@local
def packs(name: str | None, format_: str) -> None:
    """Show the packs that are shipped, with their parameters; or the one called NAME in full."""
    import json  # noqa: PLC0415  # Little else of the CLI needs what follows.

    from licet_policies import pack, pack_names  # noqa: PLC0415  # As above.

    found = [pack(each) for each in ([name] if name else pack_names())]
    if format_ == "json":
        shown = [
            {
                "name": p.name,
                "version": p.version,
                "title": p.title,
                "framework": p.framework,
                "parameters": {k: dict(v) for k, v in p.parameters.items()},
                **({"text": p.text} if name else {}),
            }
            for p in found
        ]
        click.echo(json.dumps({"packs": shown}, indent=2))
        return
    for p in found:
        click.echo(f"{click.style(p.name, bold=True)} {p.version}  {p.title}")
        click.echo(labelled("framework", p.framework, indent=2, label_chars=11))
        for key, declared in p.parameters.items():
            default = value_text("", declared["default"]) if "default" in declared else "must be given"
            click.echo(f"  {key}  ({declared['type']}, {default})")
            click.echo(labelled("", declared["title"], indent=4, label_chars=0))
        if name:
            click.echo("\n" + clean(p.text, lines=True))


@policy.command()
@click.option("--framework", metavar="NAME", help="Of this framework or pack alone, such as hipaa.")
@click.option("--evidence", "tenant", metavar="TENANT", help="Count the decisions of this tenant, at the server.")
@click.option("--from", "from_ms", type=MOMENT, help="Count from here on.")
@click.option("--to", "to_ms", type=MOMENT, help="Count up to here, itself left out.")
@remote
def controls(desk: Desk, framework: str | None, tenant: str | None, from_ms: int | None, to_ms: int | None) -> None:
    """Show which policies enforce which clause of which framework, and what shows it. It promises no compliance.

    With --evidence it counts the decisions that a clause's policies refused, and those that they would have refused in
    observed packs. What they let pass names none of them, and is not counted.
    """
    from licet_policies import controls as shipped  # noqa: PLC0415  # Little else of the CLI needs it.

    if tenant is None and (from_ms is not None or to_ms is not None):
        raise click.BadParameter("name the tenant whose decisions to count: --evidence TENANT", param_hint="--evidence")
    found = shipped(framework)
    rows: list[dict[str, Any]] = [_control_row(control) for control in found]
    shown: dict[str, Any] = {"controls": rows}
    if tenant is not None:
        shown["counted"] = _count(desk, rows, tenant, from_ms or 0, to_ms)
    lines: list[str] = []
    for control, row in zip(found, rows, strict=True):
        heading = f"{control.framework}  (pack {control.pack})" if control.pack != "platform" else control.framework
        if heading not in lines:
            lines.append(heading)
        lines += _control_lines(row)
    if tenant is not None:
        lines.append(_counted_line(shown["counted"]))
    desk.show(shown, lines)


def _control_row(control: Control) -> dict[str, Any]:
    return {
        "framework": control.framework,
        "clause": control.clause,
        "title": control.title,
        "pack": control.pack,
        "policies": list(control.policies),
        "also": list(control.also),
        "evidence": control.evidence,
    }


def _control_lines(row: dict[str, Any]) -> list[str]:
    policies = ", ".join(row["policies"] + row["also"]) or "none: the platform itself"
    lines = [
        labelled("", f"{row['clause']}  {row['title']}", indent=2, label_chars=0),
        labelled("policies", policies, indent=4, label_chars=10),
        labelled("shown by", row["evidence"], indent=4, label_chars=10),
    ]
    if "decisions" in row:
        counts = row["decisions"]
        told = f"{counts['refused']} refused, {counts['observed']} observed"
        lines.append(labelled("decisions", told, indent=4, label_chars=10))
    return lines


def _count(desk: Desk, rows: list[dict[str, Any]], tenant: str, from_ms: int, to_ms: int | None) -> dict[str, Any]:
    """Count into each row the decisions that its policies refused; one that two of them refused counts once."""
    counted: dict[str, Any] = {"tenant": tenant, "from_ms": from_ms, "to_ms": to_ms, "decisions": 0, "unread": 0}
    for row in rows:
        row["decisions"] = {"refused": 0, "observed": 0}
    for part in desk.client.decision.enforced(tenant, from_ms=from_ms, to_ms=to_ms):
        counted["decisions"] += part.decisions
        counted["unread"] += part.unread
        counted["own"] = part.own
        for group in part.groups:
            # A permit decides what is allowed: only a refusal is by a policy that enforces a clause.
            refusing = frozenset() if group.allowed else group.policies
            for row in rows:
                mine = {*row["policies"], *row["also"]}
                row["decisions"]["refused"] += group.count if mine & refusing else 0
                row["decisions"]["observed"] += group.count if mine & group.observed else 0
    return counted


def _counted_line(counted: dict[str, Any]) -> str:
    whose = "of your own decisions in" if counted["own"] else "decisions of"
    unread = (
        f"; the record of {counted['unread']} was erased, and nothing of it is counted" if counted["unread"] else ""
    )
    return f"{counted['decisions']} {whose} {clean(counted['tenant'])} were looked at{unread}"


@policy.command()
@click.argument("tenant")
@click.option("--project", "folder", metavar="DIR", type=FOLDER, help="The policy project in this folder.")
@PACKS_OPTIONS
@click.option(
    "--packs-file", type=click.Path(path_type=Path), help='JSON object {"packs": [{"name", "mode", "parameters"}]}.'
)
@click.option(
    "--policies",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="File with the tenant's own Cedar policies. Repeatable.",
)
@mutation
def publish(
    desk: Desk,
    tenant: str,
    *,
    folder: Path | None,
    packs: tuple[str, ...],
    pack_parameters: tuple[tuple[str, Any], ...],
    packs_file: Path | None,
    files: tuple[Path, ...],
) -> None:
    """Publish policies: they are examined (lint, tests, coverage, proofs), and then somebody else may activate them.

    Either a policy project, or packs and own policies alone: all of them, for what is left out is not in the bundle. With
    --wait the exit code is 0 if they were published, and 1 if they were refused, with what was found.

    \b
      licet policy publish northbank --project policies/ --wait
      licet policy publish northbank --wait --pack sr-11-7 --pack residency \\
        --pack-parameter 'residency.regions=["us"]' --policies ours.cedar
    """  # noqa: D301  # The backspace tells click not to wrap what follows.
    if folder is not None:
        if packs or pack_parameters or packs_file is not None or files:
            raise click.BadParameter(
                "a project names its own packs and policies: leave them out", param_hint="--project"
            )
        from licet_engine.workbench.document import ProjectDocument  # noqa: PLC0415  # Little else of the CLI needs it.

        document = ProjectDocument.from_folder(folder)
        desk.finish(desk.client.policy.publish(tenant, project=document.to_json(), **desk.sent))
        return
    chosen = chosen_packs(packs, pack_parameters)
    if packs_file is not None:
        chosen += read_json_object(packs_file, "--packs-file").get("packs") or []
    text = "\n".join(read_text(path, "--policies") for path in files)
    desk.finish(desk.client.policy.publish(tenant, packs=chosen, policies=text, **desk.sent))


@policy.command()
@click.argument("ref", metavar="TENANT/BUNDLE")
@immediate
def activate(desk: Desk, ref: str) -> None:
    """Bring a published bundle into force; nobody activates what they wrote themselves."""
    _finish_named(desk, ref, desk.client.policy.activate(ref, **desk.sent))


@policy.command()
@click.argument("tenant")
@immediate
def rollback(desk: Desk, tenant: str) -> None:
    """Bring back the bundle that was in force right before; no policy of the tenant's own can stand in the way."""
    desk.finish(desk.client.policy.roll_back(tenant, **desk.sent))


@policy.command()
@click.argument("ref", metavar="TENANT/BUNDLE")
@click.option("--off", is_flag=True, help="End the shadow of the tenant; name the TENANT alone.")
@immediate
def shadow(desk: Desk, ref: str, *, off: bool) -> None:
    """Have a published bundle run beside the policies in force: it changes no answer, and policy flips shows what it would.

    \b
      licet policy shadow northbank/4d1c2a9b7e305f68
      licet policy shadow northbank --off
    """  # noqa: D301  # The backspace tells click not to wrap what follows.
    tenant, slash, bundle = ref.partition("/")
    if off == bool(slash):
        fault = "--off ends the shadow of a tenant: name the TENANT alone" if off else "name it as TENANT/BUNDLE"
        raise click.BadParameter(f"{ref!r}: {fault}", param_hint="TENANT/BUNDLE")
    _finish_named(desk, ref, desk.client.policy.shadow(tenant, bundle or None, off=off, **desk.sent))


@policy.command()
@click.argument("tenant")
@click.option("--limit", type=click.IntRange(0, 1000), default=50, show_default=True, help="How many flips at most.")
@remote
def flips(desk: Desk, tenant: str, limit: int) -> None:
    """Show where the bundle beside the policies in force would have answered otherwise, the newest flips first."""
    found = desk.client.policy.flips(tenant, limit=limit)
    desk.show(found, flip_lines(found))


@policy.command()
@click.argument("ref", metavar="TENANT[/BUNDLE]")
@click.option("--text", "is_whole", is_flag=True, help="Show the text of every policy, too.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the bundle there: JSON that has the digest.")
@click.option("--project", "folder", metavar="DIR", type=FOLDER, help="Write the project that was sent there.")
@immediate
def show(desk: Desk, ref: str, *, is_whole: bool, out: Path | None, folder: Path | None) -> None:
    """Show a bundle in short: who is behind it, what is in it, and what was found when it was published.

    BUNDLE is its digest, or eight or more characters of its beginning, or the ID of a publication; without it, the bundle in
    force is shown. What was published can be compared with what a reviewer has:

    \b
      licet policy show northbank/4d1c2a9b --project published/
      licet policy diff policies/ published/
    """  # noqa: D301  # The backspace tells click not to wrap what follows.
    tenant, slash, _ = ref.partition("/")
    if out is not None:
        refuse_present(out, overwrite=False)
    named = ref if slash else _in_force(desk, tenant)
    answer = desk.client.policy.read(named, body=out is not None, project=folder is not None, **desk.sent)
    if not answer.allowed or answer.conflict is not None:
        _finish_named(desk, ref, answer)
        return
    result = dict(answer.result)
    body, sent = result.pop("body", None), result.pop("project", None)
    lines = bundle_lines(tenant, result)
    if is_whole:
        for item in result.get("policies") or ():
            lines.append(f"\n// {clean(item.get('id'))}: {clean(item.get('source'))}, {clean(item.get('mode'))}")
            lines.append(clean(item.get("text"), lines=True))
    if out is not None:
        lines.append(_write_bundle(out, body, result))
    if folder is not None:
        lines.append(_write_project(folder, sent, result))
    desk.show({**answer.to_json(), "result": result}, lines)


def _finish_named(desk: Desk, ref: str, answer: Answer) -> None:
    """End as ever; where a bundle is denied without a reason, say first whether there is none of that name.

    The service says no more than of another tenant's. Whoever may list the bundles of their own is told here.
    """
    tenant, _, name = ref.partition("/")
    if name and not answer.allowed and not answer.policies:
        if len(name) < _LEAST_CHARS:
            told = f"{ref}: a bundle is named by at least {_LEAST_CHARS} characters of its digest"
        elif _is_there(desk, tenant, name):
            told = ""
        else:
            told = f"there is no bundle {ref}: licet policy list {tenant} shows those that there are"
        if told:
            click.echo(clean(told), err=True)
    desk.finish(answer)


def _is_there(desk: Desk, tenant: str, name: str) -> bool:
    """Whether a bundle or a publication is called so; where that is not the asker's to know, it is taken for granted."""
    from licet_engine.client_values import LicetClientError  # noqa: PLC0415  # Kept out of the start of other commands.

    try:
        known = [str(row.get("digest_hex")) for row in desk.client.list(tenant, "bundles", limit=_MOST_ROWS)]
        known += [str(row.get("id")) for row in desk.client.list(tenant, "publications", limit=_MOST_ROWS)]
    except LicetClientError:
        return True
    return any(one.startswith(name) for one in known)


def _in_force(desk: Desk, tenant: str) -> str:
    """How the bundle in force is named.

    Raises:
        click.UsageError: It is not among those that are listed.
    """
    for row in desk.client.list(tenant, "bundles", limit=_MOST_ROWS):
        if row.get("state") == "active":
            return f"{tenant}/{row.get('digest_hex')}"
    raise click.UsageError(f"no bundle of {tenant} in force is listed: name one, as {tenant}/BUNDLE")


def _write_bundle(out: Path, body: Any, result: dict[str, Any]) -> str:
    """Write a bundle that has the digest under which it was asked for."""
    import hashlib  # noqa: PLC0415  # Little else of the CLI needs what follows.

    from licet_attestations import canonical  # noqa: PLC0415  # As above.

    data = b"" if body is None else canonical.dumps(body)
    if hashlib.sha256(data).hexdigest() != result.get("bundle"):
        raise click.ClickException("what the server sent has not the digest of the bundle: nothing was written")
    with out.open("xb") as file:
        file.write(data)
    return f"  bundle written to {clean(out)}"


def _write_project(folder: Path, sent: Any, result: dict[str, Any]) -> str:
    """Write a project that has the digest under which it was published."""
    from licet_engine.workbench.document import ProjectDocument  # noqa: PLC0415  # As above.

    document = ProjectDocument.from_json(sent)
    if document.digest_hex != (result.get("publication") or {}).get("project_hex"):
        raise click.ClickException("what the server sent has not the digest of the project: nothing was written")
    return f"  {len(document.write(folder))} files of the project written to {clean(folder)}"


lister(policy, "bundles", "List the bundles of a tenant.")
lister(policy, "publications", "List what was sent to be published, and what came of it.", name="publications")
