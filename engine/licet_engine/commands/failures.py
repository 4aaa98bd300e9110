"""How a command fails: what is wrong, where, and what to do about it."""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from typing import TYPE_CHECKING, Any

import click

from licet_engine.commands.render import answer_lines
from licet_engine.commands.text import clean

if TYPE_CHECKING:
    from collections.abc import Mapping

EXIT_DONE = 0
EXIT_DENIED = 1
EXIT_ERROR = 2
EXIT_APPROVAL_PENDING = 3
EXIT_INTERRUPTED = 130

_EXTRA_OF: Mapping[str, str] = {
    "httpx": "client",
    "rich": "client",
    "cedarpy": "decide",
    "yaml": "decide",
    "cvc5": "prove",
    "alembic": "server",
    "dbos": "server",
    "granian": "server",
    "litestar": "server",
    "msgspec": "server",
    "sqlalchemy": "server",
    "sqlmodel": "server",
    "captum": "train",
    "fairlearn": "train",
    "numpy": "train",
    "safetensors": "train",
    "scipy": "train",
    "torch": "train",
}
"""Module to the extra of ``licet`` that brings it."""

_OPTION_OF: Mapping[str, str] = {
    "approval_ttl_s": "--approval-ttl",
    "duration_s": "--for",
    "environments": "--environment",
    "events": "--event",
    "expires_at_ms": "--expires",
    "on_behalf_of": "--for",
    "overlap_s": "--overlap",
    "remind_before_s": "--remind-before",
    "request_ttl_s": "--request-ttl",
    "until_ms": "--for",
    "url": "--address",
    "budgets": "--budget",
    "kinds": "--kind",
    "packs": "--pack",
    "roles": "--role",
    "ttl_s": "--ttl",
    "uses": "--use",
}
"""Member of a request to the option that gives it, where it is called otherwise."""
_MEMBER = re.compile(r"[a-z][a-z-]*\.[a-z][a-z-]*: ([a-z_]+)((?:\.[^ .:]+)*) (?=is |must )")
_LIST = re.compile(r"must be a list, such as (\[.*\])$")

_HINT_OF: Mapping[str, str] = {
    "no-such-route": "the URL is that of the service's root, such as http://127.0.0.1:8000, with nothing behind it",
    "not-found": "the URL is that of the service's root, such as http://127.0.0.1:8000, with nothing behind it",
    "unauthenticated": "give the file that holds your token with --token-file, or in LICET_TOKEN_FILE",
}
_CERTIFICATE = "CERTIFICATE_VERIFY_FAILED"


def describe(error: BaseException) -> dict[str, Any]:
    """An error as JSON: its code, a message, and a hint where there is one."""
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in _EXTRA_OF:
        module = (error.name or "").partition(".")[0]
        message = f"this command needs {module}, which is not installed: pip install 'licet[{_EXTRA_OF[module]}]'"
        return {"code": "not-installed", "message": message}
    code = getattr(error, "code", None)
    if isinstance(code, str):
        found: dict[str, Any] = {"code": code, "message": _named(str(error))}
        key = getattr(error, "idempotency_key", None)
        is_known_undone = getattr(error, "is_known_undone", None)
        if is_known_undone:
            found["hint"] = "nothing was done; repeat the command when the server answers"
        elif isinstance(key, str):
            found["hint"] = f"whether it was done is not known; repeat the command with --idempotency-key {key}"
        elif is_known_undone is not None:
            found["hint"] = "this changes nothing, so it is safe to repeat the command"
        elif code in _HINT_OF:
            found["hint"] = _HINT_OF[code]
        if _CERTIFICATE in str(error):
            found["hint"] = "the server's certificate is not trusted: set SSL_CERT_FILE to that of its authority"
        return found
    if isinstance(error, OSError) and error.strerror:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        return {"code": "os-error", "message": f"{where}{error.strerror}"}
    if isinstance(error, UnicodeDecodeError):
        return {"code": "invalid-input", "message": f"the file is not UTF-8 text: {error.reason} at byte {error.start}"}
    return {
        "code": "internal",
        "message": f"this is a defect of licet: {type(error).__name__}: {error}",
        "hint": "run it again with LICET_DEBUG=1 and report what it shows",
    }


def _named(message: str) -> str:
    """A message of the server on a member of the request, with the option or argument of this command that gives it."""
    match, context = _MEMBER.match(message), click.get_current_context(silent=True)
    if match is None or context is None:
        return message
    member, below = match[1], [part for part in match[2].split(".") if part and not part.isdigit()]
    given = {name for parameter in context.command.params for name in (*parameter.opts, parameter.human_readable_name)}
    called = [_OPTION_OF.get(member, ""), f"--{member.replace('_', '-')}", member.upper()]
    option = next((name for name in called if name in given), None)
    if option is None and "--param" in given:
        option, below = "--param", [member, *below]
    if option is None:
        return message
    rest = message[match.end() :]
    form = _LIST.search(rest)
    if below and form is not None:
        rest += f": write {option} '{below[-1]}={form[1]}'"
    return f"{' '.join([option, '.'.join(below)]).strip()} {rest}"


def report(error: BaseException, format_: str) -> int:
    """Show an error: in JSON on stdout, where the caller reads; in text on stderr. Returns the exit code."""
    answer = getattr(error, "answer", None)
    if answer is not None:  # A look-up that was denied: no error, but an answer.
        click.echo(json.dumps(answer.to_json(), indent=2) if format_ == "json" else "\n".join(answer_lines(answer)))
        return EXIT_DENIED
    if os.environ.get("LICET_DEBUG"):
        traceback.print_exception(error, file=sys.stderr)
    found = describe(error)
    if format_ == "json":
        click.echo(json.dumps({"error": found}, indent=2))
    else:
        click.echo(f"{click.style('error', fg='red', bold=True)}: {clean(found['message'])}", err=True)
        if "hint" in found:
            click.echo(f"  {clean(found['hint'])}", err=True)
    return EXIT_ERROR


def report_misuse(error: click.ClickException, format_: str) -> int:
    """Show that a command cannot be understood or lacks something: as ``report`` does. Returns the exit code."""
    if format_ != "json":
        error.show()
        return EXIT_ERROR
    found = {"code": "usage", "message": error.format_message()}
    context = getattr(error, "ctx", None)
    if isinstance(context, click.Context) and not isinstance(error, click.exceptions.FileError):
        found["hint"] = f"see {context.command_path} --help"
    click.echo(json.dumps({"error": found}, indent=2))
    return EXIT_ERROR


def report_stopped(format_: str) -> int:
    """Show that the user stopped a command. Returns the exit code."""
    if format_ == "json":
        click.echo(json.dumps({"error": {"code": "interrupted", "message": "stopped"}}, indent=2))
    else:
        click.echo("stopped", err=True)
    return EXIT_INTERRUPTED
