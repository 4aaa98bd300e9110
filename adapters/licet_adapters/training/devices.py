"""The devices of this machine that jobs may be given: found, and held while a job has them.

Rules kept here:

- Only what is on the allow-list counts, by UUID. Without a list nothing is looked for; what is not found, or whose device
  node cannot be told for certain, is left out. So the pool errs towards being empty.
- A tool that does not answer for a moment is no news of a device: what it told last stands for a while, or one slow answer
  would take every device of the machine from the runs that are at work on them.
- The number in a node's name (``/dev/nvidia3``) is the driver's *minor number*, which only the driver tells. An index, as
  tools count it, is another number wherever a container sees some of the devices: by it a job could be let at a
  device that is somebody else's.
- A device is held by a lock that the kernel drops when its holder dies. Who gets it next waits until the job that had it
  before is gone too, which outlives its dead worker by a moment. Who is to get it is decided elsewhere, by leases; this
  holds even where a lease was lost and its holder does not know yet.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from licet_adapters.errors import InputRefused, Unavailable
from licet_adapters.ports import DEVICE_UUID, Device
from licet_attestations.signer.files import make_private_directory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_QUERY = ("--query-gpu=index,uuid,name,memory.total,driver_version", "--format=csv,noheader,nounits")
_COLUMNS = 5
_MAX_DEVICES = 64
_TIMEOUT_S = 20
_KEPT_S = 60.0
_STANDS_S = 300.0
"""For how long what was told last stands where the tool does not answer."""
_LOCK_WAIT_S = 10.0
_LOCK_PAUSE_S = 0.05
_SHARED_NODES = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools")
"""What every CUDA program opens beside the nodes of its devices; none of them reaches a device by itself."""
_MAX_INFORMATION_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the devices of a machine are told of.

    Attributes:
        program: The driver's own tool, by name or path.
        driver_dir: What the driver tells of each device.
        dev_dir: The device nodes.
    """

    program: str = "nvidia-smi"
    driver_dir: Path = Path("/proc/driver/nvidia/gpus")
    dev_dir: Path = Path("/dev")


@dataclass(frozen=True, slots=True)
class Found:
    """What was found on a machine.

    Attributes:
        devices: The allowed ones, in the order of the allow-list.
        nodes: UUID to device node.
        notes: Plain sentences: which allowed device is not among them, and why.
        is_told: Whether the driver's tool answered; of a pool, whether what it told last stands.
    """

    devices: tuple[Device, ...] = ()
    nodes: Mapping[str, Path] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    is_told: bool = True


def find_devices(allowed: Sequence[str], machine: Machine) -> Found:
    """Ask the driver's tool for the allowed devices; what cannot be told is left out, with a note."""
    if not allowed:
        return Found()
    program = shutil.which(machine.program)
    if program is None:
        return Found(notes=(f"{machine.program} is not installed: no device can be found",), is_told=False)
    try:
        ended = subprocess.run(
            [program, *_QUERY], capture_output=True, check=False, timeout=_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Found(notes=(f"{machine.program} cannot be run: {error}",), is_told=False)
    text = ended.stdout.decode("utf-8", "replace")
    if ended.returncode != 0:
        said = (text + ended.stderr.decode("utf-8", "replace")).strip().splitlines() or ["nothing"]
        note = f"{machine.program} ended with status {ended.returncode} and said: {said[0][:200]}"
        return Found(notes=(note,), is_told=False)
    present = dict(filter(None, map(_parse, text.splitlines()[:_MAX_DEVICES])))
    minors = _minors(machine.driver_dir)
    devices: list[Device] = []
    nodes: dict[str, Path] = {}
    notes: list[str] = []
    for uuid in allowed:
        node = machine.dev_dir / f"nvidia{minors[uuid]}" if uuid in minors else None
        if uuid not in present:
            notes.append(f"{uuid} is allowed, and not on this machine")
        elif node is None:
            notes.append(
                f"{uuid} is left out: {machine.driver_dir} does not tell which node in {machine.dev_dir} it is"
            )
        elif not node.is_char_device():
            notes.append(f"{uuid} is left out: {node} is no device")
        else:
            devices.append(present[uuid])
            nodes[uuid] = node
    return Found(tuple(devices), nodes, tuple(notes))


def _parse(line: str) -> tuple[str, Device] | None:
    """One line of the tool's answer; None for what is not a whole device with all its figures."""
    cells = [cell.strip() for cell in line.split(",")]
    if len(cells) != _COLUMNS or not DEVICE_UUID.match(cells[1]) or not cells[3].isdecimal():
        return None
    _, uuid, name, memory_mib, driver = cells
    return uuid, Device(uuid=uuid, kind="cuda", name=name[:100], memory_mib=int(memory_mib), driver=driver[:50])


def _minors(driver_dir: Path) -> dict[str, int]:
    """UUID to minor number, as the driver tells it."""
    found: dict[str, int] = {}
    for path in sorted(driver_dir.glob("*/information"))[:_MAX_DEVICES]:
        try:
            with path.open("rb") as file:
                lines = file.read(_MAX_INFORMATION_BYTES).decode("utf-8", "replace").splitlines()
        except OSError:
            continue
        told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if told.get("Device Minor", "").isdecimal():
            found[told.get("GPU UUID", "")] = int(told["Device Minor"])
    return found


@dataclass(frozen=True, slots=True)
class Held:
    """Devices that are held for one job.

    Attributes:
        devices: In the order of the ranks.
        nodes: Name in ``/dev`` to device node: exactly what the job is to be given.
    """

    devices: tuple[Device, ...]
    nodes: Mapping[str, Path]


class DevicePool:
    """The devices of this machine that jobs may be given.

    Args:
        allowed: Their UUIDs.
        state_dir: Where locks lie, 0700. Workers that share the devices of a machine share this folder too.
        machine: Where devices are told of.
    """

    def __init__(self, allowed: Sequence[str], state_dir: Path, machine: Machine | None = None) -> None:
        self._allowed = tuple(dict.fromkeys(allowed))
        self._locks = state_dir / "devices"
        self._machine = machine or Machine()
        self._guard = threading.Lock()
        self._found: Found | None = None
        self._found_at_s = self._told_at_s = 0.0

    def look(self) -> Found:
        """What there is; looked for anew once a minute, since a device can fall off its bus."""
        with self._guard:
            if self._found is None or time.monotonic() - self._found_at_s > _KEPT_S:
                found = find_devices(self._allowed, self._machine)
                self._found_at_s = time.monotonic()
                if found.is_told:
                    self._told_at_s = self._found_at_s
                elif (
                    self._found is not None and self._found.is_told and self._found_at_s - self._told_at_s <= _STANDS_S
                ):
                    found = replace(self._found, notes=found.notes)
                self._found = found
            return self._found

    def told(self) -> tuple[Device, ...]:
        """What there is, as far as it is known.

        Raises:
            Unavailable: The driver's tool told nothing, and what it told before stands no more, or there is none: which
                devices are there is not known, which is not to say that there are none.
        """
        found = self.look()
        if not found.is_told:
            raise Unavailable("; ".join(found.notes), code="devices.untold")
        return found.devices

    @contextlib.contextmanager
    def held(self, uuids: Sequence[str], output_dir: Path) -> Iterator[Held]:
        """Hold devices for the job that writes to ``output_dir``, while in the block.

        Raises:
            InputRefused: A device is named twice, or in no form that a device is named in.
            Unavailable: One is not in the pool now, or another job is still at work on it.
        """
        if len(set(uuids)) != len(uuids) or not all(DEVICE_UUID.match(uuid) for uuid in uuids):
            raise InputRefused("devices are named by UUID, each once", code="input.devices")
        found = self.look()
        if missing := [uuid for uuid in uuids if uuid not in found.nodes]:
            raise Unavailable(
                f"device {missing[0]} is not in the pool of this machine now; {'; '.join(found.notes) or 'it is not allowed'}",
                code="devices.missing",
            )
        by_uuid = {device.uuid: device for device in found.devices}
        nodes = {found.nodes[uuid].name: found.nodes[uuid] for uuid in uuids}
        if uuids:
            shared = (self._machine.dev_dir / name for name in _SHARED_NODES)
            nodes |= {node.name: node for node in shared if node.is_char_device()}
        with contextlib.ExitStack() as stack:
            # In one order for everybody: two who want the same never hold one each.
            for uuid in sorted(uuids):
                stack.enter_context(self._locked(uuid, output_dir))
            yield Held(tuple(by_uuid[uuid] for uuid in uuids), nodes)

    @contextlib.contextmanager
    def _locked(self, uuid: str, output_dir: Path) -> Iterator[None]:
        try:
            make_private_directory(self._locks)
            fd = os.open(self._locks / f"{uuid}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise Unavailable(f"device {uuid} cannot be locked: {error.strerror}", code="devices.lock") from error
        try:
            _lock(fd, f"device {uuid} is at work for another job")
            _take_over(fd, uuid, output_dir)
            yield
        finally:
            os.close(fd)


def _take_over(fd: int, uuid: str, output_dir: Path) -> None:
    """Wait for the job that had a device to be gone, and say in the lock's file who has it from now on."""
    try:
        before = os.fsdecode(os.pread(fd, os.fstat(fd).st_size, 0))
        if before:
            # It holds its output folder until the last of its processes is gone; a folder that is gone is held by nobody.
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                _wait_until_left(Path(before), uuid)
        # Durable before a job begins: a later holder that did not learn of this one would not wait for it. A crash
        # between the two leaves an empty file, and no job either.
        os.ftruncate(fd, 0)
        os.pwrite(fd, os.fsencode(output_dir.absolute()), 0)
        os.fsync(fd)
    except OSError as error:
        raise Unavailable(f"device {uuid} cannot be locked: {error.strerror}", code="devices.lock") from error


def _wait_until_left(folder: Path, uuid: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _lock(fd, f"the job that had device {uuid} before is not gone yet")
    finally:
        os.close(fd)


def _lock(fd: int, problem: str) -> None:
    deadline_s = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline_s:
                raise Unavailable(problem, code="devices.busy") from error
        else:
            return
        time.sleep(_LOCK_PAUSE_S)
