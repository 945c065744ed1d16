"""The peak of memory above what was loaded before: allocated bytes on a GPU, resident bytes of the process on a CPU.

Resident bytes count everything: tensors, the libraries' scratch, and what the allocator keeps. Their peak is the
kernel's own high-water mark (`VmHWM`), set back by writing 5 to `/proc/self/clear_refs`.
"""

import ctypes
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch


class Peak:
    """Begins when made: `Peak(device).above()` are the bytes that the peak since then lies above the start."""

    def __init__(self, device: torch.device):
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.start = torch.cuda.memory_allocated(device)
        else:
            Path("/proc/self/clear_refs").write_text("5")
            self.start = _status("VmRSS")

    def above(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.start
        return _status("VmHWM") - self.start


def give_back_what_is_freed() -> None:
    """From now on glibc takes what is larger than 1 MiB from the system and gives it back when freed.

    By itself it keeps up to 32 MiB of each size, and a third of resident bytes are then the heap's holes where a step's
    tensors are that small, more in one process than in the next. Such a step pays for it in page faults, so time and
    memory are not measured in the same one.
    """
    libc, m_mmap_threshold = ctypes.CDLL(None), -3
    libc.mallopt(m_mmap_threshold, 1 << 20)
    libc.malloc_trim(0)


def peak_of_all(work: Callable[[], Any]) -> tuple[int, Any]:
    """The most bytes that this process and its children held above its own at the start, and what `work` gives.

    Sampled every two seconds, as a look walks through all of their pages. What several share counts once, files in the
    page cache do not (`Pss_Anon`).
    """
    start, most, done = _anonymous("self"), 0, threading.Event()

    def sample() -> None:
        nonlocal most
        while True:
            most = max(most, sum(map(_anonymous, ("self", *_children()))))
            if done.wait(2):
                return

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        result = work()
    finally:
        done.set()
        thread.join()
    return most - start, result


def _children() -> list[str]:
    pids = []
    for file in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended
            pids += file.read_text().split()
    return pids


def _anonymous(pid: str) -> int:
    try:
        return _kib(Path(f"/proc/{pid}/smaps_rollup"), "Pss_Anon")
    except (OSError, StopIteration):  # the process has ended
        return 0


def available() -> int:
    """Bytes that the device can still give."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    return _kib(Path("/proc/meminfo"), "MemAvailable")


def _status(name: str) -> int:
    return _kib(Path("/proc/self/status"), name)


def _kib(file: Path, name: str) -> int:
    line = next(line for line in file.read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024
