"""Contenders in fresh processes, one after the other, several rounds: what else a machine does then hits all alike."""

import json
import os
import statistics
import subprocess
import sys
from typing import Any

from rich.console import Console

from spec.errors import PassingFault

Json = dict[str, Any]
console = Console(stderr=True)


def alternate(module: str, contenders: dict[str, Json], rounds: int, threads: int) -> dict[str, Json]:
    """For each of `contenders` (the JSON that `python3 -m module` is given) its figures over all rounds.

    `seconds` and `cpu_seconds` are of every timed step, `memory` of every process: median, least and most. Whatever
    else a contender says is of its last process.
    """
    runs: dict[str, list[Json]] = {name: [] for name in contenders}
    for index in range(rounds):
        for name, asked in contenders.items():
            console.print(
                f"[dim]round {index + 1} of {rounds}: {module} {name} {json.dumps(asked)}[/]", highlight=False
            )
            runs[name].append(child(module, json.dumps(asked), threads=threads))
    return {name: _summary(its) for name, its in runs.items()}


def child(module: str, *arguments: str, threads: int) -> Json:
    """What `python3 -m module arguments` prints, read as JSON. `PassingFault` where it was killed."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode < 0:
        raise PassingFault(
            f"{module} {arguments} was killed ({done.returncode}), most often for memory: make some free"
        )
    if done.returncode:
        raise RuntimeError(f"{module} {arguments} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def spread(values: list[float]) -> Json:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def ratio(slow: Json, fast: Json, name: str) -> float:
    """How many times `slow`'s median is `fast`'s."""
    return round(slow[name]["median"] / fast[name]["median"], 2)


def _summary(runs: list[Json]) -> Json:
    timed = {name: spread([second for run in runs for second in run[name]]) for name in ("seconds", "cpu_seconds")}
    return runs[-1] | timed | {"memory": spread([run["memory"] for run in runs])}
