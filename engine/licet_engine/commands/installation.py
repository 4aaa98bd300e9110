"""``licet init``, ``licet serve`` and ``licet demo``: an installation on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from licet_engine.commands.desk import guarded

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
    """Run the service: api, signer and worker, until it is told to stop."""
    from licet_engine.serve import main  # noqa: PLC0415  # Servers only.
    from licet_engine.settings import load_settings  # noqa: PLC0415  # As above.

    main(load_settings(data=data, host=host, port=port), init=initialise)


@click.command()
@guarded
def demo() -> None:
    """Play the main job on real data, from a dataset to a promoted model, in the folder demo/."""
    from licet_engine.demo import main  # noqa: PLC0415  # Servers only.

    raise click.exceptions.Exit(main() or 0)
