"""Whose keys are fetched when: nobody's wait behind another tenant's issuers that never answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm
from sqlalchemy import Engine, event
from sqlmodel import select

from databases import Database
from licet_engine.domain.errors import InvalidInput
from licet_engine.domain.refs import now_ms
from licet_engine.lifecycle.exchange import IssuerKeys
from licet_engine.lifecycle.people import first_bundle, tenant_rows
from licet_engine.lifecycle.tenants import Tenants
from licet_engine.log.sequencer import Sequencer
from licet_engine.store import db, tables

KEY = rsa.generate_private_key(65537, 2048).public_key()
DOCUMENT = {"keys": [{**RSAAlgorithm.to_jwk(KEY, as_dict=True), "kid": "one"}]}


@pytest.fixture
def engine(prepared: Database) -> Iterator[Engine]:
    engine = prepared.open()
    bundle = first_bundle([])
    for tenant, names in (("lakeside", [f"tar-{number}" for number in range(32)]), ("northbank", ["github"])):
        with db.tenant_session(engine, tenant, write=True) as session:
            for insert in tenant_rows(
                tenant, region="us", administrator="admin", role="administrator", bundle=bundle, now_ms=1
            ):
                session.add(insert.table(**{"tenant_id": tenant, **insert.row}))
                session.flush()
            for name in names:
                session.add(issuer(tenant, name))
    yield engine
    engine.dispose()


def issuer(tenant: str, name: str, **changes: Any) -> tables.Issuer:
    values = {"tenant_id": tenant, "name": name, "url": f"https://{name}.example", "audience": "a", "account": "admin"}
    return tables.Issuer(**values | {"claims": {"sub": "x"}, "created_by": "admin", "created_at_ms": 1} | changes)


@pytest.fixture
def keys(engine: Engine) -> Iterator[IssuerKeys]:
    sequencer = Sequencer(engine)
    yield IssuerKeys(engine, sequencer, Tenants(engine))
    sequencer.close()


def names(found: list[dict[str, Any]], tenant: str) -> list[str]:
    return [one["issuer"] for one in found if one["tenant"] == tenant]


def test_a_tenant_whose_issuers_never_answer_keeps_no_other_waiting(keys: IssuerKeys) -> None:
    turns = [keys.due() for _ in range(20)]
    assert names(turns[0], "northbank") == ["github"]
    assert all(len(names(turn, "lakeside")) <= 2 for turn in turns)
    asked = [name for turn in turns for name in names(turn, "lakeside")]
    # Each in its turn, and none again before its pause is over.
    assert sorted(asked) == sorted(f"tar-{number}" for number in range(32))


def test_what_was_fetched_is_a_fact_and_is_asked_for_again_only_when_it_is_old_or_lacks_a_key(
    keys: IssuerKeys, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert names(keys.due(), "northbank") == ["github"]
    keys.fetched("northbank", "github", "https://github.example", DOCUMENT)
    with db.tenant_session(engine, "northbank") as session:
        row = session.get(tables.Issuer, ("northbank", "github"))
        assert row is not None
        assert [key["kid"] for key in row.keys] == ["one"]
    monkeypatch.setattr("licet_engine.lifecycle.exchange._ASK_AGAIN_S", 0.0)
    assert names(keys.due(), "northbank") == []
    keys.want("northbank", "github")
    # Wanted until it was had, however often it fails.
    assert names(keys.due(), "northbank") == names(keys.due(), "northbank") == ["github"]
    keys.fetched("northbank", "github", "https://github.example", DOCUMENT)
    assert names(keys.due(), "northbank") == []


def test_only_what_is_due_is_read_and_nothing_of_it_but_where_it_is(keys: IssuerKeys, engine: Engine) -> None:
    keys.fetched("northbank", "github", "https://github.example", DOCUMENT)
    with db.tenant_session(engine, "lakeside", write=True) as session:
        for row in session.exec(select(tables.Issuer)).all():
            row.keys_as_of_ms = now_ms()
            session.add(row)
    asked: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda _c, _k, said, *_: asked.append(said))
    assert keys.due() == []
    (said,) = [one for one in asked if "FROM issuer" in one]
    assert "issuer.keys," not in said
    assert "issuer.claims" not in said
    keys.want("lakeside", "tar-7")
    keys.want("lakeside", "nobody")
    assert [one["issuer"] for one in keys.due()] == ["tar-7"]


def test_what_is_of_another_address_by_now_or_no_set_of_keys_is_not_taken(keys: IssuerKeys, engine: Engine) -> None:
    keys.fetched("northbank", "github", "https://before.example", DOCUMENT)
    keys.fetched("northbank", "gone", "https://github.example", DOCUMENT)
    keys.fetched("nowhere", "github", "https://github.example", DOCUMENT)
    with pytest.raises(InvalidInput):
        keys.fetched("northbank", "github", "https://github.example", {"keys": []})
    with db.tenant_session(engine, "northbank") as session:
        row = session.get(tables.Issuer, ("northbank", "github"))
        assert row is not None
        assert row.keys == []
