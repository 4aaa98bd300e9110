"""The reference of the command line is what the commands say of themselves.

Write it anew with ``python tests/docs/test_cli_docs.py``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from licet_engine.cli import cli
from licet_engine.commands import training
from licet_engine.lifecycle.training import Spec

if TYPE_CHECKING:
    from collections.abc import Iterator

REFERENCE = Path(__file__).parents[2] / "docs" / "cli.md"

INTRODUCTION = """\
# The command line

`licet NOUN VERB`: every command, as it describes itself with `--help`. This page is generated; a test compares it with the commands.

**Connection.** `--url` or `LICET_URL` names the server. The token is read from the file that `--token-file` or `LICET_TOKEN_FILE` names,
which nobody else may be able to read (mode 0600), or from `LICET_TOKEN`; it is never typed on the command line. It is not sent
unencrypted to another machine.

**Output.** The answer goes to stdout, as text or with `--format json` as one JSON document; progress and errors go to stderr. With
`--format json` an error stands on stdout as `{"error": {"code", "message"}}`. A list in text shows the columns that people look for first, and
names below what it leaves out; JSON shows all of it, as `{"items": [...]}`.

**Exit codes.**

| code | meaning |
|---|---|
| 0 | allowed; and with `--wait`: done, whatever was found (that a model fails a check is a result) |
| 1 | denied; `licet verify`: not verified; `licet doctor`: something is weak; the policy workbench: something was found |
| 2 | error; the operation failed; what is allowed is not possible as things stand; `licet doctor`: something is broken |
| 3 | denied, and approvals are all that is missing |
| 130 | stopped by the user, also at a question |

**Asking** ends as what is asked about would end: where it is allowed and could not be done as things stand, `licet ask` says so after `but` (in
JSON as `conflict`), with exit code 2. A path to yes says the same of its end.

**Work that takes longer** is accepted as an operation. `--wait` follows it to its end; without it the answer names the operation, and
`licet operation wait TENANT/ID` follows it later.

**Times.** A DURATION is `90s`, `15m`, `12h` or `30d`; a bare number counts seconds. A DATE is `2030-01-01` or `2030-01-01T12:00:00Z`, in
UTC unless it names an offset.

**Repeating.** A command that met a lost connection is repeated under its idempotency key by itself. If it gives up it names the key;
repeat it with `--idempotency-key`, and it is done once. Where it is known that nothing was done (no server took the connection, or too much
was asked of it), and for `licet ask` and whatever else changes nothing, it says so: those are safe to repeat as they are.
"""


def commands(command: click.Command, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    """Every command with the context that it has when it is run: what it shows of itself is partly its parents'."""
    yield command, context
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            below = command.commands[name]
            if not below.hidden:
                yield from commands(below, click.Context(below, info_name=name, parent=context))


def root() -> click.Context:
    settings = {**cli.context_settings, "max_content_width": 110, "terminal_width": 110}
    return click.Context(cli, info_name="licet", **settings)


def reference() -> str:
    parts = [INTRODUCTION]
    for command, context in commands(cli, root()):
        path = context.command_path
        level = "##" if len(path.split()) < 3 else "###"
        parts.append(f"{level} {path}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def test_the_reference_is_what_the_commands_say() -> None:
    assert REFERENCE.read_text("utf-8") == reference(), "docs/cli.md is old: python tests/docs/test_cli_docs.py"


def test_every_command_and_option_is_described() -> None:
    for command, context in commands(cli, root()):
        path = context.command_path
        assert command.help, path
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, (path, parameter.name)


def test_the_help_of_a_launch_names_every_member_of_the_specification_and_no_other() -> None:
    text = re.sub(r"\([^)]*\)", "", str(training.launch.help)).split("The specification: ")[1].split(". ")[0]
    assert [name.strip() for name in text.replace("\n", " ").split(",")] == list(Spec.model_fields)


def test_every_command_that_talks_to_a_server_can_answer_in_json() -> None:
    for command, context in commands(cli, root()):
        path = context.command_path
        names = {parameter.name for parameter in command.params}
        if "url" in names:
            assert "format_" in names, path
            assert "token" not in names, path


if __name__ == "__main__":
    REFERENCE.write_text(reference(), "utf-8")
