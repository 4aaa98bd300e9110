"""Policies in force that nobody examined: those a tenant comes with, and those of before bundles were. For the worker that proves them.

Rules kept here:

- A bundle is examined once in each tenant, whoever finds it: what was attested of it stands in its row, in one transaction with the entry.
- What the worker found is logged as a signed attestation of this installation about a bundle that was in force there, and as nothing else.
  It says of itself what follows from its proofs.
- Nothing comes into force by it, and nothing goes; nor is a bundle that passed an examination before worth less for it.
- Tenants take turns, whatever becomes of one's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from typing import Any, Final

from sqlalchemy import Engine
from sqlmodel import col, select

from licet_attestations import dsse
from licet_attestations.errors import LicetAttestationError
from licet_attestations.isolation_pair import BUNDLE_SUBJECT, ISOLATION_INVARIANT
from licet_attestations.statement import TEST_RESULT, Statement, tenant_of
from licet_attestations.trustroot import TrustRoot
from licet_engine.domain.errors import InvalidInput, Unavailable
from licet_engine.domain.refs import now_ms
from licet_engine.evidence.attesting import log_attestation
from licet_engine.log.sequencer import Sequencer
from licet_engine.log.submission import Update
from licet_engine.store.db import UnsafeAllTenants, tenant_session
from licet_engine.store.tables import PolicyBundle, Tenant

MAX_PUT_OFF: Final = 1000
"""Bundles that the worker may ask to be passed over."""
_LOOKED_AT_ONCE: Final = 200
"""Tenants whose bundles one call looks for; the next goes on behind them."""
_OUTCOMES: Final = frozenset({"proved", "refuted"})


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
        self._whole: dict[str, str | None] = {}
        self._last = ""

    def handlers(self) -> dict[str, Callable[[dict[str, Any]], Any]]:
        """The methods of the internal door, by name."""
        return {
            "unproved_next": lambda p: self.next(p["put_off"]),
            "unproved_end": lambda p: self.end(p["envelope"]),
        }

    def next(self, put_off: Collection[str]) -> dict[str, str]:
        """A bundle that is, or was, in force in some tenant and was not examined, of the tenant whose turn it is.

        Args:
            put_off: What is passed over for now: digests, or a tenant's bundle as ``TENANT/DIGEST``.

        Returns:
            ``tenant``, ``bundle`` (its digest) and ``body`` (its canonical JSON); no member where none was found now.

        Raises:
            InvalidInput: It is more than may be passed over, or no digests.
        """
        if len(put_off) > MAX_PUT_OFF or not all(isinstance(each, str) for each in put_off):
            raise InvalidInput(f"at most {MAX_PUT_OFF} bundles may be passed over, each named by its digest")
        passed_over = frozenset(put_off)
        with UnsafeAllTenants(self._engine, "policies in force are proved in every tenant") as session:
            found = session.exec(select(Tenant.tenant_id, Tenant.bundle_digest_hex).order_by(col(Tenant.tenant_id)))
            # No bundle comes into force but in the place of the one that is.
            changed = [(tenant, now_hex) for tenant, now_hex in found if self._whole.get(tenant, "") != now_hex]
        in_turn = [each for each in changed if each[0] > self._last] + [
            each for each in changed if each[0] <= self._last
        ]
        for tenant, now_hex in in_turn[:_LOOKED_AT_ONCE]:
            self._last = tenant
            with tenant_session(self._engine, tenant) as session:
                due = select(PolicyBundle.digest_hex).where(
                    col(PolicyBundle.activated_at_ms).is_not(None), col(PolicyBundle.attestation_hex).is_(None)
                )
                digests = session.exec(due.order_by(col(PolicyBundle.digest_hex)).limit(MAX_PUT_OFF + 1)).all()
                if not digests:
                    self._whole[tenant] = now_hex
                for digest_hex in digests:
                    if digest_hex in passed_over or f"{tenant}/{digest_hex}" in passed_over:
                        continue
                    body = session.exec(select(PolicyBundle.body).where(PolicyBundle.digest_hex == digest_hex)).one()
                    return {"tenant": tenant, "bundle": digest_hex, "body": body.decode("utf-8", "replace")}
        return {}

    def end(self, envelope: str) -> dict[str, str]:
        """Log what was found; return the digest of the attestation that stands now, whoever was first.

        Raises:
            InvalidInput: It is no attestation by this installation, with a key that counts now, about a bundle that was in force; or it
                says something else than its proofs.
            Unavailable: It could not be logged.
        """
        try:
            sealed = dsse.Envelope.from_json(envelope.encode())
            claim = Statement.from_bytes(dsse.verify_envelope(sealed, self._trust_root.keys("attestation", now_ms())))
        except LicetAttestationError as error:
            raise InvalidInput(f"this is no attestation of this installation: {error}") from error
        tenant, digest_hex, holds = str(tenant_of(claim.predicate)), claim.subject[0].sha256_hex, _verdict(claim)
        row = self._row(tenant, digest_hex)
        if row is None or row.activated_at_ms is None:
            raise InvalidInput(f"bundle {digest_hex} was never in force in {tenant}")
        if row.attestation_hex is None:
            values: dict[str, Any] = {"attestation_hex": hashlib.sha256(sealed.payload).hexdigest()}
            if holds and row.state in {"active", "superseded"}:
                # What waits to be activated was to be examined with lint and tests, too.
                values["proved"] = True
            where = {"tenant_id": tenant, "digest_hex": digest_hex, "attestation_hex": None, "state": row.state}
            log_attestation(self._sequencer, tenant, envelope.encode(), beside=(Update(PolicyBundle, where, values),))
            row = self._row(tenant, digest_hex)
        if row is None or row.attestation_hex is None:
            raise Unavailable(f"what was found of bundle {digest_hex} could not be logged: it is tried again")
        return {"digest": row.attestation_hex}

    def _row(self, tenant: str, digest_hex: str) -> PolicyBundle | None:
        with tenant_session(self._engine, tenant) as session:
            return session.exec(select(PolicyBundle).where(PolicyBundle.digest_hex == digest_hex)).first()


def _verdict(claim: Statement) -> bool:
    """Whether an attestation says that everything is proved of one bundle, or that something is not.

    Raises:
        InvalidInput: It says neither, or something else than its proofs.
    """
    proofs, result = claim.predicate.get("proofs"), claim.predicate.get("result")
    names = [subject.name for subject in claim.subject]
    if claim.predicate_type != TEST_RESULT or names != [BUNDLE_SUBJECT] or not isinstance(proofs, dict):
        raise InvalidInput("this attestation is not of an examination of one bundle")
    outcomes = list(proofs.values())
    if ISOLATION_INVARIANT not in proofs or not all(isinstance(one, str) and one in _OUTCOMES for one in outcomes):
        raise InvalidInput(
            f"its proofs do not say of each invariant, {ISOLATION_INVARIANT} among them, what came of it"
        )
    holds = set(outcomes) == {"proved"}
    if result != ("PASSED" if holds else "FAILED"):
        raise InvalidInput("its result is another than that of its proofs")
    return holds
