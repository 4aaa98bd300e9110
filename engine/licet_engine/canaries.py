"""Canaries: two tenants of the installation's own, between which scheduled probes are tried.

Rules kept here:

- The api makes them, as it makes any tenant: logged in their own logs and in the platform's. A tenant of such a name that is not as it was made
  here is left alone, and nothing is tried.
- Their two principals get a token for each run, good for a quarter of an hour; those of the run before count no more.
- The one that tries may do all that a person may in its own tenant: what it is denied in the other, the wall alone denies.
- What the worker found is logged as a signed attestation of this installation about these tenants, and as nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import Engine
from sqlmodel import col, select

from licet_attestations import canonical, dsse
from licet_attestations.errors import LicetAttestationError
from licet_attestations.statement import TEST_RESULT, Statement, tenant_of
from licet_attestations.trustroot import TrustRoot
from licet_engine.domain.errors import Conflict, InvalidInput
from licet_engine.domain.refs import PLATFORM, new_id, now_ms
from licet_engine.evidence.attesting import log_attestation
from licet_engine.evidence.isolation import PROBES_SUBJECT
from licet_engine.lifecycle.people import OF_SERVICES, ROLES, first_bundle, new_token, tenant_rows
from licet_engine.lifecycle.tenants import Tenants
from licet_engine.log.sequencer import Sequencer
from licet_engine.log.submission import Insert, NewEntry, Submission, Update
from licet_engine.store import tables
from licet_engine.store.db import tenant_session

ACTOR: Final = "licet-canary-a"
"""Whose principal tries."""
OWNER: Final = "licet-canary-b"
"""On whose things it is tried."""
TOKEN_TTL_S: Final = 900
_LABEL: Final = "scheduled probes"
_PRINCIPALS: Final = {
    ACTOR: ("prober", sorted({*ROLES} - OF_SERVICES - {"operator"})),
    OWNER: ("keeper", ["administrator", "data-scientist"]),
}


class Canaries:
    """The canaries of an installation, for the worker that tries.

    Args:
        engine: Of the store.
        sequencer: Through which everything gets into the logs.
        tenants: Told of what changed.
        trust_root: Keys that attestations must bear.
        are_wanted: Whether probes are scheduled here.
    """

    def __init__(
        self, engine: Engine, sequencer: Sequencer, tenants: Tenants, trust_root: TrustRoot, *, are_wanted: bool
    ) -> None:
        self._engine = engine
        self._sequencer = sequencer
        self._tenants = tenants
        self._trust_root = trust_root
        self._are_wanted = are_wanted

    def handlers(self) -> dict[str, Callable[[dict[str, Any]], Any]]:
        """The methods of the internal door, by name."""
        return {
            "probes_begin": lambda _: self.begin(),
            "probes_end": lambda p: self.end(p["envelope"]),
        }

    def begin(self) -> dict[str, str]:
        """Make the canaries if they are not there; return a token for each, by tenant, and the region of the owner.

        Raises:
            InvalidInput: No probes are scheduled here.
            Conflict: A tenant of such a name is not as it was made here.
        """
        if not self._are_wanted:
            raise InvalidInput("no probes are scheduled here: set LICET_PROBE_EVERY_S")
        with tenant_session(self._engine, PLATFORM) as session:
            region = session.exec(select(tables.Tenant)).one().region
        tokens = {tenant: self._token(tenant, region) for tenant in (ACTOR, OWNER)}
        return tokens | {"region": region}

    def end(self, envelope: str) -> dict[str, str]:
        """Log what was found; return the digest under which it is known.

        Raises:
            InvalidInput: It is no attestation of probes, by this installation, about its canaries.
        """
        try:
            sealed = dsse.Envelope.from_json(envelope.encode())
            # With a key that counts now: one of before would be refused in every archive that has the entry.
            payload = dsse.verify_envelope(sealed, self._trust_root.keys("attestation", now_ms()))
            claim = Statement.from_bytes(payload)
        except LicetAttestationError as error:
            raise InvalidInput(f"this is no attestation of this installation: {error}") from error
        tenant = tenant_of(claim.predicate)
        is_of_probes = claim.predicate_type == TEST_RESULT and claim.subject[0].name == PROBES_SUBJECT
        if tenant not in {OWNER, PLATFORM} or not is_of_probes:
            raise InvalidInput("this attestation is not of the probes of the canaries")
        return {"digest": log_attestation(self._sequencer, str(tenant), envelope.encode())}

    def _token(self, tenant: str, region: str) -> str:
        """A token for the principal of a canary; it alone counts."""
        name, roles = _PRINCIPALS[tenant]
        with tenant_session(self._engine, tenant) as session:
            found = session.exec(select(tables.Tenant)).first()
            who = session.exec(select(tables.Principal).where(tables.Principal.name == name)).first()
            live = select(tables.ApiToken.id).where(
                tables.ApiToken.principal == name, col(tables.ApiToken.revoked_at_ms).is_(None)
            )
            old = list(session.exec(live).all())
        if found is None:
            self._make(tenant, name, roles, region)
        elif who is None or who.roles != roles or not who.active or found.suspended:
            raise Conflict(
                f"the tenant {tenant}, or {tenant}/{name} in it, is not as it was made for probes: set it right, or unset LICET_PROBE_EVERY_S"
            )
        at_ms = self._tenants.now_ms(tenant)
        token, row = new_token(tenant, name, now_ms=at_ms, ttl_s=TOKEN_TTL_S, token_id=new_id(), label=_LABEL)
        told = {"event": "token-issued", "subject": f"{tenant}/{name}", "token_id": row.id, "label": _LABEL}
        ended = [
            Update(
                tables.ApiToken,
                {"tenant_id": tenant, "principal": name, "id": token_id},
                {"revoked_at_ms": at_ms},
                expected_rows=None,
            )
            for token_id in old
        ]
        self._append(
            Submission(
                entries=[_entry(tenant, tenant, told)],
                companions=[*ended, Insert(tables.ApiToken, [row.model_dump()])],
                bump=(tenant,),
            )
        )
        return token

    def _make(self, tenant: str, name: str, roles: list[str], region: str) -> None:
        bundle = first_bundle([])
        rows = tenant_rows(
            tenant,
            region=region,
            administrator=name,
            role=roles[0],
            bundle=bundle,
            now_ms=self._tenants.now_ms(PLATFORM),
        )
        companions = [
            Insert(i.table, [{**i.row, "roles": roles} if i.table is tables.Principal else {**i.row}])  # type: ignore[arg-type]  # Every table of ours has a tenant.
            for i in rows
        ]
        told = {
            "event": "tenant-created",
            "tenant": tenant,
            "administrator": name,
            "for": _LABEL,
            "bundle": hashlib.sha256(bundle).hexdigest(),
        }
        self._append(
            Submission(
                entries=[_entry(PLATFORM, tenant, told), _entry(tenant, tenant, told)],
                companions=companions,
                bump=(tenant,),
            )
        )

    def _append(self, submission: Submission) -> None:
        receipt = self._sequencer.append(submission)
        for placed in receipt.placed:
            self._tenants.seen(placed.tenant_id, receipt.facts_versions[placed.tenant_id], placed.time_ms)


def _entry(log: str, owner: str, told: dict[str, Any]) -> NewEntry:
    fixed = {"v": 1, "type": "people", **told}
    return NewEntry(log, "people", PLATFORM, owner, lambda at_ms: canonical.dumps({**fixed, "time_ms": at_ms}))
