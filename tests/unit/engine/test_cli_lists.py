"""What the lists show in text are fields that the rows of a real database have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from licet_engine.api import lists
from licet_engine.commands.render import COLUMNS, list_lines
from licet_engine.lifecycle.tenants import Tenants
from licet_engine.lifecycle.verbs import Who
from licet_engine.store import db, tables

if TYPE_CHECKING:
    from collections.abc import Iterator

    from databases import Database

T = {"tenant_id": "northbank"}
VERSION = {"model": "m", "version": 1}
BY = {"registered_by": "ana", "registered_by_kind": "person"}
ROWS: tuple[Any, ...] = (
    tables.Principal(**T, name="ana", kind="person", created_at_ms=1),
    tables.ApiToken(**T, hash_hex="00", id="t", principal="ana", created_at_ms=1, expires_at_ms=2),
    tables.BreakGlass(**T, id="b", operator="platform/otto", reason="r", duration_ms=60_000, requested_at_ms=1),
    tables.Environment(**T, name="us-east", region="us"),
    tables.Dataset(
        **T,
        **BY,
        name="d",
        classification="internal",
        expires_at_ms=1,
        object_id="o",
        digest_hex="",
        state="ready",
        created_at_ms=1,
    ),
    tables.Run(
        **T,
        name="r",
        use="u",
        environment="e",
        region="us",
        state="done",
        started_by="ana",
        started_by_kind="person",
        created_at_ms=1,
    ),
    tables.ModelVersion(**T, **VERSION, run="r", tier="high", use="u", state="ready", created_at_ms=1),
    tables.Hold(
        **T, id="h", resource_type="Dataset", resource_name="d", reason="suit", placed_by="cora", placed_at_ms=1
    ),
    tables.Operation(
        **T,
        id="o",
        action="model.promote",
        resource="northbank/m@1",
        state="done",
        decision_id="d",
        principal="ana",
        created_at_ms=1,
        updated_at_ms=1,
    ),
    tables.Endpoint(
        **T,
        name="e",
        model="m",
        region="us",
        use="u",
        state="live",
        weights={"1": 100},
        created_at_ms=1,
        updated_at_ms=1,
    ),
    tables.PolicyBundle(**T, digest_hex="b", author="sam", state="active", body=b"{}", created_at_ms=1),
    tables.Publication(
        **T, id="p", project_hex="c", published_by="northbank/sam", author="sam", state="examining", created_at_ms=1
    ),
    tables.ApprovalRequest(**T, **VERSION, id="q", track="legal", binding="", requested_by="ana", at_ms=1),
    tables.Approval(**T, **VERSION, id="a", track="legal", binding="", verdict="approved", approver="cora", at_ms=2),
    tables.Delegation(
        **T, id="g", track="legal", reviewer="ana", delegate="ana", created_at_ms=1, until_ms=2, revoked_at_ms=None
    ),
    tables.Ticket(
        **T,
        id="CHG-1",
        state="open",
        approved=False,
        as_of_ms=1,
        fresh_until_ms=2,
        fetched_at_ms=1,
        operation_id="o",
    ),
    tables.Webhook(
        **T, id="wh-1", name="ops", url="https://hooks.example", secret="wh-1", created_by="ana", created_at_ms=1
    ),
    tables.Issuer(
        **T,
        name="github",
        url="https://ci.example",
        audience="licet:northbank/github",
        account="ana",
        claims={"repository": "northbank/policies"},
        created_by="ana",
        created_at_ms=1,
    ),
    tables.WebhookMessage(
        **T, id="msg_1", webhook="wh-1", event="webhook.test", body="{}", created_at_ms=1, queued_at_ms=1, next_at_ms=1
    ),
    tables.WebhookTry(**T, message="msg_1", number=1, at_ms=1, status=500, reason="answered 500"),
    tables.DeviceRow(
        **T, uuid="GPU-1", kind="cuda", name="H100", memory_mib=1, driver="1", worker="worker-1", seen_at_ms=1
    ),
    tables.Decision(**T, id="d", leaf_index=0, action="log.read", principal="p", resource="r", allowed=True, at_ms=1),
)


@pytest.fixture
def services(prepared: Database) -> Iterator[Any]:
    engine = prepared.open()
    with db.tenant_session(engine, "northbank", write=True) as session:
        session.add(tables.Tenant(**T, region="us", created_at_ms=1))
        session.flush()
        for row in ROWS:
            session.add(type(row)(**row.model_dump()))
            session.flush()
    yield SimpleNamespace(engine=engine, tenants=Tenants(engine))  # All that the lists take of the services.
    engine.dispose()


def test_every_list_has_its_columns_and_every_column_its_list() -> None:
    assert set(COLUMNS) == lists.NAMES


# What waits for somebody takes policies to tell: tests/integration/test_approvers_day.py looks at its rows.
@pytest.mark.parametrize("what", sorted(COLUMNS.keys() - {"inbox"}))
def test_every_column_of_a_list_is_in_its_rows(services: Any, what: str) -> None:
    asker = Who(tenant="northbank", name="ana", kind="person")
    rows = lists.find(what)(services, asker, 50, False)["items"]  # noqa: FBT003  # As the lists take it.
    assert rows
    present = {name for row in rows for name in row}
    assert set(COLUMNS[what]) <= present
    head = list_lines(what, rows)[0].split("  ")
    assert len([word for word in head if word]) == len(COLUMNS[what])


def test_deleted_webhooks_take_no_place_of_those_that_are_told(services: Any) -> None:
    with db.tenant_session(services.engine, "northbank", write=True) as session:
        for number in range(5):
            row = {"name": f"gone-{number}", "url": "https://hooks.example/", "created_by": "ana", "secret": "s"}
            session.add(tables.Webhook(**T, **row, id=f"gone-{number}", created_at_ms=10 + number, removed_at_ms=20))
    asker = Who(tenant="northbank", name="ana", kind="person")

    def listed(what: str, limit: int) -> list[tuple[str, str]]:
        rows = lists.find(what)(services, asker, limit, False)["items"]  # noqa: FBT003  # As the lists take it.
        return [(row["name"], row["state"]) for row in rows]

    assert listed("webhooks", 2) == [("ops", "live")]
    assert listed("all-webhooks", 2) == [("gone-4", "deleted"), ("gone-3", "deleted")]
    assert ("ops", "live") in listed("all-webhooks", 50)
