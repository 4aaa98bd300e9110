"""The command line: ``licet NOUN VERB``.

Rules kept here:

- This module wires commands together and runs them; what they do stands in ``licet_engine.commands``.
- Whatever goes wrong ends as a message and an exit code: 0 allowed or done, 1 denied, 2 error, 3 denied and only approvals are missing,
  130 stopped.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import click

from licet_engine.commands import (
    approvals,
    attestations,
    comparing,
    data,
    endpoints,
    explaining,
    installation,
    issuers,
    models,
    oversight,
    people,
    policy,
    probes,
    rotating,
    tlog,
    training,
    webhooks,
    workbench,
)
from licet_engine.commands.ask import ask
from licet_engine.commands.breakglass import break_glass
from licet_engine.commands.doctor import doctor
from licet_engine.commands.failures import EXIT_DONE, EXIT_ERROR, report, report_misuse, report_stopped
from licet_engine.commands.verify import verify

if TYPE_CHECKING:
    from collections.abc import Sequence

_SECTIONS = {
    "Ask and act": ("ask", "dataset", "train", "run", "model", "approval", "ticket", "endpoint", "hold", "operation"),
    "Govern": ("tenant", "device", "person", "token", "issuer", "break-glass", "policy", "webhook"),
    "Prove": ("decision", "attestation", "evidence", "log", "keys", "probe", "verify"),
    "Run the service": ("init", "serve", "doctor", "backup", "restore", "demo"),
}


class Sections(click.Group):
    """A group whose help lists its commands by what they are for."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See ``click.Group``."""
        del ctx  # Every command is shown, whoever asks.
        for title, names in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(90)) for name in names])


def _show_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:  # noqa: FBT001  # As click calls it.
    if value:
        click.echo(f"licet {version('licet')}")
        ctx.exit(EXIT_DONE)


@click.group(cls=Sections, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version."
)
def cli() -> None:
    """Licet: ask, decide, execute under warrant, prove.

    Exit codes: 0 allowed or done, 1 denied, 2 error, 3 denied and only approvals are missing, 130 stopped.
    """


for _command in (
    ask,
    data.dataset,
    data.hold,
    training.train,
    training.run,
    models.model,
    approvals.approval,
    approvals.ticket,
    endpoints.endpoint,
    oversight.operation,
    people.tenant,
    people.device,
    people.person,
    people.token,
    break_glass,
    policy.policy,
    webhooks.webhook,
    issuers.issuer,
    oversight.decision,
    attestations.attestation,
    oversight.evidence,
    oversight.log,
    oversight.keys,
    probes.probe,
    verify,
    installation.init,
    installation.serve,
    installation.backup,
    installation.restore,
    installation.demo,
    doctor,
):
    cli.add_command(_command)
for _command in (rotating.rotate, rotating.compromised, rotating.rotations, rotating.follow):
    oversight.keys.add_command(_command)
for _command in tlog.COMMANDS:
    oversight.log.add_command(_command)
for _command in (*workbench.COMMANDS, *comparing.COMMANDS, *explaining.COMMANDS):
    policy.policy.add_command(_command)


def _format_of(arguments: Sequence[str]) -> str:
    """The format asked for, also where the rest cannot be understood."""
    format_ = "text"
    for argument, following in pairwise([*arguments, ""]):
        if argument == "--":
            break
        if argument == "--format":
            format_ = following
        elif argument.startswith("--format="):
            format_ = argument.removeprefix("--format=")
    return format_


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Of the command line; the process's own by default.

    Returns:
        The exit code.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    format_ = _format_of(given)
    try:
        code: Any = cli.main(given, prog_name="licet", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return EXIT_ERROR
    except click.ClickException as error:
        return report_misuse(error, format_)
    except click.Abort:
        return report_stopped(format_)
    except BrokenPipeError:
        # Whoever read the output has gone; nothing more can be told, not even when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except Exception as error:  # noqa: BLE001  # The boundary: no traceback reaches a user.
        return report(error, format_)
    return code if isinstance(code, int) else EXIT_DONE


def main() -> None:
    """Entry point of the program."""
    sys.exit(run())


if __name__ == "__main__":
    main()
