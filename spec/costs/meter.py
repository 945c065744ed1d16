"""A process's own record of what it costs: written when it begins, at a beat while it works, and at its end."""

import os
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TypedDict

from spec.costs.records import Record, write
from spec.errors import SpecError
from spec.storage import Store

BEAT = 60.0  # seconds: what a killed process may have worked uncounted


class Meter:
    """Counts a step while a block runs, from when its process began.

    Set `worked` to False where the step found itself done: it then costs nothing more. A store that is away does not
    stop a step: the next beat writes what this one could not.
    """

    def __init__(self, run: Store, step: str, *, gpus: int = 0, kind: str = "", beat: float = BEAT):
        began = process_began()
        self.worked = True
        self._run, self._beat = run, beat
        self._record = Record(
            step=step, pod=_own_name(), gpus=gpus, kind=kind, cpus=cpus_asked_for(), began=began, seen=time.time()
        )
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name="meter", daemon=True)

    def __enter__(self) -> "Meter":
        self._write()
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        if not self.worked:
            with suppress(SpecError, OSError):
                self._run.delete(self._record.key)
        elif fault := self._write(over=True):
            print(f"costs: the last {self._beat:.0f} s or more are not recorded: {fault}", file=sys.stderr, flush=True)

    def _go_on(self) -> None:
        while not self._over.wait(self._beat):
            self._write()

    def _write(self, *, over: bool = False) -> Exception | None:
        try:
            write(self._run, self._record.model_copy(update={"seen": time.time(), "over": over}))
        except (SpecError, OSError) as error:
            return error
        return None


class Gpus(TypedDict):
    gpus: int
    kind: str


def gpus_of(device: str, *, count: int = 1) -> Gpus:
    """What a process that computes on `device` holds: those that its pod asked for, which its template tells, else
    `count`; their kind as NVIDIA's operator labels a node with it. None on a CPU.
    """
    if device != "cuda":
        return {"gpus": 0, "kind": ""}
    import torch

    kind = torch.cuda.get_device_name().replace(" ", "-")
    return {"gpus": int(os.environ.get("GPUS") or count), "kind": kind}


def cpus_asked_for() -> float:
    """Of this pod, which its template tells; elsewhere all that the process may run on."""
    asked = os.environ.get("CPU_MILLICORES")
    return int(asked) / 1000 if asked else float(len(os.sched_getaffinity(0)))


def process_began() -> float:
    """Seconds since 1970. Field 22 of /proc/PID/stat: clock ticks from the boot on (proc_pid_stat(5))."""
    after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    ticks = int(after_name[22 - 3])  # after_name begins at field 3
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))


def _own_name() -> str:
    host = socket.gethostname()  # a pod's is its name
    return host if "KUBERNETES_SERVICE_HOST" in os.environ else f"{host}-{os.getpid()}"
