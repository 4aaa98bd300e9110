"""Erasing: records of the log go, their leaves stay; and holds that keep them.

Rules kept here:

- A record goes with its salt, in the transaction of the decision that allows it, together with what the table of decisions and
  ended operations tell of it. No adapter touches anything, so that there is no warrant: what acts is what decides.
- That, by whom and why it went stands in the log for good, as an entry of kind ``erasure`` that names index, kind and commitment
  of each: what a leaf commits to cannot be guessed without the salt.
- Nothing of what is erased gets into the record of the decision to erase it: policy is told of the chosen entries by kinds, times
  and yes or no.
- A decision that is attested by itself is not erased: the statement has record and salt in it, and whoever asked for it has it.
- What is erased already is left alone: asked again, nothing more happens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import Field, model_validator

from licet_attestations import canonical
from licet_attestations.errors import FormatError
from licet_attestations.leaf import Leaf
from licet_engine.domain.errors import Conflict, LicetError
from licet_engine.domain.keeping import kept_until_ms
from licet_engine.domain.refs import Ref
from licet_engine.lifecycle.data import PlaceHold, Text, lift_holds, place_hold
from licet_engine.lifecycle.facts import EVIDENCE, EVIDENCE_NAME, View
from licet_engine.lifecycle.verbs import Body, Change, Ids, Note, Proposal, RefForm, Update, Verb, Who
from licet_engine.store.tables import ERASED, Decision, LogRecord, Operation

MAX_AT_ONCE: Final = 100
"""Records erased by one decision."""
_AT_WORK: Final = frozenset({"accepted", "running"})
_UNREADABLE: Final = "unreadable"
_ABOUT: Final[Mapping[str, str]] = {
    "record.erase": "erasure",
    **dict.fromkeys(
        (f"{noun}.{verb}" for noun in ("dataset", "evidence", "model") for verb in ("hold", "lift-hold")), "hold"
    ),
}
"""Of which kind a decision on such an action counts: as what it is about."""
_OF_TENANTS: Final = "tenant."
_OVERSIGHT: Final = "oversight"
"""As which a decision on a tenant as such counts: what operators did, and who let them."""


class EraseRecords(Body):
    """Which records are erased, by the index of their entry, and why. The reason stays in the log: it must tell nothing of what goes."""

    entries: list[Annotated[int, Field(ge=0, lt=1 << 53)]] = Field(min_length=1, max_length=MAX_AT_ONCE)
    reason: Text

    @model_validator(mode="after")
    def _each_once(self) -> EraseRecords:
        if len(set(self.entries)) < len(self.entries):
            raise ValueError("an entry is named twice: name each once")
        return self


@dataclass(frozen=True, slots=True)
class _Chosen:
    """An entry that is to be erased; ``record`` is None where it cannot be read."""

    index: int
    leaf: Leaf
    record: Mapping[str, Any] | None

    @property
    def kind(self) -> str:
        """Of the entry, or of what it is about."""
        if self.record is None:
            return _UNREADABLE
        action = str(self.record.get("action", ""))
        if action.startswith(_OF_TENANTS):
            return _OVERSIGHT
        return _ABOUT.get(action, self.leaf.kind)

    @property
    def decision(self) -> str:
        """Number of the decision that it is, or that it came of; empty for none."""
        named = "id" if self.leaf.kind in {"decision", "attempt"} else "decision"
        return "" if self.record is None else str(self.record.get(named, ""))


def ask_erase(view: View, who: Who, ref: Ref, body: EraseRecords, _ids: Ids) -> Proposal:
    """The records of some entries go, with their salts."""
    found = view.log_entries(body.entries)
    chosen = [_read(leaf.leaf_index, leaf.header, row.record) for leaf, row in found if row.record is not None]
    listed = view.decisions({entry.decision for entry in chosen})
    return Proposal(
        resource=view.evidence_entity(),
        context={
            "kinds": sorted({entry.kind for entry in chosen}),
            "kept_until_ms": max((_kept_until_ms(view, entry) for entry in chosen), default=0),
            "own": any(_is_own(entry, listed, who) for entry in chosen),
            "held": any(_is_held(view, entry) for entry in chosen),
        },
        change=_erased(who, body, chosen),
        conflict=_conflict(view, ref, body, [leaf.leaf_index for leaf, _ in found], chosen),
        result={"tenant": ref.tenant, "erased": len(chosen), "erased_before": len(found) - len(chosen)},
    )


def context_of_elsewhere(_body: EraseRecords) -> dict[str, Any]:
    """What is known of the entries of a log that is elsewhere: nothing."""
    return {"kinds": [], "kept_until_ms": 0, "own": False, "held": False}


def _read(index: int, header: str, data: bytes) -> _Chosen:
    try:
        record = canonical.loads(data)
    except FormatError:
        record = None
    return _Chosen(index, Leaf.from_bytes(header.encode()), record if isinstance(record, dict) else None)


def _kept_until_ms(view: View, entry: _Chosen) -> int:
    tenant = view.tenant
    return kept_until_ms(entry.leaf.time_ms, tenant.evidence_retention_days, tenant.evidence_retained)


def _is_own(entry: _Chosen, listed: Mapping[str, Decision], who: Who) -> bool:
    """Whether it tells of something that the asker did or asked; where that cannot be told, it does."""
    if entry.record is None:
        return True
    by = [entry.record.get("principal"), entry.record.get("asked_by")]
    row = listed.get(entry.decision)
    return who.uid in by or (row is not None and row.principal == who.id)


def _is_held(view: View, entry: _Chosen) -> bool:
    """Whether it is about something that is held, or that was made from it."""
    about = None if entry.record is None else entry.record.get("resource")
    if not isinstance(about, Mapping):
        return False
    name, _, number = str(about.get("id", "")).partition("/")[2].partition("@")
    restrictions = None
    if about.get("type") == "Dataset" and (dataset := view.dataset(name)) is not None:
        restrictions = view.dataset_restrictions(dataset)
    elif about.get("type") == "Run" and (run := view.run(name)) is not None:
        restrictions = view.lineage_restrictions(run.datasets)
    elif about.get("type") == "ModelVersion" and number.isdecimal():
        version = view.model_version(name, int(number))
        if version is not None:
            held = bool(view.holds("ModelVersion", f"{name}@{number}"))
            restrictions = view.lineage_restrictions(version.datasets, held=held)
    elif about.get("type") == "Endpoint" and (endpoint := view.endpoint(name)) is not None:
        return bool(view.endpoint_entity(endpoint)["attrs"]["restrictions"]["held"])
    return restrictions is not None and restrictions.held


def _conflict(
    view: View, ref: Ref, body: EraseRecords, there: Sequence[int], chosen: Sequence[_Chosen]
) -> LicetError | None:
    absent = sorted(set(body.entries) - set(there))
    if absent:
        return Conflict(f"the log of {ref.tenant} has no entry {absent[0]}: nothing was erased")
    decisions = {entry.decision for entry in chosen} - {""}
    if attested := view.are_attested(decisions):
        return Conflict(
            f"decision {ref.tenant}/{attested[0]} is attested: the attestation tells what the record does, and is not erased"
        )
    at_work = [row for row in view.operations_on(decisions) if row.state in _AT_WORK]
    if at_work:
        return Conflict(
            f"operation {ref.tenant}/{at_work[0].id} stands on one of these decisions and has not ended: wait until it has"
        )
    return None


def _erased(who: Who, body: EraseRecords, chosen: Sequence[_Chosen]) -> Change:
    if not chosen:
        return Change()
    updates: list[Update] = []
    for entry in chosen:
        updates.append(Update(LogRecord, {"leaf_index": entry.index}, {"salt": None, "record": None}))
        if entry.leaf.kind == "decision":
            emptied = {"principal": ERASED, "resource": ERASED, "observed": []}
            updates.append(Update(Decision, {"leaf_index": entry.index}, emptied, rows=None))
            asked = {"principal": ERASED, "asked": {}, "claimed": []}
            updates.append(Update(Operation, {"decision_id": entry.decision}, asked, rows=None))
    note = Note(
        "erasure",
        {
            "event": "records-erased",
            "by": who.id,
            "reason": body.reason,
            "entries": [
                {"index": entry.index, "kind": entry.leaf.kind, "commitment": entry.leaf.commitment} for entry in chosen
            ],
        },
    )
    return Change(updates=tuple(updates), notes=(note,))


def ask_hold(view: View, who: Who, _ref: Ref, body: PlaceHold, ids: Ids) -> Proposal:
    """A legal hold: no record of the tenant's log is erased until it is lifted."""
    change, result = place_hold(EVIDENCE, EVIDENCE_NAME, who, body, ids)
    return Proposal(resource=view.evidence_entity(), change=change, result=result)


def ask_lift_hold(view: View, who: Who, _ref: Ref, body: PlaceHold, ids: Ids) -> Proposal:
    """Every hold on the evidence is lifted; those on datasets and models stay."""
    change, conflict = lift_holds(view, EVIDENCE, EVIDENCE_NAME, who=who, body=body, ids=ids)
    return Proposal(resource=view.evidence_entity(), change=change, conflict=conflict)


VERBS = (
    Verb(
        action="evidence.hold",
        summary="Place a hold on the tenant's evidence: no record is erased.",
        form=RefForm.TENANT,
        body=PlaceHold,
        propose=ask_hold,
    ),
    Verb(
        action="evidence.lift-hold",
        summary="Lift every hold on the tenant's evidence.",
        form=RefForm.TENANT,
        body=PlaceHold,
        propose=ask_lift_hold,
    ),
    Verb(
        action="record.erase",
        summary="Erase records of the log; their leaves stay.",
        form=RefForm.TENANT,
        body=EraseRecords,
        propose=ask_erase,
    ),
)
