"""The profile before and after: a plain step's time and ours, by kind of operator.

    OMP_NUM_THREADS=1 python3 -m bench.operators
    OMP_NUM_THREADS=1 python3 -m bench.operators --method dflash --length 2048

As torch.profiler sees it on the CPU, in fp32: each operator's time without that of the operators it calls.
"""

import re
from collections import Counter
from collections.abc import Callable
from typing import Annotated

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile
from typer import Option

from bench import blocks, contender
from bench.sections import MARKOV_RANKS
from bench.work import Work
from spec import cli
from spec.errors import BadInput

KINDS = {  # the first whose pattern an operator's name holds
    "attention": "attention|TttAttention",
    "products of matrices": r"::(add)?mm|::bmm|linear",
    "softmaxes": "softmax",
    "argmaxes, sums, comparisons": r"arg|amax|::max|::sum|mean|norm|where|::eq|nonzero",
    "copies, slices, gathers, zeros": r"::cat|copy|index|gather|scatter|slice|fill|zero|clone|stack",
}
REST = "the rest, by element"


def main(
    method: Annotated[str, Option(help="eagle3, dflash or dspark.")] = "eagle3",
    length: Annotated[int, Option(min=64, help="Tokens a row.")] = 1024,
) -> None:
    """Print seconds and shares of both steps by kind of operator."""
    steps = {name: _spent(_prepared(method, name, length)) for name in ("plain", "fast")}
    table = Table("kind", title=f"seconds, threads: {torch.get_num_threads()}")
    for name in steps:
        table.add_column(name, justify="right")
    for kind in (*KINDS, REST):
        table.add_row(kind, *(f"{its[kind]:.2f}  {its[kind] / its.total():4.0%}" for its in steps.values()))
    table.add_row("all", *(f"{its.total():.2f}  100%" for its in steps.values()))
    Console().print(table)


def _prepared(method: str, name: str, length: int) -> Callable[[], object]:
    where = torch.device("cpu"), torch.float32
    if method == "eagle3":
        return contender.prepare_step(name, Work(length=length), *where)
    ranks = {name.lower(): rank for name, rank in MARKOV_RANKS.items()}
    if method not in ranks:
        raise BadInput(f"method {method}: one of eagle3, {', '.join(ranks)}")
    return blocks.prepare_step(name, blocks.BlockWork(length=length, markov_rank=ranks[method]), *where)


def _spent(step: Callable[[], object]) -> Counter[str]:
    """Seconds of a step by kind, after a first one."""
    step()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        step()
    spent = Counter[str]()
    for its in seen.key_averages():
        kind = next((kind for kind, pattern in KINDS.items() if re.search(pattern, its.key)), REST)
        spent[kind] += 1e-6 * its.self_cpu_time_total
    return spent


if __name__ == "__main__":
    cli.run(main)
