"""The processes of a running installation are killed, again and again, while it is used.

Each round kills one of them with SIGKILL at a random moment: the signer, the api (its server, or the process that
answers), the worker, the router, or the supervisor with all of them. One installation lives through all rounds. What is checked:

- every acknowledged decision stands in the log where it was said to, and the logs are whole (fsck);
- the signer's last checkpoint is of this log, and the log goes on from it;
- every accepted operation ends as done; its object is stored once, its attempts and its end are logged once;
- models that are trained, registered and promoted meanwhile are so once: one set of objects, one provenance, one stage;
- a budget is spent once for each accepted run, however often it was sent.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from sqlmodel import select

from databases import own_database
from licet_adapters.journal import journals
from licet_attestations.checkpoint import parse_note
from licet_attestations.leaf import Leaf, verify_commitment
from licet_attestations.signer.client import SignerClient
from licet_attestations.statement import APPROVAL, SLSA_PROVENANCE, SLSA_VSA, WARRANT
from licet_attestations.warrant import read_warrant
from licet_engine.client import Answer, LicetClient, ServerUnavailable
from licet_engine.evidence.reconcile import reconcile
from licet_engine.init import initialise, is_initialised
from licet_engine.log import store
from licet_engine.log.fsck import verify_logs
from licet_engine.settings import Settings, load_settings
from licet_engine.store import tables
from licet_engine.store.access import Role, open_database
from licet_engine.store.db import read_transaction, tenant_session
from rounds import rounds

sys.path.append(str(Path(__file__).parents[1] / "integration"))
from service_world import FAR_MS, NO_TLS, free_port, poll, table  # The line above finds it.

pytestmark = pytest.mark.slow

T = TypeVar("T")
ROUNDS = rounds(25)
PATIENCE_S = 600
"""For work that is killed again and again: on a machine that is busy with other things, it gets on between the rounds only."""
# Of a kind and how often, in relation: the api is two processes, a server and the one that answers.
VICTIMS = {"signer": 4, "server": 1, "api": 2, "worker": 3, "router": 1, "supervisor": 1}
BACK_WITHIN_S = 40.0
BUDGET = 1_000_000
TENANT = "northbank"
ENDED = frozenset({"done", "failed", "refused"})
ROLES = ["compliance", "data-scientist", "security-engineer"]
# Nothing needs to be checked for staging here: what is killed is the way there.
PACK = {"name": "sr-11-7", "parameters": {"technical_stages": ["prod"]}}
REGISTER = {
    "classification": "internal",
    "residency": ["us"],
    "uses": ["credit-risk"],
    "expires_at_ms": FAR_MS,
    "label": "deny",
}

SUPERVISE = """
import signal, sys
from licet_engine.serve import Supervisor
from licet_engine.settings import load_settings
from pathlib import Path

supervisor = Supervisor(load_settings(), log=Path(sys.argv[1]), longest_pause_s=0.1)
signal.signal(signal.SIGTERM, lambda *_: supervisor.ask_to_stop())
try:
    supervisor.start()
    supervisor.run()
finally:
    supervisor.stop()
"""


def children(pid: int) -> dict[int, str]:
    """The child processes of a process, with their command lines."""
    found: dict[int, str] = {}
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                with contextlib.suppress(OSError):
                    line = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                    if line:
                        found[int(child)] = line
    return found


def is_gone(pid: int) -> bool:
    """Whether a process has ended, though perhaps nobody has asked how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in {"Z", "X"}
    except OSError:
        return True


class Supervised:
    """An installation under a supervisor that is a process of its own, so that it can be killed."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        if "database_urls" not in settings:
            settings["database_urls"] = own_database(folder / "urls")
        self.settings: Settings = load_settings(
            {},
            data=folder / "d",
            port=free_port(),
            router_port=free_port(),
            checkpoint_interval_s=0.2,
            prove_every_s=0,
            max_uploads_per_principal=1000,
            **settings,
        )
        self.log = folder / "service.log"
        if not is_initialised(self.settings):
            initialise(self.settings)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{self.settings.host}:{self.settings.port}"

    def start(self) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LICET_")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SUPERVISE, str(self.log)],
                env=environment | self.settings.to_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def pids(self) -> dict[str, int]:
        """The processes by what they are; those that are away are left out."""
        assert self.process is not None
        found = {"supervisor": self.process.pid}
        for pid, line in children(self.process.pid).items():
            for word, name in (
                ("licet_attestations.signer", "signer"),
                ("granian", "server"),
                ("licet_engine.worker", "worker"),
                ("licet_engine.router", "router"),
            ):
                if word in line:
                    found[name] = pid
        if "server" in found:
            for pid, line in children(found["server"]).items():
                if "granian" in line or "spawn_main" in line:
                    found["api"] = pid
        return found

    def is_settled(self) -> bool:
        """Whether everything is there and has begun to work."""
        now = self.pids()
        if set(now) != set(VICTIMS):
            return False
        try:
            return self.settings.worker_sign.read_text() == str(now["worker"]) and self.is_ready()
        except OSError:
            return False

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health/ready", trust_env=False, verify=NO_TLS).is_success
        except httpx.HTTPError:
            return False

    def settle(self) -> None:
        poll("everything to be back", self.is_settled, BACK_WITHIN_S)

    def kill(self, victim: str) -> None:
        """Kill one, in whatever it is doing, if only starting; wait until there is another in its place."""
        pid = poll(f"a {victim} to kill", lambda: self.pids().get(victim))
        before = self.pids()
        os.kill(pid, signal.SIGKILL)
        if victim == "supervisor":
            assert self.process is not None
            assert self.process.wait(10) == -signal.SIGKILL
            # Its children die with it, however it ends.
            poll("the children of a killed supervisor to end", lambda: all(map(is_gone, before.values())), 10.0)
            self.start()
        if victim == "server" and "api" in before:
            poll("what the killed server had started to end", lambda: is_gone(before["api"]), 10.0)
        poll(f"another {victim}", lambda: self.pids().get(victim, pid) != pid, BACK_WITHIN_S)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(60)


@dataclass
class Load:
    """A user who does not tire: asks, holds, registers, spends, judges; what is not answered is sent again, under its key."""

    url: str
    token: str
    number: int
    folder: Path
    stop: threading.Event
    decisions: dict[str, bool] = field(default_factory=dict)
    datasets: dict[str, str] = field(default_factory=dict)
    runs: dict[str, str] = field(default_factory=dict)
    verdicts: dict[str, str] = field(default_factory=dict)
    holds: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def run(self) -> None:
        try:
            with LicetClient(self.url, self.token, attempts=1) as client:
                turn = 0
                while not self.stop.is_set():
                    self.turn(client, turn, f"x-{self.number}-{turn}")
                    turn += 1
                    self.stop.wait(0.2)  # A light load: the machine has other things to do.
        except Exception as error:  # noqa: BLE001  # Told by the test, which would otherwise not know.
            self.errors.append(repr(error))

    def turn(self, client: LicetClient, turn: int, name: str) -> None:
        asked = self.insist(lambda: client.ask("dataset.read", "northbank/loans"))
        self.decisions[asked.decision_id] = asked.allowed
        # Something to be left behind in each turn, in turn: a fact with an operation, or an operation of each kind.
        match turn % 4:
            case 0:
                body = {"reason": name}
                self.holds[self.accepted(self.act(client, "dataset.hold", "northbank/kept", body))] = name
            case 1:
                body = self.rows(client, turn)
                answer = self.act(client, "dataset.register", f"northbank/{name}", body)
                self.datasets[self.accepted(answer)] = name
            case 2:
                # Too few rows to be divided: the run is paid for, and fails without a job.
                body = {"dataset": "northbank/few", "environment": "us-east", "use": "credit-risk", "cost": 3}
                self.runs[self.accepted(self.act(client, "training.launch", f"northbank/{name}", body))] = name
            case _:
                body = {"track": "compliance", "verdict": "rejected", "reason": name}
                self.verdicts[self.accepted(self.act(client, "model.approve", "northbank/risk@1", body))] = name

    def insist(self, send: Callable[[], T]) -> T:
        """Send until there is an answer. The client's own patience would sleep through most of this test."""
        until_s = time.monotonic() + 120
        while True:
            try:
                return send()
            except ServerUnavailable:
                if time.monotonic() > until_s:
                    raise
            threading.Event().wait(0.1)

    def act(self, client: LicetClient, action: str, ref: str, body: dict[str, Any]) -> Answer:
        key = os.urandom(16).hex()
        return self.insist(lambda: client.act(action, ref, body, idempotency_key=key))

    def did(self, answer: Answer) -> None:
        assert answer.allowed
        self.decisions[answer.decision_id] = True

    def accepted(self, answer: Answer) -> str:
        self.did(answer)
        assert answer.operation is not None
        return answer.operation.id

    def rows(self, client: LicetClient, turn: int) -> dict[str, Any]:
        path = self.folder / f"{self.number}.csv"
        path.write_bytes(table(20, odd=self.number * 100_000 + turn))
        return self.insist(lambda: client.upload(path)).to_parameters() | REGISTER


@dataclass
class Release(Load):
    """A pipeline that releases one model after the other: trained anew each time, or all from a run that is there.

    Attributes:
        trains: Whether a run is trained for each.
    """

    trains: bool = False
    trained: dict[str, str] = field(default_factory=dict)
    registered: dict[str, str] = field(default_factory=dict)
    promoted: dict[str, str] = field(default_factory=dict)

    def turn(self, client: LicetClient, turn: int, name: str) -> None:
        run = "run-1"
        if self.trains:
            run = name
            body = {"dataset": "northbank/loans", "environment": "us-east", "use": "credit-risk", "cost": 3}
            self.release(client, self.trained, "training.launch", run, body | {"spec": {"epochs": 5, "seed": turn}})
        body = {"run": f"{TENANT}/{run}", "tier": "low"}
        self.release(client, self.registered, "model.register", f"m-{name}", body)
        self.release(client, self.promoted, "model.promote", f"m-{name}@1", {"stage": "staging", "region": "us"})

    def release(self, client: LicetClient, into: dict[str, str], action: str, name: str, body: dict[str, Any]) -> None:
        operation = self.accepted(self.act(client, action, f"{TENANT}/{name}", body))
        into[operation] = name
        until_s = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(ServerUnavailable):
                ended = client.wait(f"{TENANT}/{operation}", timeout_s=PATIENCE_S)
                assert ended.state == "done", ended
                return
            assert time.monotonic() < until_s, f"{action} {name} does not end"
            threading.Event().wait(0.1)


class Checks:
    """Looks into the installation's own files, which nothing that was killed could have set right in passing."""

    def __init__(self, settings: Settings) -> None:
        self.engine = open_database(settings, Role.OWNER, every_tenant=True)
        self.signer = SignerClient(settings.signer_socket)
        self.objects = settings.worker_data / "adapters" / "local-objects" / "objects" / TENANT
        self.seen: set[str] = set()

    def logs_are_whole(self) -> None:
        verify_logs(self.engine)

    def decisions_stand(self, decisions: dict[str, bool]) -> None:
        """What was acknowledged since the last look stands in the log, under its number."""
        fresh = {key: allowed for key, allowed in decisions.items() if key not in self.seen}
        with tenant_session(self.engine, TENANT) as session:
            rows = {row.id: row for row in session.exec(select(tables.Decision)).all() if row.id in fresh}
        assert set(rows) == set(fresh)
        with read_transaction(self.engine) as connection:
            for key, allowed in fresh.items():
                entry = store.read_entry(connection, TENANT, rows[key].leaf_index)
                record = json.loads(entry.record or b"")
                assert (record["id"], record["decision"]) == (key, "allow" if allowed else "deny")
                assert entry.salt is not None
                verify_commitment(Leaf.from_bytes(entry.header.encode()), entry.salt, entry.record or b"")
        self.seen |= set(fresh)

    def signer_is_not_ahead(self) -> None:
        """The last checkpoint that was signed is one of this log."""
        size, root = self.signer.last_checkpoint(TENANT)
        with read_transaction(self.engine) as connection:
            assert size <= store.read_head(connection, TENANT).size
            assert size > 0
            assert store.root_at(connection, TENANT, size) == root

    def nothing_was_done_undecided(self) -> None:
        """Whatever was accepted, warranted or touched stands on an allowing decision in the log; nobody may be at work meanwhile."""
        decided = {record["id"]: record for record in self.records() if "bundle" in record and "decision" in record}

        def is_allowed(decision: str, action: str) -> bool:
            record = decided.get(decision, {})
            return (record.get("decision"), record.get("action")) == ("allow", action)

        operations = self.operations()
        assert not [row for row in operations.values() if not is_allowed(row.decision_id, row.action)]
        warrants = [
            read_warrant(row.envelope.encode())
            for row in self.rows(tables.Attestation)
            if row.predicate_type == WARRANT
        ]
        assert warrants
        for warrant in warrants:
            assert operations[warrant.operation_id].action == warrant.action
            assert is_allowed(warrant.decision.id, warrant.action), warrant
        found = reconcile(self.engine, journals(self.objects.parents[2]))
        assert found.is_clean, found.to_dict()
        assert found.of(TENANT).accesses > 0

    def operations(self) -> dict[str, tables.Operation]:
        with tenant_session(self.engine, TENANT) as session:
            return {row.id: row for row in session.exec(select(tables.Operation)).all()}

    def ended(self) -> int:
        return sum(row.state in ENDED for row in self.operations().values())

    def records(self) -> list[dict[str, Any]]:
        with read_transaction(self.engine) as connection:
            size = store.read_head(connection, TENANT).size
            found = store.read_entries(connection, TENANT, 0, size)
        return [json.loads(entry.record or b"{}") for entry in found]

    def stored(self) -> set[Path]:
        return {path for path in self.objects.rglob("*") if path.is_file()}

    def rows(self, kind: type[Any]) -> list[Any]:
        with tenant_session(self.engine, TENANT) as session:
            return list(session.exec(select(kind)).all())


@pytest.fixture
def service() -> Iterator[Supervised]:
    with tempfile.TemporaryDirectory(prefix="lc-") as folder:
        supervised = Supervised(Path(folder))
        supervised.start()
        try:
            yield supervised
        finally:
            supervised.stop()


def prepare(service: Supervised, folder: Path) -> tuple[list[str], int]:
    """A tenant, two who may do everything, a pipeline, a dataset, and a model that others made.

    Returns:
        The tokens of the two and of the pipeline, and how many objects a run leaves.
    """
    operator = LicetClient(service.url, (service.settings.data / "operator.token").read_text().strip())
    made = operator.act("tenant.create", TENANT, {"region": "us", "packs": [PACK]}).require()
    admin = LicetClient(service.url, made.result["token"])
    place = {"environments": [{"name": "us-east", "region": "us"}], "budgets": {"training": BUDGET}}
    admin.act("tenant.administer", TENANT, place).require()
    tokens = []
    for name, roles in (("ana", ["data-scientist"]), ("one", ROLES), ("two", ROLES)):
        admin.act("person.administer", f"{TENANT}/{name}", {"roles": roles}).require()
        tokens.append(admin.act("token.issue", f"{TENANT}/{name}", {}).require().result["token"])
    pipeline = {"kind": "service", "roles": ["pipeline"], "owner": "ana"}
    admin.act("person.administer", f"{TENANT}/ci", pipeline).require()
    tokens.append(admin.act("token.issue", f"{TENANT}/ci", {}).require().result["token"])
    with LicetClient(service.url, tokens[0]) as ana:
        for name, rows in (("loans", 400), ("kept", 20), ("few", 1)):
            path = folder / f"{name}.csv"
            path.write_bytes(table(rows))
            body = ana.upload(path).to_parameters() | REGISTER
            done(ana, ana.act("dataset.register", f"{TENANT}/{name}", body))
        launch = {"dataset": "northbank/loans", "environment": "us-east", "use": "credit-risk", "spec": {"epochs": 5}}
        stored = Checks(service.settings).stored
        before = len(stored())
        done(ana, ana.act("training.launch", "northbank/run-1", launch))
        of_a_run = len(stored()) - before
        done(ana, ana.act("model.register", "northbank/risk", {"run": "northbank/run-1", "tier": "high"}))
    operator.close()
    admin.close()
    return tokens[1:], of_a_run


def done(client: LicetClient, answer: Answer) -> None:
    operation = answer.require().operation
    assert operation is not None
    ended = client.wait(operation, timeout_s=120)
    assert ended.state == "done", ended


def kill_again_and_again(service: Supervised, checks: Checks, loads: list[Load], seed: str) -> Counter[str]:
    """The rounds; return who was killed how often."""
    chance = random.Random(seed)  # noqa: S311  # Chooses moments, no secrets.
    killed: Counter[str] = Counter()
    # Each of them at least once, and then by how often.
    victims = chance.sample(list(VICTIMS), len(VICTIMS))
    victims += chance.choices(list(VICTIMS), weights=list(VICTIMS.values()), k=ROUNDS - len(victims))
    for number, victim in enumerate(victims):
        loads[0].stop.wait(chance.uniform(0.0, 0.3))  # The moment of the kill is what is random here.
        service.kill(victim)
        killed[victim] += 1
        assert not any(load.errors for load in loads), (number, victim, [load.errors for load in loads])
        for load in loads:
            checks.decisions_stand(dict(load.decisions))
        if number % 5 == 4:
            # In between they may all do some work; what is killed before is often only starting.
            service.settle()
            checks.signer_is_not_ahead()
            ended = checks.ended()
            poll("work to go on", lambda ended=ended: checks.ended() > ended, BACK_WITHIN_S)
        if number % 20 == 19:
            checks.logs_are_whole()
    return killed


def every_operation_ends(
    checks: Checks, loads: list[Load], pipelines: list[Release], before: set[str]
) -> dict[str, tables.Operation]:
    """One operation for each that was acknowledged, and none beside it; each has ended as it should."""
    found = poll(
        "every accepted operation to end",
        lambda: (rows := checks.operations()) and all(row.state in ENDED for row in rows.values()) and rows,
        120.0,
    )
    ours = {key: row for key, row in found.items() if key not in before}
    # A request that was sent again was not accepted again.
    by_resource = [row for row in ours.values() if row.action not in {"model.approve", "dataset.hold"}]
    assert Counter(row.resource for row in by_resource) == Counter(
        f"{TENANT}/{name}"
        for names in (
            *(it for load in loads for it in (load.datasets, load.runs)),
            *(it for pipeline in pipelines for it in (pipeline.trained, pipeline.registered, pipeline.promoted)),
        )
        for name in names.values()
    )
    for action, acknowledged in (
        ("model.approve", [load.verdicts for load in loads]),
        ("dataset.hold", [load.holds for load in loads]),
    ):
        assert {key for key, row in ours.items() if row.action == action} == {
            key for keys in acknowledged for key in keys
        }
    ends = {(row.action, row.state, (row.error or {}).get("code")) for row in ours.values()}
    assert ends == {
        ("dataset.register", "done", None),
        ("training.launch", "failed", "input.split"),
        ("training.launch", "done", None),
        ("model.register", "done", None),
        ("model.promote", "done", None),
        ("model.approve", "done", None),
        ("dataset.hold", "done", None),
    }, [(row.id, row.action, row.state, row.attempt, row.error) for row in ours.values() if row.error]
    return ours


def every_model_is_released_once(checks: Checks, pipelines: list[Release], ours: dict[str, tables.Operation]) -> int:
    """Each was trained, signed and put on its stage once, though it was tried more often; return how many were trained."""
    trained = {key for pipeline in pipelines for key in pipeline.trained}
    promoted = {key: name for pipeline in pipelines for key, name in pipeline.promoted.items()}
    assert trained
    assert len(promoted) > 1
    assert any(ours[key].attempt > 1 for key in (*trained, *promoted)), "nothing of it was interrupted"
    states = {row.name: row.state for row in checks.rows(tables.Run)}
    assert {states[ours[key].resource.partition("/")[2]] for key in trained} == {"done"}
    moves = Counter(f"{row.model}@{row.version}" for row in checks.rows(tables.Promotion))
    assert moves == Counter(promoted.values())
    versions = {f"{row.model}@{row.version}": row for row in checks.rows(tables.ModelVersion)}
    assert {(versions[name].stage, versions[name].signed) for name in promoted.values()} == {("staging", True)}
    attested = Counter(
        (record["operation"], record["predicate_type"])
        for record in checks.records()
        if record.get("type") == "attestation"
    )
    assert {key: attested[key, SLSA_PROVENANCE] for key in trained} == dict.fromkeys(trained, 1)
    assert {key: attested[key, SLSA_VSA] for key in promoted} == dict.fromkeys(promoted, 1)
    return len(trained)


def every_effect_happened_once(checks: Checks, loads: list[Load], ours: dict[str, tables.Operation]) -> None:
    """Holds and verdicts stand once, and what operations did was logged and attested once."""
    held = Counter(row.reason for row in checks.rows(tables.Hold))
    assert held == Counter(name for load in loads for name in load.holds.values())
    verdicts = {key: name for load in loads for key, name in load.verdicts.items()}
    assert Counter(row.reason for row in checks.rows(tables.Approval)) == Counter(verdicts.values())
    records = checks.records()
    ended = Counter(record["operation"] for record in records if record.get("type") == "operation")
    assert {key: ended[key] for key in ours} == dict.fromkeys(ours, 1)
    attested = Counter(
        record["operation"]
        for record in records
        if record.get("type") == "attestation" and record["predicate_type"] == APPROVAL
    )
    assert {key: attested[key] for key in verdicts} == dict.fromkeys(verdicts, 1)


@pytest.mark.timeout(300 + 8 * ROUNDS)
def test_killed_again_and_again_nothing_is_lost_and_nothing_is_done_twice(service: Supervised, tmp_path: Path) -> None:
    service.settle()
    tokens, of_a_run = prepare(service, tmp_path)
    checks = Checks(service.settings)
    before = set(checks.operations())
    objects_before, (budget_before,) = checks.stored(), (row.remaining for row in checks.rows(tables.Budget))
    stop = threading.Event()
    loads = [Load(service.url, token, number, tmp_path, stop) for number, token in enumerate(tokens[:2])]
    pipelines = [Release(service.url, tokens[2], 2 + trains, tmp_path, stop, trains=trains) for trains in (False, True)]
    loads += pipelines
    threads = [threading.Thread(target=load.run) for load in loads]
    for thread in threads:
        thread.start()
    try:
        killed = kill_again_and_again(service, checks, loads, os.environ.get("LICET_TEST_SEED", "kill"))
    finally:
        stop.set()
        for thread in threads:
            thread.join(300)
    assert not any(thread.is_alive() for thread in threads)
    assert not any(load.errors for load in loads), [load.errors for load in loads]
    assert set(killed) == set(VICTIMS)
    service.settle()

    ours = every_operation_ends(checks, loads[:2], pipelines, before)
    assert len(ours) > ROUNDS / 2, "too little was accepted to tell"
    every_effect_happened_once(checks, loads, ours)
    trained = every_model_is_released_once(checks, pipelines, ours)
    assert of_a_run > 0
    stored = sum(len(load.datasets) for load in loads) + of_a_run * trained
    assert len(checks.stored() - objects_before) == stored
    (budget,) = (row.remaining for row in checks.rows(tables.Budget))
    assert budget_before - budget == 3 * (sum(len(load.runs) for load in loads) + trained)

    # And the logs are whole, to the last entry, and go on.
    size = len(checks.records())
    checks.logs_are_whole()
    checks.signer_is_not_ahead()
    checks.nothing_was_done_undecided()
    for load in loads:
        checks.decisions_stand(load.decisions)
    with LicetClient(service.url, tokens[0]) as client:
        head = client.get_json("/v1/log", TENANT)
    checkpoint, _, _ = parse_note(head["checkpoint"])
    assert (checkpoint.size, checkpoint.root.hex()) == (head["size"], head["root_hex"])
    assert checkpoint.size > size
    checks.engine.dispose()
