"""What the commands that talk to a server share: connection, options, output, exit codes.

Rules kept here:

- A token is read from a file that nobody else can read, or from ``LICET_TOKEN``; there is no option to type one.
- A command ends by ``Desk.finish`` or ``Desk.show``: one document on stdout, and the exit code of the package's rules.
"""

from __future__ import annotations

import functools
import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from licet_engine.commands import failures
from licet_engine.commands.failures import EXIT_APPROVAL_PENDING, EXIT_DENIED, EXIT_DONE, EXIT_ERROR
from licet_engine.commands.options import CLAIM, SECONDS
from licet_engine.commands.render import answer_lines, operation_lines
from licet_engine.commands.text import clean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from licet_engine.client import LicetClient
    from licet_engine.client_values import Answer, Operation

F = TypeVar("F", bound="Callable[..., Any]")

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_SERVING_URL = "http://127.0.0.1:8001"
_MAX_TOKEN_BYTES = 4096
_MOST_ROWS = 1000


@dataclass
class Desk:
    """The place at which one command works.

    Attributes:
        format_: ``text`` or ``json``.
        url: Where the server answers.
        token_file: Holds the token; None to take ``LICET_TOKEN``.
        unsafe_plain_http: Send the token unencrypted to another machine.
        serving_url: Where the router takes invocations, for the command that sends one.
        wait: Whether to wait for accepted work.
        timeout_s: How long at most.
        claimed: What the asker claims.
        idempotency_key: Of an earlier try of the same command.
        needs_token: Whether the command makes no sense without a token.
    """

    format_: str
    url: str = DEFAULT_URL
    token_file: Path | None = None
    unsafe_plain_http: bool = False
    serving_url: str = DEFAULT_SERVING_URL
    wait: bool = False
    timeout_s: float = 3600.0
    claimed: Mapping[str, str] = field(default_factory=dict)
    idempotency_key: str | None = None
    needs_token: bool = True

    @functools.cached_property
    def client(self) -> LicetClient:
        """The connection, opened when it is first needed and closed with the command."""
        from licet_engine.client import LicetClient  # noqa: PLC0415  # Kept out of the start of other commands.

        token = read_token(self.token_file, os.environ.get("LICET_TOKEN", "")) if self.needs_token else ""
        client = LicetClient(self.url, token, unsafe_plain_http=self.unsafe_plain_http, serving_url=self.serving_url)
        click.get_current_context().call_on_close(client.close)
        return client

    @property
    def sent(self) -> dict[str, Any]:
        """What every verb of the client takes beside its own parameters."""
        return {"claimed": dict(self.claimed) or None, "idempotency_key": self.idempotency_key}

    def show(self, value: Any, lines: Sequence[str]) -> None:
        """Write the one document of this command."""
        if self.format_ == "json":
            click.echo(json.dumps(value, indent=2, ensure_ascii=True))
        else:
            click.echo("\n".join(lines))

    def finish(self, answer: Answer) -> None:
        """Show an answer, wait for its operation if that was asked for, and end with the right exit code."""
        if not answer.allowed:
            explanation = self.client.explain(answer)
            pending = explanation is not None and explanation.is_approval_pending
            document = {**answer.to_json(), "approval_pending": pending, "explanation": None, "path": None}
            if explanation is not None:
                document |= {"explanation": explanation.explanation, "path": explanation.path}
            self.show(document, answer_lines(answer, explanation))
            raise click.exceptions.Exit(EXIT_APPROVAL_PENDING if pending else EXIT_DENIED)
        if answer.conflict is not None:
            self.show(answer.to_json(), answer_lines(answer))
            raise click.exceptions.Exit(EXIT_ERROR)  # As what was asked about would end.
        operation = answer.operation
        if operation is None or not self.wait:
            lines = answer_lines(answer)
            if operation is not None:
                lines.append(f"  operation {operation.ref} is {operation.state}; follow it with")
                lines.append(f"    licet operation wait {operation.ref}")
            self.show(answer.to_json(), lines)
            return
        if self.format_ == "text":
            click.echo("\n".join(answer_lines(answer)))
        ended = self.wait_for(operation)
        self.show_ended(ended, answer.to_json())
        raise click.exceptions.Exit(exit_code_of(ended))

    def show_ended(self, ended: Operation, document: Mapping[str, Any] | None = None) -> None:
        """Show how an operation ended; of one that rolled back, also which version is on the stage now."""
        shown, lines = {**(document or {}), "operation": ended.to_json()}, operation_lines(ended)
        stage = ended.result.get("stage")
        if ended.action == "model.roll-back" and ended.is_done and isinstance(stage, str):
            on_stage = self._on_stage(ended, stage)
            shown["on_stage"] = on_stage
            if on_stage is not None:
                lines.append(f"  {clean(on_stage)} is on {clean(stage)} now")
        self.show(shown, lines)

    def _on_stage(self, ended: Operation, stage: str) -> str | None:
        """The version of an operation's model that is on a stage; None if that is not known or not the asker's to read."""
        from licet_engine.client_values import LicetClientError  # noqa: PLC0415  # As above.

        ref = ended.resource.partition("@")[0]
        try:
            rows = self.client.list(ended.tenant, "models", limit=_MOST_ROWS)
        except LicetClientError:
            return None  # What was done is done, whether or not it may be looked at.
        model = ref.removeprefix(f"{ended.tenant}/")
        held = [row.get("version") for row in rows if (row.get("model"), row.get("stage")) == (model, stage)]
        return f"{ref}@{held[0]}" if len(held) == 1 else None

    def wait_for(self, operation: Operation | str) -> Operation:
        """Wait for an operation to end, its progress on a live display on stderr."""
        from licet_engine.client_values import ServerUnavailable, StillRunning  # noqa: PLC0415  # As above.
        from licet_engine.commands.live import live_display  # noqa: PLC0415  # As above.

        name = operation if isinstance(operation, str) else operation.ref
        try:
            with live_display(name) as update:
                return self.client.wait(operation, timeout_s=self.timeout_s, on_progress=update)
        except ServerUnavailable as error:
            # What was accepted is done, whoever waits for it.
            raise StillRunning(f"{error}; what was accepted goes on: licet operation wait {name}") from error
        except KeyboardInterrupt:
            click.echo(f"\noperation {name} goes on; follow it with: licet operation wait {name}", err=True)
            raise

    def save(self, answer: Answer, out: Path, *, overwrite: bool) -> None:
        """Wait for the operation of an answer and write its artifact to ``out``; a denial ends as ``finish`` does."""
        if not answer.allowed or answer.operation is None:
            self.finish(answer)
            return
        refuse_present(out, overwrite=overwrite)
        ended = self.wait_for(answer.operation)
        if not ended.is_done:
            self.show({**answer.to_json(), "operation": ended.to_json()}, operation_lines(ended))
            raise click.exceptions.Exit(exit_code_of(ended))
        digest_hex = self.fetch(ended, out)
        document = {**answer.to_json(), "operation": ended.to_json(), "file": str(out), "digest_hex": digest_hex}
        self.show(document, [*operation_lines(ended), f"  written to {out} (SHA-256 {digest_hex})"])

    def fetch(self, operation: Operation, out: Path) -> str:
        """Write an operation's artifact to ``out``, whole or not at all; returns its SHA-256 in hex."""
        part = out.with_name(f".{out.name}.{os.getpid()}.part")
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(descriptor, "w+b") as target:
                digest_hex = self.client.fetch_artifact(operation, target)
                target.flush()
                os.fsync(target.fileno())
            part.replace(out)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        return digest_hex


def exit_code_of(operation: Operation) -> int:
    """The exit code of an ended operation: refused by policy is a denial, failed is an error."""
    return {"done": EXIT_DONE, "refused": EXIT_DENIED}.get(operation.state, EXIT_ERROR)


def refuse_present(out: Path, *, overwrite: bool) -> None:
    """Refuse to write over a file, before anything is asked for."""
    if out.is_dir() or (out.exists() and not overwrite):
        raise click.BadParameter(f"{out} exists: name another file, or say --overwrite", param_hint="--out")
    if not out.parent.is_dir():
        raise click.BadParameter(f"there is no folder {out.parent}", param_hint="--out")


def read_token(token_file: Path | None, from_environment: str) -> str:
    """Read the token from its file, or take the environment's.

    Raises:
        click.UsageError: There is none, the file is open to others, or it holds no token.
    """
    if token_file is None:
        token = from_environment.strip()
        if not token:
            raise click.UsageError(
                "no token: name the file that holds yours with --token-file or LICET_TOKEN_FILE, or set LICET_TOKEN"
            )
        return token
    with token_file.open("rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise click.UsageError(f"{token_file} is not a file")
        if stat.S_IMODE(status.st_mode) & 0o077:
            raise click.UsageError(
                f"{token_file} can be read by others: chmod 600 {token_file}, and revoke the token if they may have"
            )
        data = file.read(_MAX_TOKEN_BYTES + 1)
    token = data.decode("ascii", "replace").strip()
    if not token or len(data) > _MAX_TOKEN_BYTES or not token.isascii() or not token.isprintable() or " " in token:
        raise click.UsageError(
            f"{token_file} does not hold a token: it must hold one, as it was issued, and nothing else"
        )
    return token


# --- options --------------------------------------------------------------------------------------------------------------

_FORMAT = click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How to answer: text for people, JSON for programs.",
)
_CONNECTION = (
    click.option(
        "--url", envvar="LICET_URL", default=DEFAULT_URL, show_default=True, show_envvar=True, help="The server."
    ),
    click.option(
        "--token-file",
        envvar="LICET_TOKEN_FILE",
        show_envvar=True,
        type=click.Path(path_type=Path),
        help="File with your token, mode 0600. Without it LICET_TOKEN is taken.",
    ),
    click.option(
        "--unsafe-plain-http",
        is_flag=True,
        envvar="LICET_UNSAFE_PLAIN_HTTP",
        help="Send the token unencrypted to another machine.",
    ),
)
_SENT = (
    click.option(
        "--claim",
        "claimed",
        multiple=True,
        type=CLAIM,
        help="Claim NAME=TEXT in the request; feeds no guardrail. Repeatable.",
    ),
    click.option("--idempotency-key", help="Of an earlier try of the same command that got no answer."),
)
_WAIT = (
    click.option("--wait/--no-wait", "wait", default=False, show_default=True, help="Wait until the work is done."),
)
_TIMEOUT = (
    click.option(
        "--timeout", "timeout_s", type=SECONDS, default="1h", show_default=True, help="How long to wait at most."
    ),
)


def _decorated(function: F, options: Sequence[Callable[[F], F]]) -> F:
    for option in reversed(options):
        function = option(function)
    return function


def guarded(function: F) -> F:
    """Let a command fail as ``failures.report`` says, in the format asked for; click's own exceptions pass."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:  # The boundary: every error becomes a message and an exit code.
            raise click.exceptions.Exit(failures.report(error, kwargs.get("format_", "text"))) from error

    return run  # type: ignore[return-value]  # It takes and returns what the function does.


def local(function: F) -> F:
    """A command that needs no server; gets ``format_``."""
    return _decorated(guarded(function), (_FORMAT,))


def _at_desk(function: F, options: Sequence[Any]) -> F:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        names = ("url", "token_file", "unsafe_plain_http", "wait", "timeout_s", "claimed", "idempotency_key")
        given = {name: kwargs.pop(name) for name in names if name in kwargs}
        given["claimed"] = dict(given.get("claimed", ()))
        desk = Desk(format_=kwargs["format_"], **given)
        kwargs.pop("format_")
        return function(desk, *args, **kwargs)

    # The guard stands outside, so that it still sees the format.
    return _decorated(guarded(run), options)  # type: ignore[return-value]  # As above.


def remote(function: F) -> F:
    """A command that looks something up at the server; gets a ``Desk``."""
    return _at_desk(function, (_FORMAT, *_CONNECTION))


def asking(function: F) -> F:
    """A command that asks the server, and does nothing; gets a ``Desk``."""
    return _at_desk(function, (_SENT[0], _FORMAT, *_CONNECTION))


def immediate(function: F) -> F:
    """A command that changes something at once; gets a ``Desk``."""
    return _at_desk(function, (*_SENT, _FORMAT, *_CONNECTION))


def mutation(function: F) -> F:
    """A command whose work may go on after the answer; gets a ``Desk``."""
    return _at_desk(function, (*_WAIT, *_TIMEOUT, *_SENT, _FORMAT, *_CONNECTION))


def waiting(function: F) -> F:
    """A command that waits for work in any case; gets a ``Desk``."""
    return _at_desk(function, (*_TIMEOUT, *_SENT, _FORMAT, *_CONNECTION))
