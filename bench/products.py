"""The loss's matrix products in fp32 on a CPU: `spec.methods.eagle3.losses.linear` against `@`, at the bench's sizes.

    python3 -m bench.products

In turns in one process, medians: rows of a chunk, and of the target's part of it, against both vocabularies.
"""

import statistics
import time
from collections.abc import Callable

import torch
from rich.table import Table

from bench.rounds import console
from bench.work import Work
from spec import cli
from spec.methods.eagle3.losses import CHUNK, linear

ROUNDS = 15


def main() -> None:
    """Print GFLOP/s of each product."""
    work = Work()
    positions = CHUNK["cpu"] // (work.steps * work.draft_vocab)
    head = torch.randn(work.draft_vocab, work.hidden)
    products = {
        "logits of a chunk": (torch.randn(work.steps * positions, work.hidden), head),
        "their gradient times the head (by @)": (torch.randn(work.steps * positions, work.draft_vocab), head.T),
        "the target's logits of a chunk": (torch.randn(positions, work.hidden), head),
    }
    table = Table("product", "@", "linear", "ratio", title=f"fp32 GFLOP/s, {torch.get_num_threads()} threads")
    for name, (x, weight) in products.items():
        plain, fast = _rates(x, weight)
        table.add_row(name, f"{plain:.0f}", f"{fast:.0f}", f"{fast / plain:.2f}")
    console.print(table)


def _rates(x: torch.Tensor, weight: torch.Tensor) -> tuple[float, float]:
    contenders: tuple[Callable[[], torch.Tensor], ...] = (lambda: x @ weight.T, lambda: linear(x, weight))
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS + 1):
        for contender, found in zip(contenders, seconds, strict=True):
            started = time.perf_counter()
            contender()
            found.append(time.perf_counter() - started)
    work = 2e-9 * x.numel() * len(weight)
    plain, fast = (work / statistics.median(found[1:]) for found in seconds)
    return plain, fast


if __name__ == "__main__":
    cli.run(main)
