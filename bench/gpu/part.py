"""What the parts share: their device and sizes, what they say, how they time."""

import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

GIB = 2**30


class Skipped(Exception):
    """A part that this machine cannot run; its message says why."""


class Part:
    """One part of the kit: where it runs and at which sizes, and its figures, on the disk as soon as they are said."""

    def __init__(self, device: str, small: bool, limit: float, scratch: Path, out: Path):
        """`limit`: seconds that it has from now on."""
        self.device = torch.device(device, 0) if device == "cuda" else torch.device(device)
        self.small, self.scratch, self.out = small, scratch, out
        self._end = time.monotonic() + limit
        self.figures: dict[str, Any] = {}
        self.failures: list[str] = []
        torch.manual_seed(0)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def left(self) -> float:
        """Seconds until it is stopped."""
        return self._end - time.monotonic()

    @property
    def half(self) -> torch.dtype:
        """What speed is measured in: a CPU's half precision would measure nothing."""
        return torch.bfloat16 if self.cuda else torch.float32

    def need(self, gib: float) -> None:
        """`Skipped` where the card has less memory."""
        if self.cuda and not self.small:
            there = torch.cuda.get_device_properties(self.device).total_memory / GIB
            if there < gib:
                raise Skipped(f"needs {gib:g} GiB, the card has {there:.0f}")

    def say(self, **figures: Any) -> None:
        if self.cuda and torch.cuda.is_initialized():  # not yet by parts whose own work is in forks
            self.figures.setdefault("card", torch.cuda.get_device_name(self.device))
        self.figures |= figures
        (self.scratch / "figures.json").write_text(json.dumps(self.figures))
        print(figures, flush=True)

    def expect(self, name: str, error: float, limit: float) -> None:
        """A failure where `error` is above `limit`, or NaN; it is said as a figure."""
        if not error <= limit:
            self.failures.append(f"{name}: {error:.3g} is above {limit:g}")
        self.say(**{name: error})


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """`|got - wanted| / |wanted|`, in double."""
    got, wanted = got.detach().double().cpu(), wanted.detach().double().cpu()
    scale = wanted.norm()
    return float((got - wanted).norm() / scale) if scale else float(got.norm())


def processes() -> Any:
    """How processes begin: as forks, or anew where this one has asked the GPU, of which a fork could make no use."""
    return multiprocessing.get_context("spawn" if torch.cuda.is_initialized() else "fork")


@contextmanager
def no_waits(device: torch.device) -> Iterator[None]:
    """PyTorch raises where the host would wait for the GPU."""
    wait(device)
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(step: Callable[[], Any], device: torch.device, *, repeats: int, warm: int = 2) -> dict[str, float]:
    """Milliseconds of `step`, each waiting for the device, and the peak of allocated GiB above what is loaded."""
    for _ in range(warm):
        step()
    wait(device)
    loaded = 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        loaded = torch.cuda.memory_allocated(device)
    spent = []
    for _ in range(repeats):
        began = time.perf_counter()
        step()
        wait(device)
        spent.append(1e3 * (time.perf_counter() - began))
    peak = torch.cuda.max_memory_allocated(device) - loaded if device.type == "cuda" else 0
    return {
        "ms": round(statistics.median(spent), 3),
        "ms_least": round(min(spent), 3),
        "ms_most": round(max(spent), 3),
        "gib": round(peak / GIB, 3),
    }


def compare(
    its: Part, ways: dict[str, Callable[[], Callable[[], Any]]], *, tokens: int, full_speed_ms: float | None = None
) -> None:
    """Each way's time and memory; the first one is what the others' losses and gradients are held against.

    A way makes its step ready: what gives its loss and its gradient's norm, first of all. `full_speed_ms`: what the
    step's operations take at the device's peak.
    """
    first: tuple[float, float] | None = None
    for name, way in ways.items():
        try:
            step = way()
            loss, norm = (float(value) for value in step()[:2])
            figures = timed(step, its.device, repeats=1 if its.small else 5, warm=1)
        except torch.OutOfMemoryError:
            its.say(**{name: "out of memory"})
            continue
        if full_speed_ms is not None:
            figures["of_peak"] = round(full_speed_ms / figures["ms"], 3)
        figures["tokens_per_s"] = round(tokens / figures["ms"] * 1e3)
        its.say(**{name: figures})
        first = first or (loss, norm)
        its.expect(f"{name}: loss", abs(loss / first[0] - 1), 0.02)
        its.expect(f"{name}: gradient", abs(norm / first[1] - 1), 0.05)
