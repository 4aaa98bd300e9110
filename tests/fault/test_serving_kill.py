"""Replicas and routers that are killed or hang in the middle of their work: nothing is lost that was not said to be."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from licet_adapters.conformance.deployments import ENDPOINT, NEVER
from licet_adapters.conformance.routing import Caller, ServingWorld, eventually, serving_world
from licet_adapters.conformance.world import TENANT
from licet_adapters.errors import IntegrityError, JobFailed, Unavailable
from licet_adapters.ports import CONTROL_SOCKET
from licet_adapters.serving import counting
from licet_adapters.serving.client import LocalServing
from licet_adapters.serving.counting import InvocationCounter
from licet_adapters.serving.rollout import Rollout
from licet_adapters.serving.router import RouterConfig, build_router
from licet_adapters.serving.sessions import ADAPTER
from licet_adapters.serving.state import Deployed, EndpointState, EndpointStore
from licet_attestations import rpc
from licet_attestations.signer import files
from licet_attestations.signer.server import handlers

if TYPE_CHECKING:
    from collections.abc import Iterator

PROCESS = Path(__file__).parent / "serving_process.py"


def replica_pids(ancestor: int) -> list[int]:
    """The model servers below a process."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            argv = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if argv[1:3] == [b"-I", b"-B"] and argv[3].endswith(b"/serve_tabular.py") and _is_below(folder, ancestor):
            found.append(int(folder.name))
    return found


def _is_below(folder: Path, ancestor: int) -> bool:
    pid = int(folder.name)
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
        except OSError:
            return False
    return False


@pytest.fixture
def world(tmp_path: Path) -> Iterator[ServingWorld]:
    with serving_world(tmp_path) as made:
        yield made


# --- replicas ----------------------------------------------------------------------------------------------------------


def test_a_request_whose_replica_dies_is_answered_by_another(world: ServingWorld) -> None:
    world.deploy(
        1, replicas={"min": 2, "max": 2, "idle_s": 0}, batch={"max_rows": 64, "max_wait_ms": 300}, timeout_ms=30_000
    )
    caller = world.caller()
    caller.infer()
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(world.caller().infer()[0])) for _ in range(6)]
    for thread in threads:
        thread.start()
    eventually(lambda: world.figures()["versions"]["1"]["in_flight"] == 6, "six requests are under way on two replicas")
    os.kill(replica_pids(os.getpid())[0], signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert answers == [200] * 6
    assert world.figures()["versions"]["1"]["retried"] == 3
    eventually(lambda: world.figures()["versions"]["1"]["replicas"]["ready"] == 2, "the replica is replaced")
    eventually(lambda: world.door.told(ENDPOINT) == ({"ok": 7}, 0), "each is counted once")


def test_the_only_replica_dies_and_its_requests_wait_for_the_next(world: ServingWorld) -> None:
    world.deploy(1, batch={"max_rows": 64, "max_wait_ms": 300}, timeout_ms=30_000)
    caller = world.caller()
    caller.infer()
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(caller.infer()[0]))
    thread.start()
    eventually(lambda: world.figures()["versions"]["1"]["in_flight"] == 1, "a request is under way")
    (pid,) = replica_pids(os.getpid())
    os.kill(pid, signal.SIGKILL)
    thread.join()
    assert answers == [200]
    assert replica_pids(os.getpid()) != [pid]


def test_a_shift_that_fails_leaves_each_version_as_it_was(world: ServingWorld) -> None:
    first = f"{TENANT}/credit-risk@1"
    world.deploy(1)
    (pid,) = replica_pids(os.getpid())
    (weights,) = world.data_dir.rglob("models/*/model.safetensors")
    world.deploy(2, strategy="blue-green", fallback=first, bake_s=3600, alarms=[NEVER])
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: world.figures()["versions"]["1"]["replicas"]["ready"] == 0, "version 1 is down")
    with pytest.raises(JobFailed, match="does not come up"):
        world.shift({"1": 100})
    assert world.figures()["weights"] == {"2": 100}
    assert world.caller().infer()[2]["licet-version"] == "2"
    weights.write_bytes(good)
    # It is what an alarm of version 2 would return to, and is kept warm for it.
    eventually(lambda: world.figures()["versions"]["1"]["replicas"]["ready"] == 1, "version 1 is up again")


@pytest.mark.parametrize("number", [1, 2])
def test_a_deployment_that_the_disk_does_not_take_leaves_nothing_at_work(
    world: ServingWorld, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    world.deploy(1)
    pids = replica_pids(os.getpid())

    def full(*_: Any) -> None:
        raise Unavailable("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(EndpointStore, "save", full)
        with pytest.raises(Unavailable, match="the disk is full"):
            world.deploy(number)
    assert replica_pids(os.getpid()) == pids
    assert set(world.figures()["versions"]) == {"1"}
    assert world.caller().infer()[2]["licet-version"] == "1"
    world.deploy(2)
    eventually(lambda: world.figures()["weights"] == {"2": 100}, "it is deployed once the disk takes it")


def test_a_replica_that_hangs_times_out_and_is_replaced(world: ServingWorld) -> None:
    world.deploy(1, timeout_ms=500)
    caller = world.caller()
    caller.infer()
    (pid,) = replica_pids(os.getpid())
    os.kill(pid, signal.SIGSTOP)
    began_s = time.monotonic()
    status, told, _ = caller.infer()
    assert (status, told["code"]) == (504, "timeout")
    assert 0.4 < time.monotonic() - began_s < 5
    eventually(lambda: world.figures()["versions"]["1"]["replaced"] == 1, "it is replaced")
    assert caller.infer()[0] == 200
    assert replica_pids(os.getpid()) != [pid]
    eventually(lambda: world.door.told(ENDPOINT) == ({"ok": 2, "timeout": 1}, 0), "the timeout is counted")


def test_a_replica_that_hangs_while_nothing_is_asked_of_it_is_found_out(world: ServingWorld) -> None:
    world.deploy(1)
    world.caller().infer()
    (pid,) = replica_pids(os.getpid())
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: world.figures()["versions"]["1"]["replaced"] == 1, "its health is asked for in vain")
    assert world.caller().infer()[0] == 200


def test_errors_of_a_version_that_keeps_dying_return_traffic(world: ServingWorld) -> None:
    world.deploy(1)
    errors = {"kind": "error-rate", "threshold_micro": 200_000, "window_s": 60, "min_count": 3}
    world.deploy(
        2, strategy="blue-green", fallback=f"{TENANT}/credit-risk@1", bake_s=3600, alarms=[errors], timeout_ms=200
    )
    caller = world.caller()
    hung: set[int] = set()
    deadline_s = time.monotonic() + 60
    while world.figures()["weights"] != {"1": 100}:
        assert time.monotonic() < deadline_s
        # Whatever comes up besides the first version's own hangs at once.
        for pid in replica_pids(os.getpid()):
            if b"/2-" in _inputs_of(pid) and pid not in hung:
                os.kill(pid, signal.SIGSTOP)
                hung.add(pid)
        caller.infer()
    eventually(lambda: world.door.kinds(ENDPOINT)[-1] == "rolled-back", "it is told")
    assert world.door.events[ENDPOINT][-1]["cause"]["kind"] == "error-rate"
    assert caller.infer()[2]["licet-version"] == "1"


def _inputs_of(pid: int) -> bytes:
    """Which version a model server serves, by its configuration."""
    try:
        config = Path(f"/proc/{pid}/root/job/in/serve.json").read_bytes()
    except OSError:
        return b""
    return b"/2-" if b'"version":"2"' in config else b"/1-"


# --- routers -----------------------------------------------------------------------------------------------------------


class RouterProcess:
    """A router in a process of its own, over the sockets of a world."""

    def __init__(self, world: ServingWorld, root: Path) -> None:
        self._world, self._root = world, root
        rules = world.world.signer
        door = {
            name: (lambda params, name=name: world.door.call(name, **params))
            for name in ("account", "session", "invocations", "traffic", "attest")
        }
        self._servers = [
            rpc.RpcServer(root / "run" / "signer.sock", handlers(rules), {os.geteuid()}),
            rpc.RpcServer(root / "run" / "api.sock", door, {os.geteuid()}),
        ]
        self._threads = [threading.Thread(target=server.serve_forever) for server in self._servers]
        for thread in self._threads:
            thread.start()
        self.runtime = LocalServing(world.world.context(ADAPTER), control_socket=root / "run" / CONTROL_SOCKET)
        self.process: subprocess.Popen[bytes] | None = None
        self.address = ("127.0.0.1", 0)

    def start(self) -> None:
        arguments = [sys.executable, str(PROCESS), str(self._root), str(self._world.world.now_ms)]
        self.process = subprocess.Popen(arguments, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.address = ("127.0.0.1", int(self.process.stdout.readline()))

    def end(self, number: signal.Signals) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        self.process.send_signal(number)
        self.process.wait(30)
        self.process.stdout.close()

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.end(signal.SIGKILL)
        for server in self._servers:
            server.close()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def routed(tmp_path: Path) -> Iterator[tuple[ServingWorld, RouterProcess]]:
    world = ServingWorld(tmp_path)
    process = RouterProcess(world, tmp_path)
    process.start()
    try:
        yield world, process
    finally:
        world.close()
        process.close()


def test_a_killed_router_takes_up_where_it_was_and_says_what_it_lost(
    routed: tuple[ServingWorld, RouterProcess],
) -> None:
    world, process = routed
    first, second = world.job(1), world.job(2, strategy="canary", steps=[10, 100], bake_s=3600,
                                            fallback=f"{TENANT}/credit-risk@1", alarms=[NEVER])  # fmt: skip
    for job in (first, second):
        process.runtime.deploy(world.warrant("serving.deploy", job), job)
    token = world.door.allow(ENDPOINT)
    caller = Caller(process.address, token)
    numbers = [int(caller.infer()[2]["licet-invocation"]) for _ in range(30)]
    assert numbers == list(range(1, 31))
    caller.close()
    assert process.process is not None
    children = replica_pids(process.process.pid)
    assert len(children) == 2
    process.end(signal.SIGKILL)
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), "its replicas die with it")

    process.start()
    caller = Caller(process.address, token)
    answers = [caller.infer() for _ in range(30)]
    caller.close()
    assert {status for status, _, _ in answers} == {200}
    # The weights are those of before, and no number is used twice.
    assert Counter(headers["licet-version"] for _, _, headers in answers) == {"1": 27, "2": 3}
    assert min(int(headers["licet-invocation"]) for _, _, headers in answers) > counting.BLOCK

    def all_told() -> bool:
        counted, lost = world.door.told(ENDPOINT)
        return counted["ok"] + lost == counting.BLOCK * 1 + 30 and counted["ok"] >= 30

    eventually(all_told, "what is not known of the block is told as lost")
    # Nothing is told of the deployments a second time.
    assert [event["serial"] for event in world.door.events[ENDPOINT]] == [1, 2, 3]
    shifted = world.change(weights={"2": 100}, shadow="")
    outcome = process.runtime.shift(world.warrant("serving.shift", shifted), shifted)
    assert dict(outcome.weights) == {"2": 100}
    process.end(signal.SIGTERM)


def test_routers_killed_under_load_use_no_number_twice_and_leave_none_out(
    routed: tuple[ServingWorld, RouterProcess],
) -> None:
    world, process = routed
    job = world.job(1)
    process.runtime.deploy(world.warrant("serving.deploy", job), job)
    token = world.door.allow(ENDPOINT)
    seen: list[int] = []
    for _ in range(3):
        over = threading.Event()
        callers = [threading.Thread(target=_ask, args=(process.address, token, seen, over)) for _ in range(3)]
        for thread in callers:
            thread.start()
        time.sleep(1.5)
        process.end(signal.SIGKILL)
        over.set()
        for thread in callers:
            thread.join()
        process.start()
    assert len(seen) == len(set(seen)) > 100
    eventually(lambda: world.door.batches[ENDPOINT][-1]["last"] >= max(seen), "all is told")
    # The door refuses gaps and overlaps (see `WorldDoor`); what it took covers every number that anybody saw.
    counted, lost = world.door.told(ENDPOINT)
    assert counted["ok"] + lost == world.door.batches[ENDPOINT][-1]["last"]
    process.end(signal.SIGTERM)


def _ask(address: tuple[str, int], token: str, seen: list[int], over: threading.Event) -> None:
    caller = Caller(address, token)
    try:
        while not over.is_set():
            status, _, headers = caller.infer()
            if status == 200:
                seen.append(int(headers["licet-invocation"]))
    except (OSError, http.client.HTTPException):
        return  # It was killed; what was on its way is not seen.
    finally:
        caller.close()


def test_two_routers_on_one_folder_do_not_start(world: ServingWorld) -> None:
    context = world.world.context(ADAPTER)
    config = RouterConfig(data_dir=world.data_dir, port=0)
    with pytest.raises(Unavailable, match="another router"):
        build_router(config, context.trust_root, world.world.signer, world.door, world.world.clock)


# --- the disk ----------------------------------------------------------------------------------------------------------


class Disk:
    """Writes that fail, before or after they were done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
        self.fails: str | None = None
        real = files.replace_durably

        def write(path: Path, data: bytes) -> None:
            if self.fails == "before":
                raise OSError(28, "No space left on device")
            real(path, data)
            if self.fails == "after":
                raise OSError(5, "Input/output error")

        monkeypatch.setattr(module, "replace_durably", write)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_counter_whose_disk_fails_gives_no_number_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    disk = Disk(monkeypatch, counting)
    counter = InvocationCounter(tmp_path / "counter.json", "router")
    with pytest.raises(Unavailable):
        counter.take("session", 1, "ok")  # Nothing is reserved.
    counter.align(0)
    disk.fails = when
    with pytest.raises(Unavailable):
        counter.reserve()
    with pytest.raises(Unavailable):
        counter.take("session", 1, "ok")
    disk.fails = None
    counter.reserve()
    assert [counter.take("session", 1, "ok") for _ in range(3)] == [1, 2, 3]
    disk.fails = when
    with pytest.raises(Unavailable):
        counter.cut()
    disk.fails = None
    first = counter.cut()
    assert first is not None
    assert (first["first"], first["last"], first["lost"], first["groups"][0]["count"]) == (1, 3, 0, 3)
    disk.fails = when
    with pytest.raises(Unavailable):
        counter.acknowledge()
    disk.fails = None
    # Whether it was acknowledged is not known: a start tells it again as it was, or goes on after it.
    again = InvocationCounter(tmp_path / "counter.json", "router")
    assert again.cut() is None  # Before the account was compared with the log's, nothing is told.
    again.align(3)
    batches = []
    while (batch := again.cut()) is not None:
        batches.append(batch)
        again.acknowledge()
    assert batches[0] == first or batches[0]["first"] == 4
    assert batches[-1]["last"] == counting.BLOCK
    again.reserve()
    assert again.take("session", 1, "ok") == counting.BLOCK + 1


@settings(deadline=None)
@given(
    lives=st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["told", "cut", "kept"])), min_size=1, max_size=6),
    restored=st.sampled_from(["nothing", "router", "log", "router lost"]),
    at=st.integers(0, 5),
)
def test_whichever_side_was_restored_the_account_has_no_gap_and_no_number_is_given_again(
    lives: list[tuple[int, str]], restored: str, at: int
) -> None:
    given_out: list[int] = []
    accounted: list[int] = [0]  # The log's word after each life.
    files_then: list[bytes] = [b""]

    def tell(counter: InvocationCounter) -> None:
        while (batch := counter.cut()) is not None:
            assert batch["first"] == accounted[-1] + 1
            assert sum(g["count"] for g in batch["groups"]) + batch["lost"] == batch["last"] - batch["first"] + 1
            accounted.append(batch["last"])
            counter.acknowledge()

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "counter.json"
        for count, end in lives:
            counter = InvocationCounter(path, "router")
            counter.align(accounted[-1])
            tell(counter)
            counter.reserve()
            given_out += [counter.take("session", 1, "ok") for _ in range(count)]
            if end == "told":
                tell(counter)
            elif end == "cut":
                counter.cut()
            files_then.append(path.read_bytes())
        known = accounted[-1]
        if restored == "router lost":
            path.unlink()
        elif restored == "router" and (old := files_then[min(at, len(files_then) - 1)]):
            path.write_bytes(old)
        elif restored == "log":
            known = accounted[min(at, len(accounted) - 1)]
            accounted.append(known)
        counter = InvocationCounter(path, "router")
        counter.align(known)
        tell(counter)
        counter.reserve()
        number = counter.take("session", 1, "ok")
        tell(counter)
        assert accounted[-1] == number
        # Of a router that was lost whole, only what the log knows can be known: what was never told is forgotten with it.
        assert number > (known if restored in {"router", "router lost"} else max(given_out, default=0))


@settings(deadline=None)
@given(
    before=st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=4),
    refused=st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 5)),
    known=st.integers(0, 60_000),
    dies=st.booleans(),
)
def test_an_account_that_is_refused_goes_on_from_the_log_without_a_gap_and_without_a_restart(
    before: list[tuple[int, bool]], refused: tuple[int, bool, int], known: int, *, dies: bool
) -> None:
    given_out: list[int] = []

    def take(counter: InvocationCounter, count: int) -> None:
        given_out.extend(counter.take("session", 1, "ok") for _ in range(count))

    with tempfile.TemporaryDirectory() as folder:
        counter = InvocationCounter(Path(folder) / "counter.json", "router")
        counter.align(0)
        counter.reserve()
        for count, is_told in before:
            take(counter, count)
            if is_told and counter.cut() is not None:
                counter.acknowledge()
        take(counter, refused[0])
        if refused[1]:
            counter.cut()  # The batch that is refused, and on the disk.
        take(counter, refused[2])
        counter.realign(known)
        if dies:
            counter = InvocationCounter(Path(folder) / "counter.json", "router")
            counter.align(known)
        counter.reserve()
        take(counter, 1)
        accounted = known
        while (batch := counter.cut()) is not None:
            assert batch["first"] == accounted + 1
            assert sum(g["count"] for g in batch["groups"]) + batch["lost"] == batch["last"] - batch["first"] + 1
            # What the log refused once is not told again: it is lost.
            assert sum(g["count"] for g in batch["groups"]) <= 1
            accounted = batch["last"]
            counter.acknowledge()
        assert accounted == given_out[-1] > known
        assert len(set(given_out)) == len(given_out)


def test_a_disk_that_fails_leaves_an_account_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, counting)
    counter = InvocationCounter(tmp_path / "counter.json", "router")
    counter.align(0)
    counter.reserve()
    counter.take("session", 1, "ok")
    disk.fails = "before"
    with pytest.raises(Unavailable):
        counter.realign(7)
    disk.fails = None
    batch = counter.cut()
    assert batch is not None
    assert (batch["first"], batch["last"], batch["lost"]) == (1, 1, 0)


def test_a_counter_that_cannot_be_read_names_its_file_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "counter.json"
    path.write_bytes(b"{")
    with pytest.raises(IntegrityError, match=rf"{path} cannot be read .*: move it away and start the router again"):
        InvocationCounter(path, "router")


def test_a_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    store = EndpointStore(tmp_path)
    state = EndpointState(tenant=TENANT, endpoint=ENDPOINT, weights={1: 90, 2: 10}, shadow=3)
    state.deployed[1] = Deployed(
        number=1, operation_id="op", parameters={"version": "x"}, digests={"a": "0" * 64}, deployed_at_ms=5
    )
    state.rollout = Rollout(
        operation_id="op", number=2, fallback=1, steps=(10, 100), index=0, state="advancing", bake_s=1
    )
    state.add_event("step", "op", 7)
    store.save(ENDPOINT, state.to_bytes())
    (store.folder(ENDPOINT) / ".tmp-left").write_bytes(b"half")
    assert list(store.load_all()) == [state]
    assert not (store.folder(ENDPOINT) / ".tmp-left").exists()
