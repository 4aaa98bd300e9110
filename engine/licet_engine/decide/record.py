"""Remember and prove: the record of a decision, and the same decision again from the record alone.

Rules kept here:

- A record names by digest every fact and the bundle, and by version the engine. Its bytes are canonical JSON.
- Replay trusts nothing it is handed: bundle and facts must have the digests that the record names.
- Replay evaluates the whole bundle, unsliced: what it confirms does not rest on the index.
- A context without canonical JSON is recorded as null, and is denied again as such.

The record is written piece by piece, because the context is held as canonical bytes already; the tests hold the result to
``canonical.dumps`` of the same record.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import version
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Any

from licet_attestations import canonical
from licet_attestations.errors import FormatError
from licet_attestations.statement import is_sha256_hex
from licet_engine.decide.bundle import CompiledBundle
from licet_engine.decide.decision import Decision, Request, decide_unsliced
from licet_engine.decide.entities import EntityUid, Fact, FactSet
from licet_engine.decide.errors import BundleError, FactError, RecordError, ReplayMismatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

ENGINE = f"licet/{'.'.join(version('licet').split('.')[:2])} cedarpy/{version('cedarpy')}"
"""Name and version of what evaluates, as records state it."""

_KEYS = frozenset(
    {"v", "id", "time_ms", "tenant", "principal", "action", "resource", "context", "facts", "facts_version", "bundle"}
    | {"engine", "decision", "reasons", "errors", "observed", "operation", "asked_by"}
)
_LISTS = ("facts", "reasons", "errors", "observed")
_text: Callable[[str], str] = encode_basestring


@dataclass(frozen=True, slots=True)
class Operation:
    """The deed that a decision permits, if it permits it.

    Attributes:
        id: Of the accepted operation.
        step: Of it, where it is decided again; else empty.
        parameters_digest_hex: SHA-256 of the parameters' canonical JSON.
        resources: What its warrants may name: the references of the tenant and the digests that were decided on, in order.
    """

    id: str
    step: str
    parameters_digest_hex: str
    resources: tuple[str, ...]

    @classmethod
    def about(
        cls, operation_id: str, step: str, *, tenant: str, resource: str, parameters: Mapping[str, Any]
    ) -> Operation:
        """The deed with these parameters on this resource.

        Args:
            operation_id: Of the accepted operation.
            step: Of it, or empty.
            tenant: Whose it is.
            resource: Identifier of the resource that is decided on.
            parameters: Canonical JSON.
        """
        named = {text for text in _texts(dict(parameters)) if is_sha256_hex(text) or text.startswith(f"{tenant}/")}
        return cls(
            id=operation_id,
            step=step,
            parameters_digest_hex=canonical.digest(dict(parameters)).hex(),
            resources=tuple(sorted(named | {resource})),
        )


def _texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value but the names of members."""
    pending = [value]
    while pending:
        part = pending.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, dict):
            pending.extend(part.values())
        elif isinstance(part, (list, tuple)):
            pending.extend(part)


def build_record(
    *,
    decision_id: str,
    time_ms: int,
    tenant: str,
    request: Request,
    decision: Decision,
    facts: FactSet,
    facts_version: int,
    bundle_hex: str,
    operation: Operation | None = None,
    asked_by: EntityUid | None = None,
) -> bytes:
    """Write the record of a decision.

    Args:
        decision_id: Its id.
        time_ms: When it was made.
        tenant: In whose log it stands.
        request: What was asked.
        decision: What was answered.
        facts: What it rests on.
        facts_version: The version of the tenant's facts that these were.
        bundle_hex: Digest of the policies in force.
        operation: What will be done under it.
        asked_by: Who put the question, where that is not the principal.

    Returns:
        Canonical JSON.
    """
    deed = (
        "null"
        if operation is None
        else (
            f'{{"id":{_text(operation.id)},"parameters_digest":{_text(operation.parameters_digest_hex)}'
            f',"resources":{_array(operation.resources)},"step":{_text(operation.step)}}}'
        )
    )
    context = "null" if request.context_json is None else request.context_json.decode()
    # The keys stand in canonical order.
    return (
        f'{{"action":{_clean(request.action)},"asked_by":{"null" if asked_by is None else _uid(asked_by)}'
        f',"bundle":{_text(bundle_hex)},"context":{context},"decision":"{decision.word}"'
        f',"engine":{_text(ENGINE)},"errors":{_array(decision.errors)},"facts":{_array(facts.digests)}'
        f',"facts_version":{facts_version:d},"id":{_text(decision_id)},"observed":{_array(decision.observed)}'
        f',"operation":{deed},"principal":{_uid(request.principal)},"reasons":{_array(decision.reasons)}'
        f',"resource":{_uid(request.resource)},"tenant":{_text(tenant)},"time_ms":{time_ms:d},"v":1}}'
    ).encode()


def _array(words: Iterable[str]) -> str:
    return "[" + ",".join(map(_text, words)) + "]"


def _clean(word: str) -> str:
    # A lone surrogate came from a caller and has no UTF-8; the record shows what was sent, and its context is null.
    return _text(word if word.isascii() else word.encode("utf-8", "backslashreplace").decode())


def _uid(uid: EntityUid) -> str:
    return f'{{"id":{_clean(uid.id)},"type":{_clean(uid.type)}}}'


def parse_record(data: bytes) -> dict[str, Any]:
    """Read a decision record.

    Raises:
        RecordError: Not canonical JSON, or not a decision record.
    """
    try:
        record = canonical.loads(data, canonical=True)
    except FormatError as error:
        raise RecordError(f"a decision record is not canonical JSON: {error}") from error
    return check_record(record)


def check_record(record: Any) -> dict[str, Any]:
    """Return a decision record that was read already.

    Raises:
        RecordError: It is none.
    """
    if not isinstance(record, dict) or record.keys() != _KEYS or record["v"] != 1:
        raise RecordError("this is not a decision record of version 1")
    lists_ok = all(isinstance(record[k], list) and all(isinstance(w, str) for w in record[k]) for k in _LISTS)
    context_ok = record["context"] is None or isinstance(record["context"], dict)
    words_ok = isinstance(record["action"], str) and isinstance(record["bundle"], str)
    if not (lists_ok and context_ok and words_ok) or record["decision"] not in ("allow", "deny"):
        raise RecordError("a member of this decision record has the wrong type")
    return record


def recorded_request(record: Mapping[str, Any]) -> Request:
    """The request of a parsed record.

    Raises:
        RecordError: Principal or resource are no entities.
    """
    try:
        principal, resource = EntityUid.from_json(record["principal"]), EntityUid.from_json(record["resource"])
    except FactError as error:
        raise RecordError(f"principal or resource of this decision record: {error}") from error
    # What had no canonical JSON when it was asked has none now: the null stands for it, and is denied like it.
    context: Any = {"": float("nan")} if record["context"] is None else record["context"]
    return Request(principal, record["action"], resource, context)


def replay(record_bytes: bytes, facts: Mapping[str, bytes], bundle: bytes | CompiledBundle) -> Decision:
    """Evaluate a recorded decision again, from what its record names.

    Args:
        record_bytes: The record, as it stands in the log.
        facts: Canonical JSON of entities by digest in hex; more than the record names may be among them.
        bundle: Canonical JSON of the policies that were in force, or the same already compiled from it.

    Returns:
        The decision, equal to the recorded one.

    Raises:
        RecordError: The record is none.
        ReplayMismatch: Bundle or facts are not those named, or the decision, its reasons, errors or observations differ.
    """
    record = parse_record(record_bytes)
    digest_hex = bundle.digest_hex if isinstance(bundle, CompiledBundle) else hashlib.sha256(bundle).hexdigest()
    if digest_hex != record["bundle"]:
        raise ReplayMismatch(["bundle"], f"the record names bundle {record['bundle']:.64}, this one is {digest_hex}")
    try:
        compiled = bundle if isinstance(bundle, CompiledBundle) else CompiledBundle.from_bytes(bundle)
    except BundleError as error:
        raise ReplayMismatch(["bundle"], f"the bundle that the record names does not compile: {error}") from error
    decision = decide_unsliced(compiled, recorded_request(record), _named_facts(record["facts"], facts))
    recorded: dict[str, Any] = {key: record[key] for key in ("decision", "reasons", "errors", "observed")}
    again = {
        "decision": decision.word,
        "reasons": list(decision.reasons),
        "errors": list(decision.errors),
        "observed": list(decision.observed),
    }
    differs = [key for key, value in recorded.items() if value != again[key]]
    if differs:
        said = "; ".join(f"{key}: recorded {recorded[key]}, evaluated {again[key]}" for key in differs)
        raise ReplayMismatch(differs, f"decision {record['id']} does not follow from its record: {said}")
    return decision


def _named_facts(names: list[str], facts: Mapping[str, bytes]) -> FactSet:
    found = []
    for name in names:
        data = facts.get(name)
        if data is None:
            raise ReplayMismatch(["facts"], f"the record names fact {name:.64}, which is not here")
        if hashlib.sha256(data).hexdigest() != name:
            raise ReplayMismatch(["facts"], f"the bytes given as fact {name:.64} have another digest")
        try:
            found.append(Fact.from_bytes(data))
        except FactError as error:
            raise ReplayMismatch(["facts"], f"fact {name:.64}: {error}") from error
    return FactSet(found)
