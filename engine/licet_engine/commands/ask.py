"""``licet ask``: may I?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from licet_engine.commands.desk import asking
from licet_engine.commands.models import STAGE, TRACK
from licet_engine.commands.options import JSON_PAIR, REFERENCE, read_json_object

if TYPE_CHECKING:
    from collections.abc import Mapping

    from licet_engine.commands.desk import Desk

_OF_VERSION: Mapping[str, str] = {
    "approve": "model.approve",
    "check": "model.check",
    "delete": "model.delete",
    "download": "model.download",
    "hold": "model.hold",
    "lift-hold": "model.lift-hold",
    "promote": "model.promote",
    "read": "model.read",
    "register": "model.register",
    "request": "model.request",
    "retire": "model.retire",
    "roll-back": "model.roll-back",
    "withdraw-approval": "model.withdraw-approval",
    "withdraw-request": "model.withdraw-request",
}
_OF_NAME: Mapping[str, str] = {
    "activate": "policy.activate",
    "administer": "person.administer",
    "archive": "dataset.archive",
    "cancel": "training.cancel",
    "classify": "dataset.classify",
    "delegate": "approval.delegate",
    "delete": "dataset.delete",
    "deploy": "endpoint.deploy",
    "hold": "dataset.hold",
    "invoke": "endpoint.invoke",
    "issue": "token.issue",
    "launch": "training.launch",
    "lift-hold": "dataset.lift-hold",
    "log": "run.log",
    "read": "dataset.read",
    "retire": "endpoint.retire",
    "revoke": "token.revoke",
    "roll-back": "endpoint.roll-back",
    "shift": "endpoint.shift-traffic",
    "train": "training.launch",
}
_REGISTERED_BY: Mapping[str, str] = {"run": "model.register", "upload": "dataset.register"}
"""The parameter that tells what is to be registered."""
_OF_TENANT: Mapping[str, str] = {
    "administer": "tenant.administer",
    "create": "tenant.create",
    "destroy": "key.destroy",
    "erase": "record.erase",
    "export": "evidence.export",
    "hold": "evidence.hold",
    "lift-hold": "evidence.lift-hold",
    "publish": "policy.publish",
    "read": "log.read",
    "suspend": "tenant.suspend",
}


def action_of(verb: str, ref: str, given: Mapping[str, Any] | None = None) -> str:
    """The action that a short verb means on a resource of this form; a full action is itself.

    Args:
        verb: What was written.
        ref: On what.
        given: The parameters, where they tell which of two actions is meant.

    Raises:
        click.BadParameter: No action is called so on such a resource.
    """
    if "." in verb:
        return verb
    short = {"rollback": "roll-back", "lift": "lift-hold"}.get(verb, verb)
    form = _OF_VERSION if "@" in ref else _OF_NAME if "/" in ref else _OF_TENANT
    if short == "register" and form is not _OF_VERSION:
        # A new model is named as a dataset is; what it would be made from tells them apart.
        meant = [action for member, action in _REGISTERED_BY.items() if member in (given or {})]
        if len(meant) == 1:
            return meant[0]
        raise click.BadParameter(
            f"{verb!r} may mean two things on {ref!r}: write dataset.register or model.register (--run tells the latter)",
            param_hint="VERB",
        )
    if short in form:
        return form[short]
    # A verb that only one kind of resource knows is plain even where the reference is not: the server says what is wrong with it.
    elsewhere = {known[short] for known in (_OF_VERSION, _OF_NAME, _OF_TENANT) if short in known}
    if len(elsewhere) == 1:
        return elsewhere.pop()
    names = ", ".join(sorted(form))
    raise click.BadParameter(
        f"{verb!r} is no verb for {ref!r}: use one of {names}, or an action in full such as model.promote",
        param_hint="VERB",
    )


@click.command()
@click.argument("verb")
@click.argument("ref")
@click.option("--to", "stage", type=STAGE, help="Stage to promote to, or to roll back on; prod if not given.")
@click.option("--track", type=TRACK, help="Track to approve on.")
@click.option("--region", help="Region it would be in.")
@click.option("--dataset", type=REFERENCE, help="Dataset to train on.")
@click.option("--environment", help="Environment to train in.")
@click.option("--use", help="What the model is for.")
@click.option("--ticket", help="Change ticket it would be promoted under.")
@click.option("--run", "run_", type=REFERENCE, help="Run whose model would be registered.")
@click.option("--reason", help="Why.")
@click.option(
    "--param", "parameters", multiple=True, type=JSON_PAIR, help="Another parameter; JSON or text. Repeatable."
)
@click.option("--parameters-file", type=click.Path(path_type=Path), help="JSON object of parameters.")
@asking
def ask(
    desk: Desk,
    verb: str,
    ref: str,
    parameters: tuple[tuple[str, Any], ...],
    parameters_file: Path | None,
    **named: str | None,
) -> None:
    """Ask whether VERB on REF would be permitted, and possible as things stand; nothing is done.

    VERB is short (promote, approve, register, train, download, delete, export, ...) or an action in full (model.promote).

    \b
      licet ask promote northbank/credit-risk@1 --to prod
      licet ask train northbank/run-1 --dataset northbank/hmda --environment us-east --use credit-risk
    """  # noqa: D301  # The backspace tells click not to wrap what follows.
    given: dict[str, Any] = {} if parameters_file is None else read_json_object(parameters_file, "--parameters-file")
    given |= {name.rstrip("_"): value for name, value in named.items() if value is not None}
    given |= dict(parameters)
    answer = desk.client.ask(action_of(verb, ref, given), ref, given, claimed=desk.claimed)
    desk.finish(answer)
