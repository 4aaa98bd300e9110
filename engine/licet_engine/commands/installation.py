"""``licet init``, ``serve``, ``backup``, ``restore`` and ``demo``: an installation on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from licet_engine.commands.desk import guarded, local
from licet_engine.commands.text import clean

if TYPE_CHECKING:
    from licet_engine.backup import Report

_DATA = click.option(
    "--data", type=click.Path(path_type=Path), help="Folder of the installation; LICET_DATA or ./data if not given."
)


@click.command()
@_DATA
@guarded
def init(data: Path | None) -> None:
    """Make an installation: keys, database, and the first operator with a token."""
    from licet_engine.init import initialise  # noqa: PLC0415  # Servers only.
    from licet_engine.settings import load_settings  # noqa: PLC0415  # As above.

    made = initialise(load_settings(data=data))
    click.echo(f"The first operator's token is in {made.token_file}: keep it, it is shown nowhere else.")
    click.echo(f"The trust root is {made.trust_root}: give auditors a copy by a way of its own.")


@click.command()
@_DATA
@click.option("--host", help="Address to listen on; LICET_HOST or 127.0.0.1 if not given.")
@click.option("--port", type=click.IntRange(1, 65_535), help="Port to listen on; LICET_PORT or 8000 if not given.")
@click.option("--init", "initialise", is_flag=True, help="Make the installation first if there is none.")
@guarded
def serve(data: Path | None, host: str | None, port: int | None, *, initialise: bool) -> None:
    """Run the service: api, signer, worker and router, until it is told to stop."""
    from licet_engine.serve import main  # noqa: PLC0415  # Servers only.
    from licet_engine.settings import load_settings  # noqa: PLC0415  # As above.

    main(load_settings(data=data, host=host, port=port), init=initialise)


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@_DATA
@local
def backup(folder: Path, data: Path | None, format_: str) -> None:
    """Copy the installation into the new folder DIR, while it runs or not.

    The copy holds the keys and facts in the clear: keep it as you keep the installation. Uploads, work folders and tokens are not in it.
    """
    from licet_engine.backup import backup as make  # noqa: PLC0415  # Servers only.
    from licet_engine.settings import load_settings  # noqa: PLC0415  # As above.

    report = make(load_settings(data=data), folder.absolute())
    _tell(report, format_, "backed up")


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder to make; it must not exist.")
@click.option(
    "--signer",
    "signer_data",
    type=click.Path(path_type=Path),
    help="Folder of a signer that outlived the installation; it takes the place of the backup's.",
)
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    type=click.Path(path_type=Path),
    help="File with a signed checkpoint that somebody kept; a log that does not reach it is refused. Repeatable.",
)
@local
def restore(folder: Path, data: Path, signer_data: Path | None, checkpoints: tuple[Path, ...], format_: str) -> None:
    """Make an installation from the backup DIR, verified; refused if it would fork a log.

    What was decided after the backup is lost, and nobody can tell from the backup alone: give the signer's folder, or checkpoints that
    auditors kept, if there are any.
    """
    from licet_engine.backup import require_sqlite  # noqa: PLC0415  # Servers only.
    from licet_engine.backup import restore as make  # noqa: PLC0415  # As above.
    from licet_engine.settings import load_settings  # noqa: PLC0415  # As above.

    require_sqlite(load_settings(data=data), "restore")
    report = make(folder.absolute(), data.absolute(), signer_data=signer_data, checkpoints=checkpoints)
    _tell(report, format_, "restored")


def _tell(report: Report, format_: str, done: str) -> None:
    if format_ == "json":
        click.echo(json.dumps(report.to_json(), indent=2))
        return
    click.echo(f"{done}: {report.folder}, {report.files} files, {report.bytes} bytes")
    for tenant, size in sorted(report.logs.items()):
        unsigned = "; its last entries are under no checkpoint" if tenant in report.unsigned else ""
        click.echo(f"  log {clean(tenant)}: {size} entries{unsigned}")


@click.command()
@guarded
def demo() -> None:
    """Play the main job on real data, from a dataset to a promoted model, in the folder demo/."""
    from licet_engine.demo import main  # noqa: PLC0415  # Servers only.

    raise click.exceptions.Exit(main() or 0)
