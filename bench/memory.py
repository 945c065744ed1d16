"""The peak of memory above what was loaded before: allocated bytes on a GPU, resident bytes of the process on a CPU.

Resident bytes count everything: tensors, the libraries' scratch, and what the allocator keeps. Their peak is the
kernel's own high-water mark (`VmHWM`), set back by writing 5 to `/proc/self/clear_refs`.
"""

from pathlib import Path

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
