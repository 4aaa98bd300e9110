"""Several processes that compute one thing together, inside the sandbox: started by ``torchrun``, ended as one.

Rules kept here:

- A sum over ranks is made of all their parts in the order of the ranks, by every rank for itself. A reduction by the
  network library adds in an order that depends on sizes and topology, so that a resumed run could end with other bits.
- No rank outlives another. One that dies takes the rest with it, and the whole ends as that one did: killed if it was
  killed, so that it counts as a job that was killed, not as one that is wrong. No rank outlives the one that started
  them, whatever kills that.
- They meet on loopback, at a free port; nothing else is listened on.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime as dt
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from licet_adapters.jobs import tabular
else:
    sys.path.insert(0, str(Path(__file__).parent))  # -I leaves the script's folder out.
    import tabular

_STARTED_BY = "LICET_RANKS_STARTED_BY"
_RANKS_REPORT_ON = 0
"""Where standard input would be, of which nobody has a use."""
_PR_SET_PDEATHSIG = 1
_MEET_WITHIN = dt.timedelta(minutes=5)
_UUID_PREFIX = "GPU-"
_PROCESSOR = torch.device("cpu")


@dataclass(frozen=True)
class Ranks:
    """This process among those that compute together.

    Attributes:
        rank: Its number, from 0.
        count: How many there are.
        device: What it computes on.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = _PROCESSOR

    def sum(self, part: torch.Tensor) -> torch.Tensor:
        """Add the parts of all ranks, in the order of the ranks; the same bits on each.

        Args:
            part: Any shape, the same on every rank, on this rank's device.

        Returns:
            A tensor of that shape, dtype and device.
        """
        if self.count == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.count)]
        dist.all_gather(parts, part)
        total = parts[0]
        for more in parts[1:]:
            total = total + more
        return total

    def require_same(self, values: Sequence[int]) -> None:
        """Return if every rank has the same numbers.

        Raises:
            tabular.Refused: They differ; so no rank goes on from another checkpoint than the rest.
        """
        mine = torch.tensor(list(values), dtype=torch.int64, device=self.device)
        if not torch.equal(self.sum(mine), mine * self.count):
            raise tabular.Refused("job.ranks", "the ranks do not begin alike")

    def part_of(self, batch: torch.Tensor) -> torch.Tensor:
        """This rank's part of a batch; all parts together are the batch, and one may be empty."""
        return batch if self.count == 1 else torch.tensor_split(batch, self.count)[self.rank]


def is_started() -> bool:
    """Whether this process is one of several ranks."""
    return _STARTED_BY in os.environ


def is_first() -> bool:
    """Whether this process is the one that speaks for all ranks."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def report_descriptor(fd: int) -> int:
    """The descriptor on which this process reports: of what the starter holds, ranks inherit the standard ones alone."""
    return _RANKS_REPORT_ON if is_started() else fd


def start(count: int, script: Path, arguments: Sequence[str], *, report_fd: int) -> NoReturn:
    """Run ``script`` as ranks to their end, and end as they did.

    Args:
        count: How many.
        script: What each runs.
        arguments: Of the script.
        report_fd: Where they report.
    """
    from torch.distributed import run as torchrun  # noqa: PLC0415  # Half a second that one rank need not wait.
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: PLC0415  # As above.

    os.environ[_STARTED_BY] = str(os.getpid())
    os.dup2(report_fd, _RANKS_REPORT_ON)
    asked = ["--nnodes", "1", "--nproc-per-node", str(count), "--max-restarts", "0", "--monitor-interval", "0.1"]
    asked += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    asked += ["--no-python", sys.executable, "-I", "-B", str(script), *arguments]
    try:
        torchrun.main(asked)
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        codes = [failure.exitcode for failure in error.failures.values()]
        # Who lost a rank that was killed fails at the same moment; what happened is what happened to that one.
        if tabular.REFUSED_STATUS in codes:
            sys.exit(tabular.REFUSED_STATUS)
        if -signal.SIGKILL in codes:
            os.kill(os.getpid(), signal.SIGKILL)
        said = first.message["message"] if isinstance(first.message, dict) else first.message
        sys.stderr.write(f"rank {rank} ended with status {first.exitcode}: {' '.join(str(said).split())}\n")
        sys.exit(1)
    tabular.finish()


def recorded(act: Callable[[], None]) -> None:
    """Act; where a rank fails, keep why for the process that started it, which then knows who failed first."""
    if not is_started():
        act()
        return
    from torch.distributed.elastic.multiprocessing.errors import record  # noqa: PLC0415  # As above.

    record(act)()


@contextlib.contextmanager
def joined(spec: dict[str, Any]) -> Iterator[Ranks]:
    """Be one of the ranks that a spec asks for, while in the block.

    Args:
        spec: Members ``device``, ``ranks`` and ``precision``.

    Raises:
        tabular.Refused: The devices it asks for cannot be used here.
    """
    rank = int(os.environ["LOCAL_RANK"]) if is_started() else 0
    if is_started():
        _die_with(int(os.environ[_STARTED_BY]))
    device = _cuda_device(rank, spec) if spec["device"] == "cuda" else _PROCESSOR
    if spec["ranks"] == 1:
        yield Ranks(device=device)
        return
    on_cuda = device.type == "cuda"
    # Bound to its device, so that the barrier is held there, and ranks that cannot reach each other learn of it now.
    dist.init_process_group("nccl" if on_cuda else "gloo", timeout=_MEET_WITHIN, device_id=device if on_cuda else None)
    yield Ranks(rank=rank, count=dist.get_world_size(), device=device)
    # Not reached by who fails: it must be gone at once, and its end is what the others learn of.
    dist.barrier()
    dist.destroy_process_group()


def _cuda_device(rank: int, spec: dict[str, Any]) -> torch.device:
    if not torch.cuda.is_available():
        raise tabular.Refused(
            "job.device",
            f"torch {torch.__version__} cannot use a CUDA device here: install a CUDA build, and its driver",
        )
    if torch.cuda.device_count() != spec["ranks"]:
        raise tabular.Refused("job.device", f"{torch.cuda.device_count()} devices are visible, not {spec['ranks']}")
    if spec["precision"] == "bf16" and not torch.cuda.is_bf16_supported():
        raise tabular.Refused("job.device", "this device has no bfloat16: train in fp32")
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # fp32 means float32.
    return device


def visible_devices() -> dict[str, Any]:
    """What of devices this process sees, as it is reported."""
    count = torch.cuda.device_count()
    uuids = [str(torch.cuda.get_device_properties(index).uuid) for index in range(count)]
    return {
        "uuids": [_UUID_PREFIX + uuid.removeprefix(_UUID_PREFIX) for uuid in uuids],
        "cuda": torch.version.cuda or "",
    }


def _die_with(starter: int) -> None:
    """Have the kernel kill this process when the one that started it dies."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != starter:
        os.kill(os.getpid(), signal.SIGKILL)
