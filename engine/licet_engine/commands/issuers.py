"""``licet issuer``, and ``licet token exchange``.

Rules kept here:

- An ID token is taken from a file, or from a variable of the environment, never from an argument; neither it nor what it is exchanged for
  is shown.
- In a job of GitHub Actions the ID token is asked for there, for the audience that the issuer is trusted with.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from licet_engine.commands.data import lister
from licet_engine.commands.desk import immediate, remote
from licet_engine.commands.options import PAIR, REFERENCE, SECONDS, read_json_object
from licet_engine.commands.people import refuse_taken, token, write_token
from licet_engine.domain.exchanging import MAX_TOKEN_CHARS, audience_of

if TYPE_CHECKING:
    from licet_engine.commands.desk import Desk

_GITHUB_URL: Final = "ACTIONS_ID_TOKEN_REQUEST_URL"
_GITHUB_TOKEN: Final = "ACTIONS_ID_TOKEN_REQUEST_TOKEN"  # noqa: S105  # The name of a variable.
_OF_ENVIRONMENT: Final = "LICET_ID_TOKEN"
_PAUSE_S: Final = 5.0
_TIMEOUT_S: Final = 20.0


@click.group()
def issuer() -> None:
    """Issuers of ID tokens that a tenant trusts: trust, list, remove."""


@issuer.command()
@click.argument("ref", metavar="TENANT/NAME", type=REFERENCE)
@click.option("--address", required=True, help="The issuer's URL, as its tokens have it in iss.")
@click.option("--account", required=True, help="Service account that its tokens stand for.")
@click.option(
    "--require",
    "claims",
    multiple=True,
    required=True,
    type=PAIR,
    help="Claim that a token must have, word for word; one of them must bind it to a repository or project. Repeatable.",
)
@click.option("--audience", help="What its tokens must be made for; licet:TENANT/NAME if not given.")
@click.option(
    "--keys",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with its public keys, a JWK set; without it they are fetched from the issuer, again and again.",
)
@click.option("--unsafe-http", is_flag=True, help="The issuer is asked by plain http on the server's own machine.")
@immediate
def trust(
    desk: Desk,
    ref: str,
    *,
    address: str,
    account: str,
    claims: tuple[tuple[str, str], ...],
    audience: str | None,
    keys: Path | None,
    unsafe_http: bool,
) -> None:
    """Trust an issuer: its ID tokens with just these claims stand for a service account from now on."""
    if len({name for name, _ in claims}) < len(claims):
        raise click.BadParameter("a claim is given twice", param_hint="--require")
    answer = desk.client.issuer.trust(
        ref,
        address,
        # As everything is named with its tenant, so may the account be.
        account=account.removeprefix(f"{ref.partition('/')[0]}/"),
        claims=dict(claims),
        audience=audience,
        keys=None if keys is None else read_json_object(keys, "--keys"),
        unsafe_http=unsafe_http or None,
        **desk.sent,
    )
    desk.finish(answer)


@issuer.command()
@click.argument("ref", metavar="TENANT/NAME", type=REFERENCE)
@immediate
def remove(desk: Desk, ref: str) -> None:
    """Trust an issuer no more, and revoke what its ID tokens were exchanged for."""
    desk.finish(desk.client.issuer.remove(ref, **desk.sent))


lister(issuer, "issuers", "List the issuers that a tenant trusts.")


@token.command()
@click.argument("ref", metavar="TENANT/ISSUER", type=REFERENCE)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="New file to write the token to, mode 0600; name it in LICET_TOKEN_FILE.",
)
@click.option(
    "--id-token-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help=f"File with the ID token. Without it {_OF_ENVIRONMENT} is taken, or GitHub Actions is asked.",
)
@click.option("--audience", help="What GitHub is to make the ID token for; licet:TENANT/ISSUER if not given.")
@click.option(
    "--patience",
    type=SECONDS,
    default="60s",
    show_default=True,
    help="How long to try again where it is refused: the issuer's keys may be new.",
)
@remote
def exchange(
    desk: Desk, ref: str, *, out: Path, id_token_file: Path | None, audience: str | None, patience: float
) -> None:
    """Exchange the ID token of a job for a token of the service account that it stands for. It needs no token."""
    from licet_engine.client import RequestRefused  # noqa: PLC0415  # Kept out of the start of other commands.

    refuse_taken(out)
    desk.needs_token = False
    until_s = time.monotonic() + patience
    while True:
        id_token = _id_token(id_token_file, audience or audience_of(ref))
        try:
            made = desk.client.exchange(ref, id_token)
            break
        except RequestRefused:
            if time.monotonic() + _PAUSE_S > until_s:
                raise
        time.sleep(_PAUSE_S)
    write_token(out, made.token)
    told = {"token_file": str(out), "expires_in_s": made.expires_in_s}
    desk.show(told, [f"the token is in {out} and counts for {made.expires_in_s} s", f"  export LICET_TOKEN_FILE={out}"])


def _id_token(file: Path | None, audience: str) -> str:
    """The ID token of this job."""
    if file is not None:
        text = file.read_text("utf-8", "replace")[: MAX_TOKEN_CHARS + 1].strip()
    else:
        text = os.environ.get(_OF_ENVIRONMENT, "").strip() or _of_github(audience)
    if not text or len(text) > MAX_TOKEN_CHARS or not text.isascii() or " " in text:
        raise click.UsageError(
            f"no ID token: name a file with --id-token-file, set {_OF_ENVIRONMENT}, or run in a job of GitHub Actions that has the"
            " permission id-token: write"
        )
    return text


def _of_github(audience: str) -> str:
    """An ID token, asked of GitHub Actions for this job; empty where this is none."""
    url, secret = os.environ.get(_GITHUB_URL, ""), os.environ.get(_GITHUB_TOKEN, "")
    if not url or not secret:
        return ""
    import httpx  # noqa: PLC0415  # Kept out of the start of other commands.

    try:
        response = httpx.get(
            httpx.URL(url).copy_merge_params({"audience": audience}),
            headers={"Authorization": f"Bearer {secret}", "Accept": "application/json"},
            timeout=_TIMEOUT_S,
        )
        value = response.json().get("value") if response.is_success else None
    except (httpx.HTTPError, ValueError, AttributeError) as error:
        raise click.ClickException(f"GitHub Actions gave no ID token ({type(error).__name__})") from error
    if not isinstance(value, str):
        raise click.ClickException(f"GitHub Actions gave no ID token: it answered {response.status_code}")
    return value
