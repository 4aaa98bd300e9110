"""Policies in force that nobody examined: those a tenant comes with, and those of before bundles were. For the worker that proves them.

Rules kept here:

- A bundle is examined once in each tenant, whoever finds it: what was attested of it stands in its row, in one transaction with the entry.
- What the worker found is logged as a signed attestation of this installation about a bundle that was in force there, and as nothing else.
- Nothing comes into force by it, and nothing goes: the answer to "who allowed what under which policies" becomes whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from typing import Any, Final

from sqlalchemy import Engine
from sqlmodel import col, select

from licet_attestations import dsse
from licet_attestations.errors import LicetAttestationError
from licet_attestations.isolation_pair import BUNDLE_SUBJECT
from licet_attestations.statement import TEST_RESULT, Statement, tenant_of
from licet_attestations.trustroot import TrustRoot
from licet_engine.domain.errors import InvalidInput, Unavailable
from licet_engine.evidence.attesting import log_attestation
from licet_engine.log.sequencer import Sequencer
from licet_engine.log.submission import Update
from licet_engine.store.db import UnsafeAllTenants, tenant_session
from licet_engine.store.tables import LogHead, PolicyBundle

MAX_PUT_OFF: Final = 1000
"""Bundles that the worker may ask to be passed over."""


class Unproved:
    """The policies in force that were not examined, for the worker that does it.

    Args:
        engine: Of the store.
        sequencer: Through which everything gets into the logs.
        trust_root: Keys that attestations must bear.
    """

    def __init__(self, engine: Engine, sequencer: Sequencer, trust_root: TrustRoot) -> None:
        self._engine = engine
        self._sequencer = sequencer
        self._trust_root = trust_root
        self._whole: dict[str, int] = {}

    def handlers(self) -> dict[str, Callable[[dict[str, Any]], Any]]:
        """The methods of the internal door, by name."""
        return {
            "unproved_next": lambda p: self.next(p["put_off"]),
            "unproved_end": lambda p: self.end(p["envelope"]),
        }

    def next(self, put_off: Collection[str]) -> dict[str, str]:
        """A bundle that is, or was, in force in some tenant and was not examined; nothing where there is none.

        Args:
            put_off: Digests of those that are passed over for now.

        Returns:
            ``tenant``, and the canonical JSON of the bundle as ``body``; or no member.
        """
        passed_over = list(put_off)
        if len(passed_over) > MAX_PUT_OFF or not all(isinstance(each, str) for each in passed_over):
            raise InvalidInput(f"at most {MAX_PUT_OFF} digests may be passed over")
        with UnsafeAllTenants(self._engine, "policies in force are proved in every tenant") as session:
            heads = session.exec(
                select(LogHead.tenant_id, LogHead.facts_version).order_by(col(LogHead.tenant_id))
            ).all()
        for tenant, facts_version in heads:
            # No bundle comes into force without a new version of the facts.
            if self._whole.get(tenant) == facts_version:
                continue
            with tenant_session(self._engine, tenant) as session:
                query = select(PolicyBundle.digest_hex, PolicyBundle.body).where(
                    col(PolicyBundle.activated_at_ms).is_not(None), col(PolicyBundle.attestation_hex).is_(None)
                )
                rows = session.exec(query.order_by(col(PolicyBundle.digest_hex)).limit(MAX_PUT_OFF + 1)).all()
            if not rows:
                self._whole[tenant] = facts_version
            for digest_hex, body in rows:
                if digest_hex not in passed_over:
                    return {"tenant": tenant, "body": body.decode()}
        return {}

    def end(self, envelope: str) -> dict[str, str]:
        """Log what was found; return the digest of the attestation that stands now, whoever was first.

        Raises:
            InvalidInput: It is no attestation by this installation about a bundle that was in force.
        """
        try:
            sealed = dsse.Envelope.from_json(envelope.encode())
            claim = Statement.from_bytes(dsse.verify_envelope(sealed, self._trust_root.keys("attestation")))
        except LicetAttestationError as error:
            raise InvalidInput(f"this is no attestation of this installation: {error}") from error
        tenant, result = tenant_of(claim.predicate), claim.predicate.get("result")
        names = [subject.name for subject in claim.subject]
        if claim.predicate_type != TEST_RESULT or names != [BUNDLE_SUBJECT] or result not in {"PASSED", "FAILED"}:
            raise InvalidInput("this attestation is not of an examination of one bundle")
        digest_hex = claim.subject[0].sha256_hex
        row = self._row(str(tenant), digest_hex)
        if row is None or row.activated_at_ms is None:
            raise InvalidInput(f"bundle {digest_hex} was never in force in {tenant}")
        if row.attestation_hex is None:
            examined = Update(
                PolicyBundle,
                {"tenant_id": tenant, "digest_hex": digest_hex, "attestation_hex": None},
                {"attestation_hex": hashlib.sha256(sealed.payload).hexdigest(), "proved": result == "PASSED"},
            )
            log_attestation(self._sequencer, str(tenant), envelope.encode(), beside=(examined,))
            row = self._row(str(tenant), digest_hex)
        if row is None or row.attestation_hex is None:
            raise Unavailable(f"what was found of bundle {digest_hex} could not be logged: it is tried again")
        return {"digest": row.attestation_hex}

    def _row(self, tenant: str, digest_hex: str) -> PolicyBundle | None:
        with tenant_session(self._engine, tenant) as session:
            return session.exec(select(PolicyBundle).where(PolicyBundle.digest_hex == digest_hex)).first()
