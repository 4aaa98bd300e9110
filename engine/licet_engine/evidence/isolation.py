"""The isolation answer for one pair: what an owner's auditor is given at once, however long the log is.

Rules kept here:

- Nothing is looked up of the actor but in the owner's own log: whether it exists changes no step and no form.
- What is proved comes from the directory; what is only told comes from the owner's own attestations and records.
- The answer is logged with its attestation before it is given.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol

from sqlalchemy import Engine, select

from licet_attestations import dsse
from licet_attestations.errors import LicetAttestationError
from licet_attestations.isolation_pair import BUNDLE_SUBJECT, examined_policies, pair_predicate
from licet_attestations.pairs import Pair
from licet_attestations.statement import TEST_RESULT, Statement
from licet_engine.domain.errors import InvalidInput
from licet_engine.evidence.attesting import log_attestation
from licet_engine.log import store
from licet_engine.log.directory import Directory
from licet_engine.log.sequencer import Sequencer
from licet_engine.store.db import read_transaction
from licet_engine.store.tables import Attestation, PolicyBundle

RECONCILIATION_SUBJECT: Final = "reconciliation"
PROBES_SUBJECT: Final = "isolation-probes"

MAX_RECORDS: Final = 10_000
"""Records of the actor's entries that are looked at for what was decided."""
_MAX_ATTESTATIONS: Final = 1000
_ATTESTATIONS: Final = store.table_of(Attestation)
_BUNDLES: Final = store.table_of(PolicyBundle)


class PairSigner(Protocol):
    """What of the signer is needed here."""

    def attest_isolation(self, tenant: str, predicate: Mapping[str, Any]) -> bytes:
        """Sign an answer whose proofs it verified."""
        ...


class PairAnswers:
    """Makes isolation answers of pairs.

    Args:
        engine: Of the store; only read.
        sequencer: Logs the answers.
        directory: Has the proofs.
        signer: Signs.
    """

    def __init__(self, engine: Engine, sequencer: Sequencer, directory: Directory, signer: PairSigner) -> None:
        self._engine = engine
        self._sequencer = sequencer
        self._directory = directory
        self._signer = signer

    def answer(self, actor: str, owner: str) -> dict[str, Any]:
        """Answer whether ``actor`` ever stood in the log of ``owner``; return the signed statement and its digest.

        Raises:
            InvalidInput: It is asked of a tenant about itself.
        """
        if actor == owner:
            raise InvalidInput("an isolation answer is about two tenants: name another as the actor")
        found = self._directory.opened(owner)
        pair = found.pairs.get(actor, owner)
        predicate = pair_predicate(
            actor=actor,
            owner=owner,
            pair=pair,
            proof=found.pairs.prove(actor, owner),
            opening=found.document,
            outcomes=None if pair is None else self._outcomes(owner, pair),
            policies=self._policies(owner),
            reconciliation=self._newest(owner, RECONCILIATION_SUBJECT, ("accesses", "unmatched")),
            probes=self._newest(owner, PROBES_SUBJECT, ("tried", "allowed")),
        )
        envelope = self._signer.attest_isolation(owner, predicate)
        digest_hex = log_attestation(self._sequencer, owner, envelope)
        return {"digest_hex": digest_hex, "statement": json.loads(envelope), "predicate": predicate}

    def _outcomes(self, owner: str, pair: Pair) -> dict[str, int]:
        """What the records of a pair's entries say was decided. A header begins with its actor, so no other is read."""
        begins = f'{{"actor":"{pair.actor}",'
        query = (
            select(store.RECORDS.c.record)
            .select_from(
                store.LEAVES.join(
                    store.RECORDS,
                    (store.RECORDS.c.tenant_id == store.LEAVES.c.tenant_id)
                    & (store.RECORDS.c.leaf_index == store.LEAVES.c.leaf_index),
                )
            )
            .where(
                store.LEAVES.c.tenant_id == owner,
                store.LEAVES.c.leaf_index.between(pair.first, pair.last),
                store.LEAVES.c.header.startswith(begins, autoescape=True),
            )
            .order_by(store.LEAVES.c.leaf_index)
            .limit(min(pair.count, MAX_RECORDS))
        )
        counts = {"allow": 0, "deny": 0, "erased": 0, "other": 0, "not_counted": max(0, pair.count - MAX_RECORDS)}
        with read_transaction(self._engine, owner) as connection:
            for record in connection.execute(query).scalars():
                outcome = "erased" if record is None else json.loads(record).get("decision")
                counts[outcome if outcome in {"allow", "deny", "erased"} else "other"] += 1
        return counts

    def _policies(self, owner: str) -> dict[str, str]:
        """The owner's bundles that were in force at some time, each with the attestation that isolation was proved of it, if there is one."""
        query = select(_BUNDLES.c.digest_hex).where(
            _BUNDLES.c.tenant_id == owner, _BUNDLES.c.activated_at_ms.is_not(None)
        )
        with read_transaction(self._engine, owner) as connection:
            found = dict.fromkeys(connection.execute(query).scalars(), "")
        waiting = set(found)
        for claim, digest_hex, _ in self._attested(owner, BUNDLE_SUBJECT):
            for bundle_hex, holds in examined_policies(claim).items():
                if bundle_hex in waiting:
                    waiting.remove(bundle_hex)
                    found[bundle_hex] = digest_hex if holds else ""
        return found

    def _newest(self, owner: str, subject: str, figures: tuple[str, str]) -> dict[str, Any] | None:
        """The figures of the newest attestation of one kind; None where there is none, or it has no such figures."""
        for claim, digest_hex, at_ms in self._attested(owner, subject):
            told = {name: claim.predicate.get(name) for name in figures}
            if all(type(number) is int and number >= 0 for number in told.values()):
                return told | {"at_ms": at_ms, "attestation": digest_hex}
        return None

    def _attested(self, owner: str, subject: str) -> Iterator[tuple[Statement, str, int]]:
        """The tenant's test results about a subject, the newest first."""
        query = (
            select(_ATTESTATIONS.c.envelope, _ATTESTATIONS.c.digest_hex, _ATTESTATIONS.c.at_ms)
            .where(
                _ATTESTATIONS.c.tenant_id == owner,
                _ATTESTATIONS.c.subject == subject,
                _ATTESTATIONS.c.predicate_type == TEST_RESULT,
            )
            .order_by(_ATTESTATIONS.c.leaf_index.desc())
            .limit(_MAX_ATTESTATIONS)
        )
        with read_transaction(self._engine, owner) as connection:
            rows = connection.execute(query).all()
        for envelope, digest_hex, at_ms in rows:
            try:
                yield Statement.from_bytes(dsse.Envelope.from_json(envelope.encode()).payload), digest_hex, at_ms
            except LicetAttestationError:
                continue  # What cannot be read proves nothing.
