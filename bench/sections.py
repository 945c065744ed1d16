"""What is measured, a section a function: each gives its part of results.json."""

import math
import os
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bench.blocks import BlockWork
from bench.memory import available
from bench.rounds import Json, alternate, child, console, ratio
from bench.work import Work

LENGTHS = (512, 1024, 2048, 4096, 8192)
BLOCKS = ((2048, 128, 8), (4096, 512, 16))  # tokens, anchors, rows of a block
MARKOV_RANKS = {"DFlash": 0, "DSpark": 256}
VOCABULARIES = ((32_000, 8_000), (32_000, 32_000), (152_000, 8_000), (152_000, 32_000))  # target's, draft's


@dataclass(frozen=True)
class Effort:
    """How much of it."""

    rounds: int
    timed: int  # steps timed in each process
    threads: int
    conversations: int  # of the preparation
    longest: int  # of the growth's lengths


def step(effort: Effort) -> Json:
    """The draft step against the plain one, and what it costs to compute activations again instead of keeping them."""
    return _compared(Work(), ("fast", "plain", "recompute"), effort)


def compiled(effort: Effort) -> Json:
    """The draft step with torch.compile and without."""
    return _compared(Work(), ("fast", "compiled"), effort)


def growth(effort: Effort) -> Json:
    """Time and memory by length. The plain step is left out where it is likely not to fit this machine."""
    lengths: dict[str, Json] = {}
    plain_memory = 0.0
    measured = tuple(length for length in LENGTHS if length <= effort.longest)
    for length in measured:
        fits = 3 * plain_memory < available()  # twice the length takes it two to four times the memory
        if not fits:
            console.print(f"the plain step at {length} tokens may not fit {available() / 2**30:.0f} GiB: left out")
        found = _compared(Work(length=length), ("fast", "plain") if fits else ("fast",), effort)
        lengths[str(length)] = found
        plain_memory = found["contenders"]["plain"]["memory"]["median"] if fits else math.inf
    memory = [lengths[str(length)]["contenders"]["fast"]["memory"]["median"] for length in measured]
    return {
        "lengths": lengths,
        "memory_exponent": _slope(measured, memory),
        "memory_exponent_last_doubling": _slope(measured[-2:], memory[-2:]),
    }


def vocabularies(effort: Effort) -> Json:
    """The draft step by the sizes of both vocabularies."""
    sizes = {
        f"{target}/{draft}": _compared(Work(target_vocab=target, draft_vocab=draft), ("fast", "plain"), effort)
        for target, draft in VOCABULARIES
    }
    return {"sizes": sizes}


def packing(effort: Effort) -> Json:
    """A step with a target's forward on packed rows and on padded ones: loss-bearing tokens a second."""
    asked = {name: {"packed": name == "packed", "timed": effort.timed} for name in ("packed", "padded")}
    contenders = alternate("bench.packed", asked, effort.rounds, effort.threads)
    for its in contenders.values():
        its["loss_tokens_per_s"] = round(its["loss_tokens"] / its["seconds"]["median"], 1)
    packed, padded = contenders["packed"], contenders["padded"]
    return {
        "contenders": contenders,
        "speed_ratio": ratio(padded, packed, "seconds"),  # the same documents in both
        "cpu_ratio": ratio(padded, packed, "cpu_seconds"),
        "loss_difference": abs(packed["loss"] / padded["loss"] - 1),
    }


def preparation(effort: Effort) -> Json:
    """Preparing against bare tokenisation, the vocabulary map against a plain loop, packing's padding."""
    count = ("--conversations", str(effort.conversations), "--repeats", str(effort.rounds))
    return child("bench.preparation", *count, "--processes", str(effort.threads), threads=effort.threads)


def blocks(effort: Effort) -> Json:
    """The step of a block draft against the plain one, DFlash's and DSpark's."""
    sizes = {}
    for length, anchors, rows in BLOCKS:
        for method, rank in MARKOV_RANKS.items():
            work = BlockWork(length=length, anchors=anchors, block_size=rows, markov_rank=rank)
            sizes[f"{method}, {length} tokens, {anchors} x {rows}"] = _compared(
                work, ("fast", "plain", "recompute"), effort, "bench.blocks"
            )
    return {"sizes": sizes}


SECTIONS = {its.__name__: its for its in (step, blocks, growth, vocabularies, compiled, packing, preparation)}


def machine(effort: Effort) -> Json:
    """What the figures were seen on; its load says how far to trust wall seconds."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "threads": effort.threads,
        "rounds": effort.rounds,
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),  # the vector units that products of matrices use
        "load_average": round(os.getloadavg()[0], 1),
    }


def _compared(work: Work | BlockWork, names: tuple[str, ...], effort: Effort, module: str = "bench.contender") -> Json:
    asked = {name: {"contender": name, "timed": effort.timed, "work": asdict(work)} for name in names}
    contenders = alternate(module, asked, effort.rounds, effort.threads)
    fast = contenders["fast"]
    if isinstance(work, Work):
        fast["tokens_per_s"] = round(work.batch * work.length / fast["seconds"]["median"], 1)
        fast["share_of_peak"] = round(fast["flops"] / fast["seconds"]["median"] / fast["peak_flops_per_s"], 3)
    found: dict[str, Any] = {"work": asdict(work), "contenders": contenders}
    if "plain" in contenders:
        plain = contenders["plain"]
        found |= {
            "speed_ratio": ratio(plain, fast, "seconds"),
            "cpu_ratio": ratio(plain, fast, "cpu_seconds"),
            "memory_ratio": ratio(plain, fast, "memory"),
            "loss_difference": abs(fast["loss"] / plain["loss"] - 1),
            "gradient_difference": abs(fast["grad_norm"] / plain["grad_norm"] - 1),
        }
    return found


def _slope(lengths: tuple[int, ...], values: list[float]) -> float:
    """The exponent of growth: least squares through the logarithms."""
    x, y = [math.log(length) for length in lengths], [math.log(value) for value in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return round(covariance / sum((a - mean_x) ** 2 for a in x), 3)
