"""What an operation is of now, where its question is not asked again as it was: for deciding on it again while it runs."""

from __future__ import annotations

from licet_engine.domain.errors import LicetError
from licet_engine.domain.refs import Ref, parse_ref
from licet_engine.lifecycle import serving
from licet_engine.lifecycle.catalogue import VERBS
from licet_engine.lifecycle.endpoints import CHANGES
from licet_engine.lifecycle.facts import View
from licet_engine.lifecycle.holding import is_about_hold, is_overtaken, stands
from licet_engine.lifecycle.models import split_name
from licet_engine.lifecycle.verbs import Ids, Proposal, RefForm, Who
from licet_engine.store import tables


class Refused(LicetError):
    """The operation was decided again, and the answer is no."""

    status = 403
    default_code = "refused"


def as_it_is_now(view: View, who: Who, row: tables.Operation, ids: Ids) -> Proposal:
    """The resource of an operation as it is now, the context of its action, and the parameters it would have."""
    verb = VERBS[row.action]
    if row.action == "dataset.register":
        dataset = view.dataset(parse_ref(row.resource).name)
        return Proposal(resource=view.dataset_entity(dataset)) if dataset is not None else _gone(row)
    if row.action == "training.launch":
        run = view.run(parse_ref(row.resource).name)
        return Proposal(resource=view.run_entity(run, is_paid=True)) if run is not None else _gone(row)
    if row.action == "model.register":
        version = view.model_version(*split_name(row))
        if version is None:
            return _gone(row)
        # The manifest is of the files that stood before, until this operation has put others in their place.
        return Proposal(resource=view.model_version_entity(version), context={"replaces": bool(version.manifest)})
    if row.action in CHANGES:
        # What it is to do stands in its parameters; it changes by itself what it would be proposed from.
        return serving.as_it_is_now(view, row) or _gone(row)
    body = verb.body.model_validate(row.asked)
    ref = (
        Ref(row.resource, "")
        if verb.form is RefForm.TENANT
        else parse_ref(row.resource, versioned=verb.form is RefForm.VERSION)
    )
    # Two may change places on their way to the store: what stands in the database decides what the store is to keep.
    if is_about_hold(row.action) and is_overtaken(view, row.action, row.resource):
        became = "held again" if stands(view, row.action, row.resource) else "let go"
        raise Refused(f"{row.resource} was {became} since: the store stays as it is")
    return verb.propose(view, who, ref, body, ids) or _gone(row)


def _gone(row: tables.Operation) -> Proposal:
    raise Refused(f"{row.resource} is no longer there, or no longer what {row.action} was decided on: ask again")
