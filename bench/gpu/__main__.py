"""The kit for CUDA: whether a step is right and how fast it is, on one GPU, within seven minutes.

    python -m bench.gpu                     # all parts, most valuable first
    python -m bench.gpu --only train        # one, or several
    python -m bench.gpu --device cpu --small    # a rehearsal of every part where there is no GPU

Each part is a process of its own with a limit of its own: one that hangs or crashes costs that and nothing else. What
is measured goes to results.json; a time or a peak of memory a tenth above the least the card has shown is a failure.
"""

import importlib
import json
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # or asking for a GPU would spoil the forks

import torch
from rich.console import Console
from rich.table import Table
from torch.utils._triton import has_triton
from typer import Option

from bench.gpu.part import Part, Skipped, processes
from spec import cli
from spec.errors import BadInput, BelowBar

HERE = Path(__file__).parent
GROWN, BOUNDED = 1.1, ("ms", "gib", "peak_gib")  # at most so many times the least that the same card has shown
PARTS = {  # in the order of their worth: their module, and seconds at most
    "machine": ("speed", 30),
    "attention": ("correct", 60),
    "documents": ("correct", 40),
    "products": ("correct", 40),
    "step": ("correct", 60),
    "blocks": ("blocks", 60),
    "fsdp": ("correct", 60),
    "train": ("train", 110),
    "draft": ("speed", 80),
    "resume": ("train", 70),
    "many": ("train", 90),
    "profile": ("train", 60),
    "block_speed": ("blocks", 80),
    "long": ("speed", 60),
    "flex": ("speed", 90),
    "compiled": ("speed", 90),
}


def main(
    only: Annotated[list[str] | None, Option(help=f"A part: {', '.join(PARTS)}. Default: all.")] = None,
    device: Annotated[str, Option(help="cuda, or cpu to rehearse.")] = "cuda",
    small: Annotated[bool, Option("--small", help="Sizes that a CPU does in seconds.")] = False,
    budget: Annotated[float, Option(help="Seconds for all.")] = 390,
    output: Annotated[Path | None, Option(help="For results and logs. Default: bench/gpu, or /tmp.")] = None,
) -> None:
    """Run the parts, print a table, keep the figures."""
    if unknown := set(only or ()) - set(PARTS):
        raise BadInput(f"--only {min(unknown)}: the parts are {', '.join(PARTS)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise BadInput("there is no CUDA GPU on this machine; --device cpu --small rehearses the parts")
    output = output or (HERE if device == "cuda" else Path(tempfile.gettempdir()) / "bench-gpu")
    output.mkdir(parents=True, exist_ok=True)
    file = output / "results.json"
    before = json.loads(file.read_text()) if file.exists() else {}
    results, began = dict(before), time.monotonic()
    patience = 1 if device == "cuda" else 4  # a rehearsal may be on a machine that others use too
    import_parts({PARTS[name][0] for name in only or PARTS})
    for name in only or PARTS:
        left = patience * budget - (time.monotonic() - began)
        limit = min(patience * PARTS[name][1], left)
        found = run_part(name, device, small, limit, output) if left > 5 else {"state": "no time left"}
        least, grown = bounds(before.get(name, {}), found)
        results[name] = found | {"least": least, "failures": found.get("failures", []) + grown}
        file.write_text(json.dumps(results, indent=1) + "\n")
        Console().print(f"{name}: {results[name]['state']}, {found.get('seconds', 0):.0f} s", highlight=False)
    show({name: results[name] for name in only or PARTS})
    if bad := [name for name in only or PARTS if results[name]["failures"] or results[name]["state"] == "failed"]:
        raise BelowBar(f"parts that failed: {', '.join(bad)}; see {file}")


def import_parts(modules: Iterable[str]) -> None:
    """Once for all forks, and as if there were no GPU: one that was asked here could not be used in them.

    torchao, which torchtune imports, asks what the GPU can do for kernels of its own, which nobody here calls.
    """
    with patch.object(torch.cuda, "is_available", lambda: False):
        for module in sorted(modules):
            importlib.import_module(f"bench.gpu.{module}")
    has_triton.cache_clear()  # it was asked meanwhile, and compiling asks it again


def run_part(name: str, device: str, small: bool, limit: float, output: Path) -> dict[str, Any]:
    """A part's figures, its state (ok, failed, skipped, stopped) and how long it took."""
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as scratch:
        process = processes().Process(target=_child, args=(name, device, small, limit, Path(scratch), output))
        began = time.monotonic()
        process.start()
        assert process.pid is not None
        with suppress(ProcessLookupError, PermissionError):  # it has done so itself, or is gone already
            os.setpgid(process.pid, process.pid)  # here as well: it may be stopped before its first line
        process.join(limit)
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
        figures, end = ({} for _ in range(2))
        for part, file in ((figures, "figures.json"), (end, "end.json")):
            if (Path(scratch) / file).exists():
                part |= json.loads((Path(scratch) / file).read_text())
        stopped = {"state": "failed", "failures": [f"ended with {process.exitcode} or stopped after {limit:.0f} s"]}
        return {"figures": figures, "seconds": round(time.monotonic() - began, 1)} | (end or stopped)


def _child(name: str, device: str, small: bool, limit: float, scratch: Path, output: Path) -> None:
    os.setpgid(0, 0)  # what it starts is ended with it
    log = os.open(output / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    its = Part(device, small, limit, scratch, output)
    try:
        getattr(importlib.import_module(f"bench.gpu.{PARTS[name][0]}"), name)(its)
        end = {"state": "failed" if its.failures else "ok", "failures": its.failures}
    except Skipped as why:
        end = {"state": f"skipped: {why}", "failures": []}
    except Exception as error:
        traceback.print_exc()
        end = {"state": "failed", "failures": [f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"]}
    (scratch / "end.json").write_text(json.dumps(end))
    os._exit(0)


def bounds(before: dict[str, Any], now: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The least of each time and memory that this card has shown so far, and which of them have grown too much."""
    least, new = before.get("least", {}), now.get("figures", {})
    if "card" not in new:  # a part that ended before its first figure, or measures nothing
        return least, []
    if least.get("card") != new["card"]:
        least = {"card": new["card"]}
    figures = {name: its for name, its in new.items() if isinstance(its, dict)}
    seen = {f"{name} {key}": its[key] for name, its in figures.items() for key in BOUNDED if key in its}
    grown = [
        f"{name}: {its:.1f}, {least[name]:.1f} before"
        for name, its in seen.items()
        if its > GROWN * least.get(name, its)
    ]
    return least | {name: min(its, least.get(name, its)) for name, its in seen.items()}, grown


def show(results: dict[str, dict[str, Any]]) -> None:
    table = Table("part", "state", "seconds", "figures", title="bench.gpu")
    for name, its in results.items():
        figures = "\n".join(f"{key}: {_short(value)}" for key, value in its.get("figures", {}).items())
        table.add_row(name, "\n".join([its["state"], *its["failures"]]), f"{its.get('seconds', 0):.0f}", figures)
    Console(width=160).print(table)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(its)}" for key, its in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    cli.run(main)
