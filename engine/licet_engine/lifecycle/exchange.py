"""The exchange of a workload's ID token for a token of ours, and the keys that issuers sign with.

Rules kept here:

- Whatever is wrong, one answer is given, after the same work: of a tenant or an issuer that is not there, nothing can be told. Why is
  logged: where a known issuer signed the token, in the tenant's log; else in the service's own.
- Keys are fetched by the worker, which alone reaches out. A key that is not known is asked for at once, but not often. Keys that could
  not be fetched for a day count no more.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import Engine
from sqlmodel import col, select

from licet_attestations import canonical
from licet_engine.domain import idtoken
from licet_engine.domain.errors import InvalidInput, LicetError
from licet_engine.domain.rates import Buckets
from licet_engine.domain.refs import Ref, parse_ref
from licet_engine.lifecycle.asking import Asked, Desk
from licet_engine.lifecycle.tenants import Tenants
from licet_engine.lifecycle.verbs import Who
from licet_engine.lifecycle.workload import EXCHANGE, MAX_ISSUERS, Exchange, mismatch, workload_of
from licet_engine.log.errors import LogError
from licet_engine.log.sequencer import Sequencer
from licet_engine.log.submission import NewEntry, Submission, Update
from licet_engine.store.db import UnsafeAllTenants, tenant_session
from licet_engine.store.tables import Issuer

logger = logging.getLogger(__name__)

FETCH_EVERY_MS: Final = 3_600_000
MAX_AGE_MS: Final = 24 * 3_600_000
_ASK_AGAIN_S: Final = 30.0
_MOST_DOUBLED: Final = 7
"""How often the pause after a fetch that failed is doubled, at most: up to about an hour."""
_MOST_WANTED: Final = MAX_ISSUERS
"""Of one tenant: what one wants keeps no other from wanting."""
_MAX_FETCHES: Final = 8
_MAX_OF_TENANT: Final = 2
"""Of one turn: an issuer that never answers keeps no other tenant's waiting."""
_REFUSALS_PER_S: Final = 1
"""Of refusals of one tenant that are logged; the rest is counted only in the service's own log."""


class ExchangeRefused(LicetError):
    """The ID token is exchanged for nothing. Why is told to nobody who sends one."""

    status = 400
    default_code = "invalid_grant"

    def __init__(self) -> None:
        super().__init__(
            "this ID token is not exchanged here: the audience names no issuer that the tenant trusts, or the token is not as the "
            "tenant demands, is over, or was exchanged before; administrators of the tenant find the reason in its log"
        )


class IssuerKeys:
    """The keys of issuers, as the worker fetches them.

    Args:
        engine: Of the store.
        sequencer: Through which new keys become facts.
        tenants: What is in force.
    """

    def __init__(self, engine: Engine, sequencer: Sequencer, tenants: Tenants) -> None:
        self._engine = engine
        self._sequencer = sequencer
        self._tenants = tenants
        self._lock = threading.Lock()
        self._wanted: set[tuple[str, str]] = set()
        self._asked: dict[tuple[str, str], tuple[float, int]] = {}  # When it was asked last, and how often in vain.

    def handlers(self) -> dict[str, Callable[[dict[str, Any]], Any]]:
        """The methods of the internal door, by name."""
        return {
            "issuers_due": lambda _: self.due(),
            "issuer_keys": lambda p: self.fetched(p["tenant"], p["issuer"], p["url"], p["keys"]),
        }

    def want(self, tenant: str, name: str) -> None:
        """Have the keys of an issuer fetched soon: one that is not known was named."""
        with self._lock:
            if sum(of == tenant for of, _ in self._wanted) < _MOST_WANTED:
                self._wanted.add((tenant, name))

    def due(self) -> list[dict[str, Any]]:
        """The issuers whose keys are to be fetched now: those first that were not asked for longest."""
        now_s = time.monotonic()
        with UnsafeAllTenants(self._engine, "the keys of the issuers of every tenant grow old") as session:
            query = select(Issuer).where(col(Issuer.removed_at_ms).is_(None), col(Issuer.fetched).is_(True))
            rows = {(row.tenant_id, row.name): row for row in session.exec(query).all()}
        found: list[dict[str, Any]] = []
        of_tenant = Counter[str]()
        with self._lock:
            self._wanted &= rows.keys()
            self._asked = {key: asked for key, asked in self._asked.items() if key in rows}
            for key in sorted(rows, key=lambda key: self._asked.get(key, (0.0, 0))[0]):
                row = rows[key]
                asked_s, in_vain = self._asked.get(key, (-_ASK_AGAIN_S, 0))
                is_old = self._tenants.now_ms(row.tenant_id) - row.keys_as_of_ms > FETCH_EVERY_MS
                is_due = is_old or key in self._wanted
                rests = now_s - asked_s < _ASK_AGAIN_S * 2 ** min(max(0, in_vain - 1), _MOST_DOUBLED)
                if not is_due or rests or of_tenant[row.tenant_id] >= _MAX_OF_TENANT or len(found) >= _MAX_FETCHES:
                    continue
                of_tenant[row.tenant_id] += 1
                self._asked[key] = (now_s, in_vain + 1)
                found.append(
                    {"tenant": row.tenant_id, "issuer": row.name, "url": row.url, "unsafe_http": row.unsafe_http}
                )
        return found

    def fetched(self, tenant: str, name: str, url: str, document: Any) -> None:
        """Take what was fetched of an issuer.

        Raises:
            InvalidInput: It is no set of keys.
        """
        keys = idtoken.read_keys(document)
        with self._tenants.view(tenant) as found:
            row = None if found is None else found[0].issuer(name)
            if found is None or row is None or row.url != url or not row.fetched:
                return  # It is another issuer by now.
            version, at_ms, are_new = found[1].facts_version, found[0].now_ms, row.keys != keys
        if are_new:
            self._take(tenant, name, keys, at_ms, version)
        else:
            # That they were looked at again is telemetry: no entry, and no fact.
            with tenant_session(self._engine, tenant, write=True) as session:
                again = session.get(Issuer, (tenant, name))
                if again is not None and again.url == url and again.keys == keys:
                    again.keys_as_of_ms = at_ms
        with self._lock:
            self._wanted.discard((tenant, name))
            self._asked[tenant, name] = (time.monotonic(), 0)

    def _take(self, tenant: str, name: str, keys: list[dict[str, str]], at_ms: int, version: int) -> None:
        told = {"event": "issuer-keys", "issuer": f"{tenant}/{name}", "kids": [key["kid"] for key in keys]}
        told["keys_digest"] = canonical.digest(keys).hex()
        where = {"tenant_id": tenant, "name": name, "removed_at_ms": None}
        receipt = self._sequencer.append(
            Submission(
                entries=[_entry(tenant, told)],
                expect={tenant: version},
                companions=[Update(Issuer, where, {"keys": keys, "keys_as_of_ms": at_ms})],
                bump=(tenant,),
            )
        )
        self._tenants.seen(tenant, receipt.facts_versions[tenant], receipt.placed[0].time_ms)


def _entry(tenant: str, told: dict[str, Any]) -> NewEntry:
    fixed = {"v": 1, "type": "people", **told}
    return NewEntry(tenant, "people", tenant, tenant, lambda at_ms: canonical.dumps({**fixed, "time_ms": at_ms}))


class Exchanger:
    """Where ID tokens are exchanged.

    Args:
        engine: Of the store.
        sequencer: Through which refusals get into the log.
        tenants: What is in force.
        desk: Where the exchange is decided.
        keys: Told of keys that are not known.
    """

    def __init__(self, engine: Engine, sequencer: Sequencer, tenants: Tenants, desk: Desk, keys: IssuerKeys) -> None:
        self._engine = engine
        self._sequencer = sequencer
        self._tenants = tenants
        self._desk = desk
        self._keys = keys
        self._refusals = Buckets(_REFUSALS_PER_S)
        self._decoys = idtoken.new_decoys()

    def exchange(self, audience: str, token: str) -> dict[str, Any]:
        """Exchange an ID token.

        Args:
            audience: The issuer as the tenant knows it: ``TENANT/NAME``.
            token: The ID token.

        Returns:
            ``token``, ``ttl_s``, and whose it is.

        Raises:
            ExchangeRefused: It is exchanged for nothing.
        """
        try:
            ref = parse_ref(audience)
        except InvalidInput:
            raise ExchangeRefused from None
        with tenant_session(self._engine, ref.tenant) as session:
            row = session.exec(
                select(Issuer).where(Issuer.name == ref.name, col(Issuer.removed_at_ms).is_(None))
            ).first()
        now_ms = self._tenants.now_ms(ref.tenant)
        try:
            verified = self._verified(ref, row, token, now_ms)
        except idtoken.Refused as refused:
            if row is not None and not refused.tried:
                # Where there is no issuer, a signature was verified all the same: the time tells no more than the answer.
                self._try_decoy(token, now_ms)
            if row is not None and refused.unknown_key and row.fetched:
                self._keys.want(ref.tenant, ref.name)
            logger.info("an ID token was not exchanged", extra={"audience": str(ref), "reason": str(refused)})
            raise ExchangeRefused from None
        if row is None:
            raise ExchangeRefused
        wrong = mismatch(verified.claims, row)
        workload = workload_of(verified.claims, row)
        if wrong is not None:
            self._log_refusal(ref, workload, f"its {wrong} is not the one that the issuer is trusted for")
            raise ExchangeRefused
        return self._ask(ref, row, verified, workload)

    def _verified(self, ref: Ref, row: Issuer | None, token: str, now_ms: int) -> idtoken.IdToken:
        if row is None:
            self._try_decoy(token, now_ms)
            raise idtoken.Refused("no such issuer is trusted")
        if row.fetched and now_ms - row.keys_as_of_ms > MAX_AGE_MS:
            self._keys.want(ref.tenant, ref.name)
            raise idtoken.Refused("the keys of the issuer could not be fetched of late")
        return idtoken.verify(token, row.keys, issuer=row.url, audience=row.audience, now_ms=now_ms)

    def _try_decoy(self, token: str, now_ms: int) -> None:
        """Do the work of a verification: no key of a decoy ever signed anything."""
        keys = idtoken.decoys_for(token, self._decoys)
        with contextlib.suppress(idtoken.Refused):
            idtoken.verify(token, keys, issuer="", audience="", now_ms=now_ms)

    def _ask(self, ref: Ref, row: Issuer, verified: idtoken.IdToken, workload: dict[str, str]) -> dict[str, Any]:
        subject = idtoken.text_of(verified.claims.get("sub")) or ""
        claims = tuple(sorted((f"workload.{name}", value) for name, value in workload.items()))
        who = Who(ref.tenant, row.account, "service", "", claims)
        asked = Asked(
            verb=EXCHANGE,
            ref=Ref(ref.tenant, row.account),
            sent=f"{ref.tenant}/{row.account}",
            body=Exchange(
                issuer=row.name,
                digest_hex=verified.digest_hex,
                id_token_expires_at_ms=verified.expires_at_ms,
                workload=workload,
            ),
            context=(("issuer", row.name), ("subject", subject[:256])),
        )
        answer = self._desk.ask(lambda: who, asked)
        if not answer.decision.allowed or not answer.secrets:
            reason = "policy denies it" if answer.conflict is None else answer.conflict.message
            self._log_refusal(ref, workload, reason)
            raise ExchangeRefused
        return {**answer.result, **answer.secrets}

    def _log_refusal(self, ref: Ref, workload: dict[str, str], reason: str) -> None:
        logger.info("an ID token was not exchanged", extra={"audience": str(ref), "reason": reason})
        if self._refusals.take(ref.tenant):
            return
        told = {"event": "exchange-refused", "issuer": str(ref), "reason": reason, "workload": workload}
        try:
            self._sequencer.append(Submission([_entry(ref.tenant, told)]))
        except LogError as error:
            logger.warning("a refusal could not be logged", extra={"tenant": ref.tenant, "reason": str(error)})
