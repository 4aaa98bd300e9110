"""Logging an attestation that no operation made: one entry of the tenant's log, and the row by which it is found."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from licet_attestations import canonical, dsse
from licet_attestations.statement import Statement
from licet_engine.log.errors import SubmissionConflict
from licet_engine.log.sequencer import Sequencer
from licet_engine.log.submission import Insert, NewEntry, Submission, Update
from licet_engine.store.tables import Attestation

Attest = Callable[[str, bytes], bytes]
"""Has a tenant's statement signed."""


def log_attestation(sequencer: Sequencer, tenant: str, envelope: bytes, beside: Sequence[Update] = ()) -> str:
    """Log a signed statement of a tenant; return its digest, under which it is known. Doing it again is harmless.

    Args:
        sequencer: Appends the entry.
        tenant: Whose.
        envelope: As the signer made it.
        beside: What of the tenant's facts changes with it; where that cannot change any more, nothing is logged, and the digest names nothing.
    """
    payload = dsse.Envelope.from_json(envelope).payload
    claim = Statement.from_bytes(payload)
    digest_hex = hashlib.sha256(payload).hexdigest()
    fixed = {
        "v": 1,
        "type": "attestation",
        "digest": digest_hex,
        "predicate_type": claim.predicate_type,
        "operation": "",
    }
    row = {
        "tenant_id": tenant,
        "digest_hex": digest_hex,
        "predicate_type": claim.predicate_type,
        "subject": claim.subject[0].name,
        "envelope": envelope.decode(),
    }
    entry = NewEntry(tenant, "attestation", tenant, tenant, lambda t: canonical.dumps({**fixed, "time_ms": t}))
    placed = Insert(Attestation, [row], placed={"leaf_index": (0, "index"), "at_ms": (0, "time_ms")})
    try:
        sequencer.append(Submission(entries=[entry], companions=[placed, *beside], bump=(tenant,) if beside else ()))
    except SubmissionConflict:
        return digest_hex  # The very same statement is logged already, or somebody else was first.
    return digest_hex
