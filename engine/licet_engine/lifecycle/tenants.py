"""Which tenants there are, what is in force in each, and who a token speaks for: read once per facts version.

Rules kept here:

- What is kept in memory is kept with the facts version it was read at. A decision made on it commits only if that is
  still the version; so a copy that grew old costs another try, never a wrong answer.
- A token is looked up by its hash alone, before any tenant is known; of a token that does not count, nothing is said.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Engine
from sqlalchemy import select as sa_select
from sqlmodel import col, select

from licet_attestations import canonical
from licet_engine.decide.bundle import CompiledBundle
from licet_engine.domain.errors import Unauthenticated, Unavailable
from licet_engine.domain.refs import now_ms
from licet_engine.lifecycle.devices import devices_present
from licet_engine.lifecycle.facts import View
from licet_engine.lifecycle.people import TOKEN_PREFIX, token_hash_hex
from licet_engine.lifecycle.verbs import Who, claims_of
from licet_engine.log.store import HEADS as _HEADS
from licet_engine.store.db import UnsafeAllTenants, read_transaction, tenant_session
from licet_engine.store.postgres import EVERY_TENANT
from licet_engine.store.tables import ApiToken, LogHead, PolicyBundle, PolicyShadow, Principal, Tenant

_MAX_IDENTITIES = 100_000
_MAX_TOKEN_CHARS = 128
_REFUSAL = (
    "the token is missing, unknown, expired or revoked: send 'Authorization: Bearer <token>' with one that counts"
)


@dataclass(frozen=True, slots=True)
class Shadow:
    """A candidate that runs beside the policies in force.

    Attributes:
        id: Of this time that it does.
        bundle_hex: Digest of its policies.
    """

    id: str
    bundle_hex: str


@dataclass(frozen=True, slots=True)
class InForce:
    """What is in force in a tenant, at one facts version.

    Attributes:
        tenant: The tenant's row.
        facts_version: Version of its facts.
        bundle: The policies.
        policy_digest_hex: Digest of those that speak on promotion.
        shadow: The candidate beside them, or None.
    """

    tenant: Tenant
    facts_version: int
    bundle: CompiledBundle
    policy_digest_hex: str
    shadow: Shadow | None = None


@dataclass(frozen=True, slots=True)
class _Identity:
    who: Who
    expires_at_ms: int
    facts_version: int


class Tenants:
    """What is known of the tenants of one database.

    Args:
        engine: Of the store.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._in_force: dict[str, InForce] = {}
        self._bundles: dict[tuple[str, str], CompiledBundle] = {}
        self._versions: dict[str, int] = {}
        self._latest_ms: dict[str, int] = {}
        self._identities: OrderedDict[str, _Identity] = OrderedDict()

    # --- facts versions --------------------------------------------------------------------------------------------

    def seen(self, tenant: str, facts_version: int, time_ms: int = 0) -> None:
        """Take note of the newest facts version of a tenant, and of the time of its log's last entry."""
        with self._lock:
            if self._versions.get(tenant, -1) < facts_version:
                self._versions[tenant] = facts_version
            if self._latest_ms.get(tenant, 0) < time_ms:
                self._latest_ms[tenant] = time_ms

    def now_ms(self, tenant: str) -> int:
        """The time, as it is for a tenant: never before what its log has seen, so what had expired stays expired."""
        return max(now_ms(), self._latest_ms.get(tenant, 0))

    def version(self, tenant: str) -> int:
        """The newest facts version seen of a tenant; -1 if none was."""
        return self._versions.get(tenant, -1)

    def may_act(self, who: Who) -> bool:
        """Whether a principal is active and its tenant not suspended, as the database has it now."""
        with tenant_session(self._engine, who.tenant) as session:
            tenant = session.exec(select(Tenant)).first()
            row = session.exec(select(Principal).where(Principal.name == who.name)).first()
        return row is not None and row.active and tenant is not None and not tenant.suspended

    def catch_up(self) -> None:
        """Take note of what other processes changed: what is in memory is then no older than this call.

        A decision does not need it, for it commits only on the newest version. It bounds how long a token that was revoked through
        another api may still do what asks for no decision, such as send a file.
        """
        with read_transaction(self._engine, EVERY_TENANT) as connection:
            rows = connection.execute(
                sa_select(_HEADS.c.tenant_id, _HEADS.c.facts_version, _HEADS.c.last_time_ms)
            ).all()
        for tenant_id, facts_version, last_time_ms in rows:
            self.seen(tenant_id, facts_version, last_time_ms)

    def exists(self, tenant: str) -> bool:
        """Whether there is such a tenant, as the database has it now."""
        with tenant_session(self._engine, tenant) as session:
            return session.exec(select(Tenant)).first() is not None

    # --- what is in force ------------------------------------------------------------------------------------------

    @contextmanager
    def view(self, tenant: str) -> Iterator[tuple[View, InForce] | None]:
        """One consistent state of a tenant; None where there is no such tenant."""
        with tenant_session(self._engine, tenant) as session:
            row = session.exec(select(Tenant)).first()
            if row is None:
                yield None
                return
            head = session.exec(select(LogHead)).first()
            version = 0 if head is None else head.facts_version
            self.seen(tenant, version, 0 if head is None else head.last_time_ms)
            state = self._in_force.get(tenant)
            if state is None or state.facts_version != version:
                body = session.exec(
                    select(PolicyBundle).where(PolicyBundle.digest_hex == (row.bundle_digest_hex or ""))
                ).first()
                beside = session.exec(select(PolicyShadow).where(col(PolicyShadow.ended_at_ms).is_(None))).first()
                state = self._compile(row, version, body, beside)
            yield (
                View(
                    session,
                    row,
                    facts_version=version,
                    policy_digest_hex=state.policy_digest_hex,
                    now_ms=self.now_ms(tenant),
                    devices_present=lambda: devices_present(self._engine),
                ),
                state,
            )

    def _compile(self, row: Tenant, version: int, body: PolicyBundle | None, beside: PolicyShadow | None) -> InForce:
        if body is None:
            raise Unavailable(
                f"tenant {row.tenant_id} has no policies in force, so nothing is permitted; activate a bundle"
            )
        key = (row.tenant_id, body.digest_hex)
        bundle = self._bundles.get(key)
        if bundle is None:
            bundle = CompiledBundle.from_bytes(body.body)
        speaking = sorted((p.id, p.mode, p.fragment) for p in bundle.on_action(("Action", "model.promote")))
        state = InForce(
            tenant=row,
            facts_version=version,
            bundle=bundle,
            policy_digest_hex=canonical.digest([list(part) for part in speaking]).hex(),
            shadow=None if beside is None else Shadow(beside.id, beside.bundle_hex),
        )
        with self._lock:
            self._bundles = {k: b for k, b in self._bundles.items() if k[0] != row.tenant_id} | {key: bundle}
            self._in_force[row.tenant_id] = state
        return state

    # --- identity --------------------------------------------------------------------------------------------------

    def identify(self, token: str) -> Who:
        """Who a token speaks for.

        Raises:
            Unauthenticated: The token does not count; which of the reasons it is, is not told.
        """
        if not token.startswith(TOKEN_PREFIX) or len(token) > _MAX_TOKEN_CHARS:
            raise Unauthenticated(_REFUSAL)
        return self.identify_hash(token_hash_hex(token))

    def identify_hash(self, hash_hex: str) -> Who:
        """Who a token speaks for, by its hash: for who took the token and does not hand it on.

        Raises:
            Unauthenticated: The token does not count; which of the reasons it is, is not told.
        """
        known = self._identities.get(hash_hex)
        if known is None or known.facts_version != self.version(known.who.tenant):
            known = self._look_up(hash_hex)
        if known.expires_at_ms <= self.now_ms(known.who.tenant):
            raise Unauthenticated(_REFUSAL)
        return known.who

    def _look_up(self, hash_hex: str) -> _Identity:
        with UnsafeAllTenants(self._engine, "a token names no tenant before it is looked up") as session:
            row = session.exec(select(ApiToken).where(ApiToken.hash_hex == hash_hex)).first()
        if row is None:
            self._identities.pop(hash_hex, None)
            raise Unauthenticated(_REFUSAL)
        # Whose it is being known, everything is read once more, from one state of that tenant.
        with tenant_session(self._engine, row.tenant_id) as own:
            row = own.exec(select(ApiToken).where(ApiToken.hash_hex == hash_hex)).first()
            if row is None or row.revoked_at_ms is not None or row.expires_at_ms is None:
                self._identities.pop(hash_hex, None)
                raise Unauthenticated(_REFUSAL)
            principal = own.exec(select(Principal).where(Principal.name == row.principal)).one()
            head = own.exec(select(LogHead)).first()
        version = 0 if head is None else head.facts_version
        self.seen(row.tenant_id, version, 0 if head is None else head.last_time_ms)
        workload = claims_of(row.workload)
        who = Who(row.tenant_id, row.principal, principal.kind, row.id, workload)
        known = _Identity(who, row.expires_at_ms, version)
        with self._lock:
            self._identities[hash_hex] = known
            while len(self._identities) > _MAX_IDENTITIES:
                self._identities.popitem(last=False)
        return known
