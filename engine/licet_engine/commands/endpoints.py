"""``licet endpoint``: deploy, shift, show, roll back, retire, invoke, list."""

from __future__ import annotations

import json
import re
import sys
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from licet_engine.commands.data import lister
from licet_engine.commands.desk import DEFAULT_SERVING_URL, mutation, remote
from licet_engine.commands.failures import EXIT_DENIED
from licet_engine.commands.options import PAIR, SECONDS
from licet_engine.commands.render import answer_lines
from licet_engine.commands.text import block, clean, labelled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from licet_engine.commands.desk import Desk

_ENDPOINT = "TENANT/ENDPOINT"
_MICRO = 1_000_000
_MAX_REQUEST_BYTES = 64 << 20
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(us|ms|s)")
_SHARE = re.compile(r"0(?:\.[0-9]{1,6})?|1(?:\.0{1,6})?")
_YES_NO = {"yes": 1.0, "no": 0.0}
_UNIT_US = {"us": 1, "ms": 1_000, "s": 1_000_000}
_SHARES = {"error-rate": "threshold_micro", "confidence-shift": "threshold_micro", "drift": "alpha_micro"}


class AlarmOption(click.ParamType[dict[str, Any]]):
    """``KIND=VALUE``: an alarm and the value beyond which it fires."""

    name = "KIND=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        """See ``click.ParamType``."""
        if isinstance(value, dict):
            return value
        kind, text = PAIR.convert(value, param, ctx)
        if kind == "p95-latency":
            match = _DURATION.fullmatch(text)
            if match is None:
                self.fail(f"{value!r}: write a latency as 50ms or 800us", param, ctx)
            return {"kind": kind, "threshold_us": int(Decimal(match[1]) * _UNIT_US[match[2]])}
        if kind == "staleness":
            return {"kind": kind, "max_age_s": int(SECONDS.convert(text, param, ctx))}
        if kind not in _SHARES:
            self.fail(
                f"{kind!r} is no alarm: there are p95-latency, error-rate, drift, confidence-shift and staleness",
                param,
                ctx,
            )
        if not _SHARE.fullmatch(text):
            self.fail(f"{value!r}: write a share between 0 and 1, such as 0.05", param, ctx)
        return {"kind": kind, _SHARES[kind]: int(Decimal(text) * _MICRO)}


def _numbers(values: Sequence[tuple[str, str]], option: str) -> dict[str, int]:
    """``NAME=NUMBER`` pairs."""
    found: dict[str, int] = {}
    for name, text in values:
        if not re.fullmatch("[0-9]{1,9}", text) or name in found:
            raise click.BadParameter(f"{name}={text} is no number, or named twice", param_hint=option)
        found[name] = int(text)
    return found


@click.group()
def endpoint() -> None:
    """Endpoints: deploy, shift, show, rollback, retire, invoke, list."""


@endpoint.command()
@click.argument("ref", metavar=_ENDPOINT)
@click.option("--version", "version_", required=True, help="Version to deploy, TENANT/MODEL@VERSION.")
@click.option(
    "--alarm",
    "alarms",
    multiple=True,
    type=AlarmOption(),
    help="What returns all traffic to the version before: p95-latency=50ms, error-rate=0.05, drift=0.01 (chance of a false "
    "alarm), confidence-shift=0.2, staleness=30d. Repeatable; without one policy refuses the deployment.",
)
@click.option("--window", "window_s", type=SECONDS, help="Over how long each alarm looks; 60s if not given.")
@click.option(
    "--min-count",
    type=click.IntRange(1),
    help="How many requests (of drift and confidence-shift, rows) an alarm needs to fire; 50 if not given.",
)
@click.option(
    "--strategy",
    type=click.Choice(["canary", "blue-green", "shadow", "direct"]),
    help="How it gets traffic; canary if not given.",
)
@click.option("--steps", help="Percent of a canary, such as 10,50,100.")
@click.option("--bake", "bake_s", type=SECONDS, help="How long each step is held without an alarm.")
@click.option("--region", help="Region; the tenant's own if not given.")
@click.option(
    "--replicas",
    type=PAIR,
    multiple=True,
    help="min=1, max=2, idle_s=0. min=0 with idle_s=300 stops the last one when it is idle. Repeatable.",
)
@click.option(
    "--batch",
    type=PAIR,
    multiple=True,
    help="max_rows=32, max_wait_ms=2: how many rows are computed together, and how long is waited for them. Repeatable.",
)
@click.option("--timeout-ms", type=click.IntRange(10, 120_000), help="How long a request may take; 2000 if not given.")
@click.option("--max-request-bytes", type=click.IntRange(256, 64 << 20), help="Largest request; 1048576 if not given.")
@mutation
def deploy(
    desk: Desk,
    ref: str,
    *,
    version_: str,
    alarms: tuple[dict[str, Any], ...],
    window_s: float | None,
    min_count: int | None,
    strategy: str | None,
    steps: str | None,
    bake_s: float | None,
    region: str | None,
    replicas: tuple[tuple[str, str], ...],
    batch: tuple[tuple[str, str], ...],
    timeout_ms: int | None,
    max_request_bytes: int | None,
) -> None:
    """Put a model version on an endpoint, watched by alarms.

    \b
      licet endpoint deploy northbank/credit --version northbank/credit-risk@2 --steps 10,50,100 --bake 10m \\
        --alarm p95-latency=50ms --alarm error-rate=0.02 --alarm drift=0.01 --wait
    """  # noqa: D301  # The backspace tells click not to wrap what follows.
    bounds = {"window_s": None if window_s is None else int(window_s), "min_count": min_count}
    given = {name: value for name, value in bounds.items() if value is not None}
    if steps is not None and not re.fullmatch(r"[0-9]{1,3}(,[0-9]{1,3})*", steps):
        raise click.BadParameter(f"{steps!r} is not of the form 10,50,100", param_hint="--steps")
    answer = desk.client.endpoint.deploy(
        ref,
        version_,
        alarms=[{**alarm, **given} for alarm in alarms],
        strategy=strategy,
        steps=None if steps is None else [int(part) for part in steps.split(",")],
        bake_s=None if bake_s is None else int(bake_s),
        region=region,
        replicas=_numbers(replicas, "--replicas") or None,
        batch=_numbers(batch, "--batch") or None,
        timeout_ms=timeout_ms,
        max_request_bytes=max_request_bytes,
        **desk.sent,
    )
    desk.finish(answer)


@endpoint.command()
@click.argument("ref", metavar=_ENDPOINT)
@click.option(
    "--weight", "weights", required=True, multiple=True, type=PAIR, help="VERSION=PERCENT; 100 together. Repeatable."
)
@click.option("--shadow", help="Number of the version that is sent copies.")
@click.option("--reason", help="Why.")
@mutation
def shift(
    desk: Desk, ref: str, *, weights: tuple[tuple[str, str], ...], shadow: str | None, reason: str | None
) -> None:
    """Divide an endpoint's traffic among the versions that are on it."""
    divided = _numbers(weights, "--weight")
    if odd := [name for name in divided if not re.fullmatch("[1-9][0-9]{0,8}", name)]:
        raise click.BadParameter(f"{odd[0]} is no version number: write 2=100", param_hint="--weight")
    desk.finish(desk.client.endpoint.shift_traffic(ref, divided, shadow=shadow, reason=reason, **desk.sent))


@endpoint.command()
@click.argument("ref", metavar=_ENDPOINT)
@click.option("--reason", help="Why.")
@mutation
def rollback(desk: Desk, ref: str, *, reason: str | None) -> None:
    """Return all traffic to the version before; no policy of the tenant's own can stand in the way."""
    desk.finish(desk.client.endpoint.roll_back(ref, reason=reason, **desk.sent))


@endpoint.command()
@click.argument("ref", metavar=_ENDPOINT)
@mutation
def retire(desk: Desk, ref: str) -> None:
    """Drain an endpoint and stop everything of it; its history stays."""
    desk.finish(desk.client.endpoint.retire(ref, **desk.sent))


@endpoint.command()
@click.argument("ref", metavar=_ENDPOINT)
@remote
def show(desk: Desk, ref: str) -> None:
    """Show an endpoint: versions, traffic, alarms that fired, invocations, and how it is doing now."""
    told = desk.client.endpoint.show(ref)
    desk.show(told, _shown(ref, told))


def _shown(ref: str, told: Mapping[str, Any]) -> list[str]:
    row, live = told["endpoint"], told["live"]
    weights = ", ".join(f"version {number} {percent} %" for number, percent in row["weights"].items())
    lines = [
        f"{click.style(clean(row['state']), bold=True)}  {clean(ref)}  {clean(row['model'])} in {clean(row['region'])}",
        labelled("traffic", weights or "none", indent=2, label_chars=13),
    ]
    if row["shadow"]:
        lines.append(labelled("shadow", f"version {row['shadow']}", indent=2, label_chars=13))
    count = told["invocations"]
    lines.append(labelled("invocations", _counted(count["last"], count["lost"]), indent=2, label_chars=13))
    lines.append("  deployments:")
    for deployment in told["deployments"]:
        cause = f": {_cause(deployment['cause'])}" if deployment["cause"] else ""
        what = f"version {deployment['version']}  {deployment['strategy']}  {deployment['state']}{cause}"
        lines.append(f"    - {clean(what)}")
    lines.append("  now, as the router tells:")
    lines += block(live, indent=4)
    return lines


def _counted(last: int, lost: int) -> str:
    """The account of invocations; a number that was lost may never have been used."""
    unknown = f"; {lost} numbers unknown, used or not: a router broke off before it told" if lost else ""
    return f"{last - lost} in the log{unknown}"


def _cause(cause: Mapping[str, Any]) -> str:
    """Why a deployment ended: an alarm that fired, somebody's reason, or an error."""
    if "by" in cause:
        return f"by {cause['by']}: {cause['reason']}" if cause.get("reason") else f"by {cause['by']}"
    if "message" in cause:
        return str(cause["message"])
    if not {"kind", "value", "threshold", "window_s", "count"} <= set(cause):
        return json.dumps(cause, sort_keys=True)
    kind = cause["kind"]
    if kind == "staleness":
        return f"alarm {kind}: the newest data is {cause['value']} s old, above {cause['threshold']} s"
    if kind == "p95-latency":
        beyond = f"{cause['value'] / 1000:g} ms, above {cause['threshold'] / 1000:g} ms"
    else:
        beyond = cause.get("detail") or f"{cause['value'] / _MICRO:g}, above {cause['threshold'] / _MICRO:g}"
    return f"alarm {kind}: {beyond} (on {cause['count']} in {cause['window_s']} s)"


@endpoint.command()
@click.argument("ref", metavar=_ENDPOINT)
@click.argument("request", required=False, type=click.Path(path_type=Path, allow_dash=True))
@click.option("--row", "row", multiple=True, type=PAIR, help="NAME=VALUE of one row, instead of a file. Repeatable.")
@click.option("--version", "version_", type=click.IntRange(1), help="Which version is to answer.")
@click.option(
    "--serving-url",
    envvar="LICET_SERVING_URL",
    show_envvar=True,
    default=DEFAULT_SERVING_URL,
    show_default=True,
    help="The router.",
)
@remote
def invoke(
    desk: Desk,
    ref: str,
    request: Path | None,
    *,
    row: tuple[tuple[str, str], ...],
    version_: int | None,
    serving_url: str,
) -> None:
    """Put an inference request to an endpoint.

    REQUEST is a file with the request as the Open Inference Protocol has it, or - for standard input. Yes is 1, no is 0.

    \b
      licet endpoint invoke northbank/credit --row loan_income=0.3 --row history=1
    """  # noqa: D301  # As above.
    from licet_engine.client import Denied  # noqa: PLC0415  # Kept out of the start of other commands.
    from licet_engine.client_serving import rows_request  # noqa: PLC0415  # As above.

    if bool(row) == (request is not None):
        raise click.UsageError("give a file with the request, or --row, and not both")
    body = rows_request([_row(row)]) if row else _request(request)
    desk.serving_url = serving_url
    try:
        answered = desk.client.endpoint.invoke(ref, body, version=version_)
    except Denied as error:
        # The router tells nobody why; the api tells whoever may read it.
        why = f"  Why, to who may read it:\n    licet ask endpoint.invoke {clean(ref)}"
        desk.show(error.answer.to_json(), [*answer_lines(error.answer), why])
        raise click.exceptions.Exit(EXIT_DENIED) from error
    lines = [f"{click.style('answered', fg='green', bold=True)}  {clean(ref)} by version {clean(answered.version)}"]
    for name, tensor in answered.outputs.items():
        lines.append(labelled(name, ", ".join(map(str, tensor.get("data") or ())), indent=2, label_chars=13))
    lines.append(labelled("invocation", answered.number, indent=2, label_chars=13))
    lines.append(labelled("session", answered.session, indent=2, label_chars=13))
    desk.show(answered.to_json(), lines)


def _row(values: Sequence[tuple[str, str]]) -> dict[str, float]:
    row: dict[str, float] = {}
    for name, text in values:
        try:
            row[name] = _YES_NO[text.lower()] if text.lower() in _YES_NO else float(text)
        except ValueError as error:
            raise click.BadParameter(f"{name}={text} is neither a number nor yes or no", param_hint="--row") from error
    return row


def _request(path: Path | None) -> dict[str, Any]:
    if path is None or str(path) == "-":
        data = sys.stdin.buffer.read(_MAX_REQUEST_BYTES + 1)
    else:
        with path.open("rb") as file:
            data = file.read(_MAX_REQUEST_BYTES + 1)
    try:
        body = json.loads(data) if len(data) <= _MAX_REQUEST_BYTES else None
    except ValueError as error:
        raise click.BadParameter(f"{path} is not JSON: {error}", param_hint="REQUEST") from error
    if not isinstance(body, dict):
        raise click.BadParameter(f"{path} is not one JSON object, or larger than 64 MiB", param_hint="REQUEST")
    return body


lister(endpoint, "endpoints", "List the endpoints of a tenant.")
