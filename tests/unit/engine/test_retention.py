"""What is over its time goes, in small steps; what proves anything stays."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from sqlalchemy import Engine, event
from sqlmodel import select

from databases import Database
from licet_adapters.conformance.world import World
from licet_adapters.guard import WarrantGuard
from licet_adapters.loader import GROUP, load_adapters
from licet_engine import router
from licet_engine.domain.errors import Unavailable
from licet_engine.lifecycle import retention
from licet_engine.lifecycle.retention import Retention, WorkSweeper
from licet_engine.log.sequencer import Sequencer
from licet_engine.log.submission import NewEntry, Submission
from licet_engine.settings import Settings, load_settings
from licet_engine.store import tables
from licet_engine.store.db import tenant_session

DAY_MS = 86_400_000
NOW_MS = int(time.time() * 1000)


@pytest.fixture
def engine(prepared: Database) -> Iterator[Engine]:
    engine = prepared.open()
    sequencer = Sequencer(engine)
    for tenant in ("northbank", "lakeside"):
        sequencer.append(Submission([NewEntry(tenant, "facts", tenant, tenant, b"{}")]))
        with tenant_session(engine, tenant, write=True) as session:
            session.add(tables.Tenant(tenant_id=tenant, region="us", created_at_ms=1))
    sequencer.close()
    yield engine
    engine.dispose()


def settings(tmp_path: Path, **changes: Any) -> Settings:
    return load_settings({}, data=tmp_path, **changes)


def key(tenant: str, name: str, at_ms: int) -> tables.IdempotencyKey:
    return tables.IdempotencyKey(
        tenant_id=tenant, principal="p", key=name, request_digest_hex="", status=200, body="{}", at_ms=at_ms
    )


def put(engine: Engine, tenant: str, *rows: Any) -> None:
    with tenant_session(engine, tenant, write=True) as session:
        for row in rows:
            session.add(row)


def held(engine: Engine, tenant: str, table: Any) -> list[Any]:
    with tenant_session(engine, tenant) as session:
        return list(session.exec(select(table)).all())


def test_rows_go_when_their_time_is_over_and_not_before_in_every_tenant(engine: Engine, tmp_path: Path) -> None:
    for tenant in ("northbank", "lakeside"):
        put(engine, tenant, key(tenant, "old", NOW_MS - 31 * DAY_MS), key(tenant, "young", NOW_MS - 29 * DAY_MS))
    assert Retention(engine, settings(tmp_path)).sweep() == 2
    for tenant in ("northbank", "lakeside"):
        assert [row.key for row in held(engine, tenant, tables.IdempotencyKey)] == ["young"]


def test_figures_of_runs_go_and_the_run_stays(engine: Engine, tmp_path: Path) -> None:
    run = tables.Run(
        tenant_id="northbank",
        name="r",
        use="u",
        environment="e",
        region="us",
        state="done",
        started_by="ana",
        started_by_kind="person",
        created_at_ms=1,
    )
    put(engine, "northbank", run)
    metrics = [
        tables.Metric(tenant_id="northbank", run="r", name="loss", step=step, attempt=1, value="1", at_ms=at_ms)
        for step, at_ms in ((1, NOW_MS - 400 * DAY_MS), (2, NOW_MS))
    ]
    put(engine, "northbank", *metrics)
    Retention(engine, settings(tmp_path)).sweep()
    assert [row.step for row in held(engine, "northbank", tables.Metric)] == [2]
    assert len(held(engine, "northbank", tables.Run)) == 1


def test_events_of_traffic_and_batches_of_invocations_go_and_the_endpoint_with_its_count_stays(
    engine: Engine, tmp_path: Path
) -> None:
    endpoint = tables.Endpoint(
        tenant_id="northbank",
        name="e",
        model="m",
        region="us",
        use="u",
        state="live",
        created_by="ci",
        created_at_ms=1,
        updated_at_ms=1,
    )
    put(engine, "northbank", endpoint)
    put(engine, "northbank", tables.InvocationCount(tenant_id="northbank", endpoint="e", last=20, at_ms=1))
    for serial, at_ms in ((1, NOW_MS - 400 * DAY_MS), (2, NOW_MS)):
        event_ = tables.TrafficEvent(
            tenant_id="northbank", endpoint="e", operation_id="o", serial=serial, kind="step", at_ms=at_ms
        )
        batch = tables.InvocationBatch(
            tenant_id="northbank",
            endpoint="e",
            first=serial * 10 - 9,
            last=serial * 10,
            router="r",
            epoch="1",
            at_ms=at_ms,
        )
        put(engine, "northbank", event_, batch)
    assert Retention(engine, settings(tmp_path)).sweep() == 2
    assert [row.serial for row in held(engine, "northbank", tables.TrafficEvent)] == [2]
    assert [row.first for row in held(engine, "northbank", tables.InvocationBatch)] == [11]
    assert [row.last for row in held(engine, "northbank", tables.InvocationCount)] == [20]


def test_of_candidates_what_they_would_have_answered_goes_and_one_that_still_runs_stays(
    engine: Engine, tmp_path: Path
) -> None:
    old_ms = NOW_MS - 400 * DAY_MS
    for name, ended_at_ms, at_ms in (("over", old_ms, old_ms), ("runs", None, NOW_MS)):
        shadow = tables.PolicyShadow(
            tenant_id="northbank",
            id=name,
            bundle_hex="b",
            active_hex="a",
            set_by="northbank/sam",
            since_ms=old_ms,
            ended_at_ms=ended_at_ms,
        )
        count = tables.PolicyShadowCount(tenant_id="northbank", shadow=name, kind="total", name="", at_ms=at_ms)
        flip = tables.PolicyFlip(
            tenant_id="northbank", shadow=name, decision="d", at_ms=at_ms, principal="p", action="a", resource="r"
        )
        put(engine, "northbank", shadow, count, flip)
    assert Retention(engine, settings(tmp_path)).sweep() == 3
    assert [row.id for row in held(engine, "northbank", tables.PolicyShadow)] == ["runs"]
    assert [row.shadow for row in held(engine, "northbank", tables.PolicyShadowCount)] == ["runs"]
    assert [row.shadow for row in held(engine, "northbank", tables.PolicyFlip)] == ["runs"]


def test_leaves_and_records_never_go_and_of_old_checkpoints_the_last_of_a_day_stays(
    engine: Engine, tmp_path: Path
) -> None:
    day_ms = (NOW_MS // DAY_MS - 90) * DAY_MS
    times = {1: day_ms, 2: day_ms + 1, 3: day_ms + 2, 4: day_ms + DAY_MS, 5: NOW_MS - 1, 6: NOW_MS}
    put(
        engine,
        "northbank",
        *(
            tables.LogCheckpoint(tenant_id="northbank", size=size, note="", at_ms=at_ms)
            for size, at_ms in times.items()
        ),
    )
    assert Retention(engine, settings(tmp_path)).sweep() == 2
    assert [row.size for row in held(engine, "northbank", tables.LogCheckpoint)] == [3, 4, 5, 6]
    assert len(held(engine, "northbank", tables.LogLeaf)) == 1
    assert len(held(engine, "northbank", tables.LogRecord)) == 1


def test_of_a_day_the_checkpoint_that_most_witnesses_cosigned_stays_with_its_cosignatures(
    engine: Engine, tmp_path: Path
) -> None:
    at_ms = (NOW_MS // DAY_MS - 90) * DAY_MS
    cosigned = {1: ["a"], 2: ["a", "b"], 3: ["a", "b"], 4: ["b"]}
    put(
        engine,
        "northbank",
        *(tables.LogCheckpoint(tenant_id="northbank", size=size, note="", at_ms=at_ms) for size in (*cosigned, 5)),
        *(
            tables.LogCosignature(tenant_id="northbank", size=size, keyid=keyid, time_s=1, line="")
            for size, keyids in cosigned.items()
            for keyid in keyids
        ),
    )
    assert Retention(engine, settings(tmp_path)).sweep() == 3
    assert [row.size for row in held(engine, "northbank", tables.LogCheckpoint)] == [3, 5]
    assert {(row.size, row.keyid) for row in held(engine, "northbank", tables.LogCosignature)} == {(3, "a"), (3, "b")}


def test_a_transaction_removes_a_bounded_number_and_the_writers_get_their_turn(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_BATCH", 10)
    put(engine, "northbank", *(key("northbank", f"k{i}", 1) for i in range(35)))
    deleted: list[int] = []

    def count(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:  # noqa: FBT001 - as SQLAlchemy calls it.
        if statement.startswith("DELETE FROM idempotency_key"):
            deleted.append(len(parameters) if isinstance(parameters, list) else 1)

    event.listen(engine, "before_cursor_execute", count)
    assert Retention(engine, settings(tmp_path)).sweep() == 35
    assert max(deleted) <= 10
    assert sum(deleted) == 35


def test_two_apis_may_remove_the_same_rows_at_once(
    make_database: Callable[..., AbstractContextManager[Database]], tmp_path: Path
) -> None:
    # On SQLite one would wait for the other.
    with make_database("postgresql") as database:
        first, other = database.open(), database.open()
        sequencer = Sequencer(first)
        sequencer.append(Submission([NewEntry("northbank", "facts", "northbank", "northbank", b"{}")]))
        sequencer.close()
        put(first, "northbank", key("northbank", "old", 1), key("northbank", "older", 1))
        came_first: list[int] = []

        def remove_before(_c: Any, _cursor: Any, statement: str, _p: Any, _context: Any, _many: bool) -> None:  # noqa: FBT001 - as above.
            if statement.startswith("DELETE FROM idempotency_key"):
                came_first.append(Retention(other, settings(tmp_path)).sweep())

        event.listen(first, "before_cursor_execute", remove_before)
        Retention(first, settings(tmp_path)).sweep()
        assert came_first[0] == 2
        assert held(first, "northbank", tables.IdempotencyKey) == []
        first.dispose()
        other.dispose()


def test_a_service_that_stops_does_not_wait_for_housekeeping(engine: Engine, tmp_path: Path) -> None:
    put(engine, "northbank", key("northbank", "old", 1))
    assert Retention(engine, settings(tmp_path)).sweep(lambda: True) == 0


class Door:
    """Answers as the api does."""

    def __init__(self, states: dict[str, str]) -> None:
        self.states = states

    def call(self, method: str, **params: Any) -> Any:
        assert method == "state"
        if params["operation"] not in self.states:
            raise Unavailable("the api does not answer")
        return {"state": self.states[params["operation"]]}


def test_work_folders_go_only_when_their_operation_has_ended_long_ago(tmp_path: Path) -> None:
    work = tmp_path / "worker" / "work" / "northbank"
    long_ago_s = time.time() - 15 * 86_400
    for name in ("failed", "running", "unknown", "young"):
        (work / name / "out").mkdir(parents=True)
        if name != "young":
            os.utime(work / name, (long_ago_s, long_ago_s))
    door = Door({"failed": "failed", "running": "running", "young": "failed"})
    sweeper = WorkSweeper(settings(tmp_path), door)  # type: ignore[arg-type]  # It answers as the door does.
    assert sweeper.sweep_folders() == 1
    assert sorted(path.name for path in work.iterdir()) == ["running", "unknown", "young"]


# A message to a webhook is sent without a warrant, so none is marked. The guard of `local-serving` is in the router's process, not in what
# the worker loads; see below.
ELSEWHERE = {"standard-webhooks", "local-serving"}


@pytest.mark.parametrize("name", sorted({entry.name for entry in entry_points(group=GROUP)} - ELSEWHERE))
def test_spent_marks_of_every_adapter_go_when_their_time_is_over(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    world = World(tmp_path / "world")
    adapters = tmp_path / "worker" / "adapters"
    credentials = tmp_path / "credentials"
    credentials.touch(0o600)
    credentials.write_text("[default]\naws_access_key_id = x\naws_secret_access_key = x\n")
    # Nothing listens there: the marks are the worker's own, wherever the objects lie.
    away = {"s3_bucket": "away", "s3_endpoint": "http://127.0.0.1:1", "s3_region": "us-east-1"}
    options = MappingProxyType(away | {"s3_credentials_file": str(credentials)})
    adapter = load_adapters([name], replace(world.context(name), data_dir=adapters, options=options))[name]
    resources = {"object": "northbank/thing"}
    for _ in range(2):
        warrant = world.warrant("dataset.read", name, "objects.get", resources=resources, parameters={"a": 1})
        adapter._guard.admit(
            warrant, tenant="northbank", operation="objects.get", parameters={"a": 1}, resources=resources
        )
    marks = lambda: [path for path in adapters.rglob("spent/??/*") if path.is_file()]  # noqa: E731 - looked at anew.
    sweeper = WorkSweeper(settings(tmp_path), Door({}))  # type: ignore[arg-type]  # As above.
    assert len(marks()) == 2
    monkeypatch.setattr(retention, "now_ms", world.clock)
    assert sweeper.sweep_marks() == 0
    world.now_ms += 30 * DAY_MS
    assert sweeper.sweep_marks() == 2
    assert marks() == []


def test_marks_of_the_routers_sessions_go_an_hour_after_their_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    world = World(tmp_path / "world")
    given = settings(tmp_path)
    guard = WarrantGuard("local-serving", world.context("local-serving").trust_root, given.router_data, world.clock)
    about = {"endpoint": "northbank/credit"}
    warrant = world.warrant("endpoint.invoke", "local-serving", "serving.invoke", resources=about, parameters=about)
    guard.admit(warrant, tenant="northbank", operation="serving.invoke", parameters=about, resources=about)
    marks = lambda: [path for path in given.router_data.rglob("spent/??/*") if path.is_file()]  # noqa: E731 - as above.
    monkeypatch.setattr(router, "now_ms", world.clock)
    router.sweep_marks(given)
    assert len(marks()) == 1
    world.now_ms += 2 * 3_600_000
    router.sweep_marks(given)
    assert marks() == []


def test_a_link_in_the_work_folder_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("kept")
    work = tmp_path / "worker" / "work" / "northbank"
    work.mkdir(parents=True)
    (work / "failed").symlink_to(elsewhere)
    WorkSweeper(settings(tmp_path, failed_work_ttl_s=1), Door({"failed": "failed"})).sweep_folders()  # type: ignore[arg-type]  # As above.
    assert (elsewhere / "kept").exists()
