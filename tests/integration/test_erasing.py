"""Records of the log are erased by those who may, after their time, and with a trace: on an installation whose clock goes days ahead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from service_world import Installation, poll, problem, table
from sqlalchemy import text
from test_operations import audit, fetched

from databases import KINDS
from licet_attestations.leaf import Leaf
from licet_engine.client import Answer
from licet_engine.log import store
from licet_engine.store.db import read_transaction, write_transaction
from postgres_server import PostgresServer
from set_clock import CLOCK

pytestmark = pytest.mark.slow
TENANT: Final = "northbank"
DAY_S: Final = 86_400
WHY: Final = "article 17"


class Aged(Installation):
    """An installation with entries of which the time of keeping is over.

    Attributes:
        old: How many entries are old enough.
    """

    old = 0

    def __init__(self, clock: Path, **overrides: Any) -> None:
        super().__init__(**overrides)
        self._clock = clock

    def set_clock(self, ahead_s: int) -> None:
        """Set the clock of all processes: so many seconds from the true one."""
        new = self._clock.with_name("new")
        new.write_text(str(ahead_s))
        new.chmod(0o644)
        new.replace(self._clock)

    def find(self, action: str, resource: str, *, kind: str = "decision") -> int:
        """The first entry about this."""
        return next(
            index
            for index, (leaf, record) in enumerate(self.entries(TENANT))
            if (leaf.kind, record.get("action")) == (kind, action) and record["resource"]["id"] == resource
        )

    def entry(self, index: int) -> store.Entry:
        with read_transaction(self.engine) as connection:
            return store.read_entry(connection, TENANT, index)

    def decision_id(self, index: int) -> str:
        return str(json.loads(self.entry(index).record or b"{}")["id"])

    def erase(self, who: str, *indices: int, is_dry: bool = False) -> Answer:
        client = self.client(f"{TENANT}/{who}")
        parameters = {"entries": list(indices), "reason": WHY}
        return (client.ask if is_dry else client.act)("record.erase", TENANT, parameters)

    def licet(self, who: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the command line."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LICET_")}
        environment |= {"LICET_URL": self.url, "LICET_TOKEN": self.tokens[f"{TENANT}/{who}"], "NO_COLOR": "1"}
        run = [sys.executable, "-m", "licet_engine.cli", *words]
        return subprocess.run(run, capture_output=True, text=True, check=False, env=environment, timeout=120)

    def fsck(self) -> dict[str, Any]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LICET_")}
        environment |= self.settings.to_environment()
        run = [sys.executable, "-m", "licet_engine.cli", "log", "fsck", "--format", "json"]
        ended = subprocess.run(run, capture_output=True, text=True, check=False, env=environment, timeout=120)
        assert ended.stdout, ended.stderr
        return {"code": ended.returncode, "told": json.loads(ended.stdout)}


def aged_by_a_day(world: Aged) -> bool:
    """Whether what is logged now is logged a day after the rest."""
    world.client(f"{TENANT}/ana").act("catalogue.read", TENANT, {}).require()
    last, _ = world.entries(TENANT, world.size(TENANT) - 1)[0]
    before, _ = world.entries(TENANT, world.old - 1)[0]
    return last.time_ms - before.time_ms > DAY_S * 1000


@pytest.fixture(params=KINDS, scope="module")
def aged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aged]:
    urls = ""
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        urls = str(server.write_urls(server.create(), tmp_path_factory.mktemp("database") / "urls"))
    with tempfile.TemporaryDirectory(prefix="lc-") as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        folder.chmod(0o755)  # Every process reads it, whoever it is.
        (folder / "sitecustomize.py").write_text(CLOCK)
        clock = folder / "clock"
        clock.write_text("0")
        made = Aged(clock, database_urls=urls, checkpoint_interval_s=0.2)
        patch.setenv("PYTHONPATH", str(folder))
        patch.setenv("TEST_CLOCK", str(clock))
        try:
            made.start()
            made.people(TENANT, "us", packs=[])
            made.client(f"{TENANT}/admin").act("tenant.administer", TENANT, {"evidence_retention_days": 1}).require()
            # The first administrator's token lasts a day.
            admin = made.client(f"{TENANT}/admin")
            made.tokens[f"{TENANT}/admin"] = admin.act("token.issue", f"{TENANT}/admin", {}).require().result["token"]
            for officer in ("carl", "dora"):
                made.person(f"{TENANT}/{officer}", roles=["compliance"])
            for dataset in ("loans", "leads"):
                assert made.register(f"{TENANT}/ana", dataset, table()).state == "done"
            ana, cora = made.client(f"{TENANT}/ana"), made.client(f"{TENANT}/cora")
            ana.act("dataset.classify", f"{TENANT}/leads", {"classification": "restricted"}).require()
            cora.act("dataset.hold", f"{TENANT}/loans", {"reason": "enquiry"}).require()
            assert made.done(ana, ana.act("dataset.read", f"{TENANT}/leads", {})).state == "done"
            made.old = made.size(TENANT)
            made.set_clock(2 * DAY_S)
            # Every process reads its clock anew after some milliseconds.
            poll("the clock to be set", lambda: aged_by_a_day(made))
            yield made
        finally:
            made.stop()


def deciding(answer: Answer) -> tuple[bool, list[str]]:
    return answer.allowed, [policy.id for policy in answer.policies]


def of_kind(aged: Aged, kind: str) -> int:
    return next(index for index, (leaf, _) in enumerate(aged.entries(TENANT)) if leaf.kind == kind)


def test_what_is_too_young_is_kept(aged: Aged) -> None:
    aged.client(f"{TENANT}/ana").act("dataset.classify", f"{TENANT}/leads", {"classification": "restricted"}).require()
    young = next(
        index
        for index, (leaf, record) in enumerate(aged.entries(TENANT))
        if index >= aged.old and leaf.kind == "decision" and record["action"] == "dataset.classify"
    )
    assert deciding(aged.erase("cora", young)) == (False, ["guardrail.erasure.retention"])
    # One that may go takes none with it that may not.
    old = aged.find("dataset.classify", f"{TENANT}/leads")
    assert deciding(aged.erase("cora", old, young)) == (False, ["guardrail.erasure.retention"])
    assert aged.entry(old).record is not None


def test_a_time_that_is_made_shorter_counts_for_what_comes_then(aged: Aged) -> None:
    admin = aged.client(f"{TENANT}/admin")
    old = aged.find("dataset.classify", f"{TENANT}/leads")
    assert aged.erase("cora", old, is_dry=True).allowed
    admin.act("tenant.administer", TENANT, {"evidence_retention_days": 30}).require()
    assert deciding(aged.erase("cora", old)) == (False, ["guardrail.erasure.retention"])
    admin.act("tenant.administer", TENANT, {"evidence_retention_days": 1}).require()
    try:
        assert deciding(aged.erase("cora", old)) == (False, ["guardrail.erasure.retention"])
    finally:
        # Nobody can do this but who owns the database; without it nothing here could be erased for a month.
        with write_transaction(aged.engine, TENANT) as connection:
            connection.execute(text("UPDATE tenant SET evidence_retained = '[]' WHERE tenant_id = :t"), {"t": TENANT})
        admin.act("tenant.administer", TENANT, {"budgets": {"training": 50}}).require()
    assert aged.erase("cora", old, is_dry=True).allowed


def test_a_hold_on_evidence_keeps_every_record(aged: Aged) -> None:
    cora = aged.client(f"{TENANT}/cora")
    old = aged.find("dataset.classify", f"{TENANT}/leads")
    held = aged.licet("cora", "hold", "place", TENANT, "--reason", "a court asks")
    assert held.returncode == 0, held.stderr
    try:
        assert deciding(aged.erase("carl", old)) == (False, ["guardrail.erasure.held"])
    finally:
        cora.act("evidence.lift-hold", TENANT, {"reason": "closed"}).require()
    assert aged.erase("carl", old, is_dry=True).allowed


def test_a_hold_on_what_a_record_is_about_keeps_it(aged: Aged) -> None:
    registered = aged.find("dataset.register", f"{TENANT}/loans")
    assert deciding(aged.erase("carl", registered)) == (False, ["guardrail.erasure.held"])
    assert aged.erase("carl", aged.find("dataset.register", f"{TENANT}/leads"), is_dry=True).allowed


@pytest.mark.parametrize("kind", ["attestation", "facts", "operation", "hold"])
def test_what_shows_that_things_were_allowed_is_never_erased(aged: Aged, kind: str) -> None:
    kinds = {leaf.kind for leaf, _ in aged.entries(TENANT)}
    if kind == "hold":
        # The decision to hold counts as what it is about.
        index = aged.find("dataset.hold", f"{TENANT}/loans")
    else:
        assert kind in kinds
        index = of_kind(aged, kind)
    allowed, policies = deciding(aged.erase("carl", index))
    assert (allowed, "guardrail.erasure.kinds" in policies) == (False, True)
    assert aged.entry(index).record is not None


def test_nobody_erases_the_record_of_what_they_did_themselves(aged: Aged) -> None:
    aged_by = aged.client(f"{TENANT}/admin")
    # The administrator becomes a compliance officer too, and finds what it did before.
    aged.person(f"{TENANT}/both", roles=["compliance", "data-scientist"])
    own = next(
        index
        for index, (leaf, record) in enumerate(aged.entries(TENANT)[: aged.old])
        if leaf.kind == "decision" and record["action"] == "dataset.classify"
    )
    aged_by.act("person.administer", f"{TENANT}/ana", {"roles": ["data-scientist", "compliance"]}).require()
    try:
        assert deciding(aged.erase("ana", own)) == (False, ["guardrail.erasure.own"])
        assert aged.erase("both", own, is_dry=True).allowed
    finally:
        aged_by.act("person.administer", f"{TENANT}/ana", {"roles": ["data-scientist"]}).require()


@pytest.mark.parametrize("who", ["ana", "uma", "sam", "admin", "ci"])
def test_nobody_but_compliance_erases(aged: Aged, who: str) -> None:
    assert not aged.erase(who, aged.find("dataset.classify", f"{TENANT}/leads")).allowed


def test_an_entry_that_is_not_there_or_is_named_twice_erases_none(aged: Aged) -> None:
    old = aged.find("dataset.classify", f"{TENANT}/leads")
    with aged.http(f"{TENANT}/cora") as http:
        for entries, status, code in (([old, 1 << 40], 409, "conflict"), ([old, old], 400, "invalid-input")):
            body = {"resource": TENANT, "parameters": {"entries": entries, "reason": WHY}}
            problem(http.post("/v1/record/erase", json=body), status, code)
    assert aged.entry(old).record is not None


def test_what_is_attested_by_itself_is_not_erased_and_what_is_erased_not_attested(aged: Aged) -> None:
    index, other = (aged.find("token.issue", f"{TENANT}/{name}") for name in ("carl", "dora"))
    decision = aged.decision_id(index)
    with aged.http(f"{TENANT}/cora") as http:
        answer = http.get(f"/v1/attestations/{TENANT}/decision/{decision}")
        assert answer.status_code == 200, answer.text
        body = {"resource": TENANT, "parameters": {"entries": [index], "reason": WHY}}
        assert "is attested" in problem(http.post("/v1/record/erase", json=body), 409, "conflict")["detail"]
        assert aged.entry(index).record is not None
        named = aged.decision_id(other)
        aged.erase("carl", other).require()
        problem(http.get(f"/v1/attestations/{TENANT}/decision/{named}"), 410, "erased")


def test_a_record_is_erased_with_its_salt_and_the_log_says_so(aged: Aged) -> None:
    index = aged.find("dataset.read", f"{TENANT}/leads")
    before = aged.entry(index)
    leaf = Leaf.from_bytes(before.header.encode())
    decision = aged.decision_id(index)
    assert before.salt is not None
    assert before.record is not None
    assert f"{TENANT}/ana".encode() in before.record
    first = aged.size(TENANT)
    ended = aged.licet("cora", "log", "erase", TENANT, str(index), "--reason", WHY, "--yes", "--format", "json")
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert told["result"] == {"tenant": TENANT, "erased": 1, "erased_before": 0}

    # The leaf stays, salt and record are gone, and of the decision nothing tells any more who asked about what.
    after = aged.entry(index)
    assert (after.header, after.hash, after.salt, after.record) == (before.header, before.hash, None, None)
    row = rows(aged, "SELECT principal, resource, observed FROM decision WHERE leaf_index = :index", index=index)
    assert row == [("(erased)", "(erased)", "[]")]
    of_it = rows(aged, "SELECT principal, asked, claimed FROM operation WHERE decision_id = :id", id=decision)
    assert of_it == [("(erased)", "{}", "[]")]

    # The decision and what it did stand in the log together.
    (allowed, noted) = aged.entries(TENANT, first)[:2]
    assert (allowed[0].kind, allowed[1]["action"], allowed[1]["decision"]) == ("decision", "record.erase", "allow")
    assert noted[0].kind == "erasure"
    assert {name: noted[1][name] for name in ("event", "by", "reason", "decision", "entries")} == {
        "event": "records-erased",
        "by": f"{TENANT}/cora",
        "reason": WHY,
        "decision": allowed[1]["id"],
        "entries": [{"index": index, "kind": "decision", "commitment": leaf.commitment}],
    }
    assert f"{TENANT}/ana" not in json.dumps(allowed[1])

    # Nothing more happens where it is asked again.
    size = aged.size(TENANT)
    again = aged.erase("carl", index).require()
    assert again.result == {"tenant": TENANT, "erased": 0, "erased_before": 1}
    assert [leaf.kind for leaf, _ in aged.entries(TENANT, size)] == ["decision"]

    # What explains it says that it was erased.
    with aged.http(f"{TENANT}/cora") as http:
        for path in ("/explain", ""):
            body = problem(http.get(f"/v1/decisions/{TENANT}/{decision}{path}"), 410, "erased")
            assert "was erased" in body["detail"]
    explained = aged.licet("cora", "decision", "explain", f"{TENANT}/{decision}")
    assert explained.returncode != 0
    assert "was erased" in explained.stderr

    gone_from_files(aged, before.salt, before.record)
    checked = aged.fsck()
    assert checked["code"] == 0, checked


def test_the_evidence_verifies_and_says_what_is_erased(aged: Aged, tmp_path: Path) -> None:
    index = aged.find("dataset.classify", f"{TENANT}/leads")
    *_, (last, _) = aged.entries(TENANT)
    aged.erase("carl", index).require()
    erased = sum(aged.entry(i).record is None for i in range(aged.old))
    cora = aged.client(f"{TENANT}/cora")
    archive = tmp_path / "northbank.zip"
    archive.write_bytes(fetched(cora, cora.act("evidence.export", TENANT, {}), aged))
    code, told = audit(archive, aged.settings.trust_root)
    assert code == 0, told
    assert any(f"{erased} records are erased" in words for words in told["limits"]), told
    with zipfile.ZipFile(archive) as files:
        texts = b"".join(files.read(name) for name in files.namelist() if name.startswith("records/"))
    assert texts.count(b'{"erased":true}') == erased
    # Of a time before the erasure as well: the archive has what erased, and the decision that allowed it.
    asked = cora.act("evidence.export", TENANT, {"to_ms": last.time_ms + 1})
    archive.write_bytes(fetched(cora, asked, aged))
    code, told = audit(archive, aged.settings.trust_root)
    assert code == 0, told
    with zipfile.ZipFile(archive) as files:
        outside = [json.loads(line) for line in files.read("log/outside.jsonl").splitlines()]
    named = [each["record"] for each in outside if each["record"] and each["record"].get("type") == "erasure"]
    assert index in {entry["index"] for record in named for entry in record["entries"]}


def test_an_erasure_that_the_log_does_not_tell_of_is_found(aged: Aged) -> None:
    index = aged.find("dataset.register", f"{TENANT}/leads")
    change = text("UPDATE log_record SET salt = :salt, record = :record WHERE tenant_id = :t AND leaf_index = :index")
    with write_transaction(aged.engine, TENANT) as connection:
        connection.execute(change, {"salt": None, "record": None, "t": TENANT, "index": index})
    found = aged.fsck()
    assert found["code"] != 0
    assert f"the record of entry {index} is gone, and no erasure in the log names it" in json.dumps(found["told"])
    # Nobody is given an archive in which it passes for an erased one.
    cora = aged.client(f"{TENANT}/cora")
    ended = aged.done(cora, cora.act("evidence.export", TENANT, {}))
    assert ended.state == "failed"
    assert f"the record of entry {index} is missing" in json.dumps(ended.error)
    assert "licet log fsck" in json.dumps(ended.error)


def rows(aged: Aged, query: str, **values: Any) -> list[tuple[Any, ...]]:
    with read_transaction(aged.engine) as connection:
        return [tuple(row) for row in connection.execute(text(query), values)]


def gone_from_files(aged: Aged, *secrets: bytes) -> None:
    """Wait until neither the database of SQLite nor its write-ahead log has these bytes, not even where nothing points."""
    if aged.settings.database_urls:
        # PostgreSQL writes anew, and the old row goes when it is vacuumed.
        assert not rows(aged, "SELECT 1 FROM log_record WHERE salt = :salt", salt=secrets[0])
        return

    def are_gone() -> bool:
        files = [path.read_bytes() for path in aged.settings.database.parent.glob(f"{aged.settings.database.name}*")]
        assert files
        return not any(secret in data for secret in secrets for data in files)

    poll("the bytes to be overwritten", are_gone)
