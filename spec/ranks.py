"""The processes of a run: how they find each other, agree and add up. One process is a run of one rank."""

import datetime
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from spec import cli
from spec.errors import BadInput, SpecError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    rank: int
    world: int
    local_rank: int
    local_world: int
    device: torch.device


def start(device: str | None = None, timeout_minutes: float = 10) -> Ranks:
    """Join the process group that torchrun or `tune run` set up, or make one of this process alone.

    `device`: "cpu", "cuda" or None (the accelerator if there is one). After `timeout_minutes` without an answer, a
    rank gives the others up. `BadInput` where the launch cannot be meant so.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank, local_world = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    _refuse_lone_process(world)
    kind = usable(device)
    if not isinstance(timeout_minutes, int | float) or timeout_minutes <= 0:
        raise BadInput(f"config: timeout_minutes={timeout_minutes!r}; it is above 0")
    if kind == "cuda" and local_world > torch.cuda.device_count():
        raise BadInput(
            f"{local_world} processes and {torch.cuda.device_count()} GPUs on this node: "
            "start as many processes as there are GPUs (--nproc-per-node), or set device=cpu"
        )
    place = torch.device(kind, local_rank) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(place)
    if not dist.is_initialized():
        timeout = datetime.timedelta(minutes=timeout_minutes)
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        if world > 1:
            dist.init_process_group(backend, timeout=timeout, device_id=place if kind == "cuda" else None)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    return Ranks(rank, world, local_rank, local_world, place)


def usable(device: str | None) -> str:
    """`device`, or "cuda" where this machine has a GPU, else "cpu". `BadInput` for a GPU that torch cannot use: a paid
    one would stand idle beside a CPU that does its work without a word."""
    kind = device or ("cuda" if torch.cuda.device_count() else "cpu")  # as NVML says, whatever the driver can do
    if kind not in ("cpu", "cuda"):
        raise BadInput(f"device={kind!r}: it is cpu or cuda")
    if kind == "cuda" and not torch.cuda.is_available():
        raise BadInput(
            f"torch {torch.__version__} cannot use a GPU of this node ({torch.cuda.device_count()} are seen): it wants "
            f"a driver for CUDA {torch.version.cuda}; see nvidia-smi, or take the CPU by device=cpu"
        )
    return kind


def _refuse_lone_process(world: int) -> None:
    """With PET_* variables and no flag, `tune run` starts one process a node, each of which would train by itself."""
    nodes, processes = os.environ.get("PET_NNODES", "1"), os.environ.get("PET_NPROC_PER_NODE", "1")
    if world == 1 and "TORCHELASTIC_RUN_ID" not in os.environ and (nodes not in ("1", "1:1") or _several(processes)):
        raise BadInput(
            f"PET_NNODES={nodes} and PET_NPROC_PER_NODE={processes} are set, but this is a single process: `tune run` "
            "reads PET_* only together with flags; start it with torchrun, which reads them, "
            "or pass --nproc-per-node and the --rdzv-* flags"
        )


def _several(processes: str) -> bool:
    return processes.isdigit() and int(processes) > 1


def agree(error: SpecError | None) -> None:
    """Raise on every rank the first rank's error, if any: one that stops alone leaves the others waiting for it.

    The error has `agreed` set, so that it is told once; where rank 0 has none, it names the rank.
    """
    if not dist.is_initialized():
        if error is not None:
            raise error
        return
    errors: list[tuple[type[SpecError], str] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, (type(error), str(error)) if error else None)
    for rank, found in enumerate(errors):
        if found is not None:
            kind, message = found
            agreed = kind(f"rank {rank}: {message}" if rank else message)
            agreed.agreed = True
            raise agreed from error


def together(work: Callable[[], T]) -> T:
    """`work()` on every rank; if it fails on one, it fails on all, with that one's error."""
    error: SpecError | None = None
    try:
        result = work()
    except SpecError as failure:
        error = failure
    except OSError as failure:
        error = cli.as_expected(failure)
        if error is None:
            raise
    agree(error)
    return result


def first_decides(work: Callable[[], T]) -> T:
    """`work()` on rank 0 alone; every rank gets its (picklable) result, or raises its error."""
    box: list[T | None] = [None]

    def on_first() -> None:
        if dist.get_rank() == 0:
            box[0] = work()

    together(on_first)
    dist.broadcast_object_list(box)
    return box[0]  # type: ignore[return-value]


def total(values: torch.Tensor) -> torch.Tensor:
    """`values` added up over ranks, in place."""
    dist.all_reduce(values)
    return values


class HostTotal:
    """Whole numbers that the hosts know, added up over ranks while their devices work: begun here, read by `wait`.

    Over gloo, on the CPU: it waits for the other hosts, but for no device.
    """

    def __init__(self, *numbers: int):
        self._numbers = torch.tensor(numbers, dtype=torch.int64)
        self._work = dist.all_reduce(self._numbers, async_op=True)

    def wait(self) -> list[int]:
        self._work.wait()
        return self._numbers.tolist()
