"""Training runs of any number of ranks in forked processes: the real recipe, without the seconds of its imports.

outcome = train(run, target, ranks=2, max_steps=6)
assert outcome.codes == [0, 0] and outcome.losses(run) == ...
"""

import json
import multiprocessing
import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from spec import launch
from spec.eagle_full_finetune_distributed import EagleFullFinetuneRecipeDistributed, recipe_main

TINY: dict[str, Any] = {
    "draft_vocab_size": 128,
    "target_dtype": "fp32",
    "dtype": "fp32",
    "max_length": 64,
    "steps": 3,
    "epochs": 2,
    "device": "cpu",
    "target_shard": "none",
    "evaluate_every": 5,
    "save_every": 5,
    "optimizer": {"lr": 1e-3},
    "lr_scheduler": {"num_warmup_steps": 2},
    "metric_logger": None,
    "timeout_minutes": 1,
}


@dataclass
class Outcome:
    codes: list[int]  # exit code of each rank; negative: killed by that signal
    said: list[str]  # what each rank wrote on stdout and stderr


@dataclass
class Interruption:
    """A signal that a rank sends itself right after an optimizer step."""

    step: int
    rank: int = 0
    number: int = signal.SIGTERM


def train(
    run: Path | str,
    target: Path,
    *,
    logs: Path,
    ranks: int = 1,
    ranks_a_node: int | None = None,
    interruption: Interruption | None = None,
    without: tuple[str, ...] = (),
    **settings: Any,
) -> Outcome:
    """Run the recipe on `TINY` settings with `settings` over them (less those `without`); ranks write below `logs`."""
    given = TINY | {"run_dir": str(run), "target": str(target)} | settings
    given = {name: value for name, value in given.items() if name not in without}
    logs.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    context = multiprocessing.get_context("fork")
    files = [logs / f"rank-{rank}.log" for rank in range(ranks)]
    processes = []
    per_node = ranks_a_node or ranks
    for rank, file in enumerate(files):
        environ = {
            "RANK": rank,
            "WORLD_SIZE": ranks,
            "LOCAL_RANK": rank % per_node,
            "LOCAL_WORLD_SIZE": min(per_node, ranks - rank // per_node * per_node),  # the last node may have fewer
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        process = context.Process(target=_rank, args=(environ, file, given, interruption))
        process.start()
        processes.append(process)
    for process in processes:
        process.join(timeout=240)
        if process.is_alive():
            process.kill()
            process.join()
    return Outcome([process.exitcode for process in processes], [file.read_text() for file in files])


def rows(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl."""
    return [json.loads(line) for line in (run / "checkpoints/metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[list[float]]:
    """For each optimizer step: the whole loss, and the loss by position."""
    return [[row["loss"], *row["loss_by_position"]] for row in rows(run) if "loss" in row]


def _rank(environ: dict[str, Any], file: Path, settings: dict[str, Any], interruption: Interruption | None) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update({name: str(value) for name, value in environ.items()})
    import sys

    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    if interruption and interruption.rank == environ["RANK"]:
        _interrupt(interruption)
    # torch makes a fork's pool of threads anew when first asked, and not by several threads at once.
    torch.set_num_threads(torch.get_num_threads())
    launch.run(lambda: recipe_main(OmegaConf.create(settings)))


def _interrupt(interruption: Interruption) -> None:
    step_as_it_is = EagleFullFinetuneRecipeDistributed.train_step

    def train_step(self, batches):
        if self.progress.step + 1 == interruption.step:
            os.kill(os.getpid(), interruption.number)
        return step_as_it_is(self, batches)

    EagleFullFinetuneRecipeDistributed.train_step = train_step


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
