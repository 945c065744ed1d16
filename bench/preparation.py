"""Preparing samples, of a server's tokens and of text, against bare tokenisation; the vocabulary map; packing.

    python3 -m bench.preparation --conversations 5000

The corpus (`bench.corpus`) is made for the real Llama 3 tokenizer; `--target` takes any other. Both contenders load the
tokenizer and use the same number of processes. Bare tokenisation is one `encode_batch_fast` a chunk, of texts that are
rendered already; preparing reads the answers, renders them, tokenises, masks, checks every count against
the server's, writes the arrays, chooses the vocabulary and packs. Its memory is that of all its processes. The same
answers with the tokens that a server gives need none of the rendering and tokenising: `exact`.
"""

import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from typer import Option, run

from bench.corpus import read_texts, write_corpus
from bench.memory import peak_of_all
from spec.samples.dataset import Samples
from spec.samples.packing import pack
from spec.samples.parallel import ordered_map
from spec.samples.prepare import Settings, prepare
from spec.samples.target import load_tokenizer
from spec.samples.vocabulary import choose_vocabulary, count_tokens
from spec.storage import open_store
from tests import chat_tokenizers
from tests.answered import save_target

LENGTH = 2048  # tokens of a row and of a bin
VOCABULARY, DRAFT_VOCABULARY = 152_000, 32_000


def measure(
    *,
    conversations: int = 5000,
    processes: int | None = None,
    repeats: int = 3,
    tokens: int = 100_000_000,
    target: Path | None = None,
) -> dict[str, Any]:
    """All figures of this file; seconds are medians over `repeats`, with the contenders alternating."""
    return {
        "preparation": measure_preparation(conversations, processes or len(os.sched_getaffinity(0)), repeats, target),
        "vocabulary": measure_vocabulary(tokens, repeats),
        "packing": measure_packing(200_000),
    }


def measure_preparation(conversations: int, processes: int, repeats: int, target: Path | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        folder = Path(scratch)
        target = target or save_target(chat_tokenizers.llama3(), folder / "target")
        with ProcessPoolExecutor(1) as apart:  # what it leaves in memory is not in this process then
            apart.submit(write_corpus, folder, target, conversations).result()
        load_tokenizer(target)  # importing the libraries is neither's work

        def prepared(run: str) -> dict[str, Any]:
            samples = folder / run / "samples"
            shutil.rmtree(samples, ignore_errors=True)
            marker, _ = prepare(open_store(folder / run), str(target), Settings(max_length=LENGTH), processes=processes)
            pack(Samples.open(samples / "train").lengths, LENGTH)
            return marker.facts

        def bare() -> int:
            backend = load_tokenizer(target).backend_tokenizer
            texts = read_texts(folder)
            chunks = iter(lambda: list(islice(texts, 64)), [])
            return sum(ordered_map(lambda chunk: _tokens_of(backend, chunk), chunks, processes))

        contenders = {
            "prepared": lambda: peak_of_all(lambda: prepared("run")),
            "exact": lambda: peak_of_all(lambda: prepared("exact")),
            "bare": bare,
        }
        seconds, cpu_seconds, results = _alternating(contenders, repeats)
    memory, facts = results["prepared"]
    memory_exact, facts_exact = results["exact"]
    if facts_exact["train"]["tokens"] != facts["train"]["tokens"] or facts_exact["exact"] != conversations:
        raise ValueError("the two ways came to other tokens")
    return {
        "conversations": conversations,
        "processes": processes,
        "tokens": results["bare"],
        "mean_length": round(results["bare"] / conversations),
        "loss_share": facts["train"]["loss_share"],
        "memory": memory,
        "memory_exact": memory_exact,
        **{f"seconds_{name}": its for name, its in seconds.items()},
        **{f"cpu_seconds_{name}": its for name, its in cpu_seconds.items()},
        "tokens_per_s_prepared": round(results["bare"] / seconds["prepared"]["median"]),
        "tokens_per_s_exact": round(results["bare"] / seconds["exact"]["median"]),
        "speed_ratio_exact": round(seconds["prepared"]["median"] / seconds["exact"]["median"], 3),
        "cpu_ratio_exact": round(cpu_seconds["prepared"]["median"] / cpu_seconds["exact"]["median"], 3),
        "ratio": round(seconds["prepared"]["median"] / seconds["bare"]["median"], 3),
    }


def measure_vocabulary(tokens: int, repeats: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    ids = (rng.zipf(1.2, tokens).clip(1, VOCABULARY) - 1).astype(np.int32)
    mask = np.repeat(rng.integers(0, 2, tokens // 100 + 1), 100)[:tokens].astype(np.uint8)  # answers, not single tokens
    looped = min(tokens, 2_000_000)

    def map_of_all() -> Any:
        return choose_vocabulary(count_tokens(ids, mask, VOCABULARY), DRAFT_VOCABULARY)

    def plain_loop() -> list[int]:
        counts = [0] * VOCABULARY
        for token, bears in zip(ids[:looped].tolist(), mask[:looped].tolist(), strict=True):
            if bears:
                counts[token] += 1
        return sorted(sorted(range(VOCABULARY), key=lambda token: (-counts[token], token))[:DRAFT_VOCABULARY])

    seconds, _, _ = _alternating({"map": map_of_all, "plain_loop": plain_loop}, repeats)
    return {
        "tokens": tokens,
        "vocabulary": VOCABULARY,
        "seconds": seconds["map"],
        "tokens_plain_loop": looped,
        "seconds_plain_loop": seconds["plain_loop"],
    }


def measure_packing(rows: int) -> dict[str, Any]:
    """Log-normal lengths of mean 1000; those that are too long left out, as preparing leaves them out."""
    lengths = np.random.default_rng(0).lognormal(np.log(1000) - 0.18, 0.6, rows).astype(np.int64) + 1
    lengths = lengths[lengths <= LENGTH]
    started = time.perf_counter()
    bins = pack(lengths, LENGTH)
    return {
        "rows": len(lengths),
        "mean_length": round(float(lengths.mean())),
        "bins": len(bins),
        "padding": round(1 - float(lengths.sum()) / (len(bins) * LENGTH), 4),
        "padding_unpacked": round(1 - float(lengths.sum()) / (len(lengths) * LENGTH), 4),
        "seconds": round(time.perf_counter() - started, 3),
    }


def _tokens_of(backend: Any, texts: list[str]) -> int:
    return sum(map(len, backend.encode_batch_fast(texts, add_special_tokens=False)))


def _alternating(
    contenders: dict[str, Callable[[], Any]], repeats: int
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]], dict[str, Any]]:
    """Wall seconds of each contender, CPU seconds of all its processes, and what it returned last."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in contenders}
    results = {}
    for _ in range(repeats):
        for name, contender in contenders.items():
            started, spent = time.perf_counter(), _cpu_seconds()
            results[name] = contender()
            seconds[name].append(time.perf_counter() - started)
            cpu_seconds[name].append(_cpu_seconds() - spent)
    told = ({name: _spread(its) for name, its in times.items()} for times in (seconds, cpu_seconds))
    return *told, results


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended, which says the same on a busy machine."""
    return sum(os.times()[:4])


def _spread(seconds: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(seconds), 3),
        "least": round(min(seconds), 3),
        "most": round(max(seconds), 3),
    }


def main(
    conversations: Annotated[int, Option(min=64)] = 5000,
    processes: Annotated[int | None, Option(min=1, help="Default: one a core.")] = None,
    repeats: Annotated[int, Option(min=1)] = 3,
    tokens: Annotated[int, Option(min=1, help="Of the vocabulary map.")] = 100_000_000,
    target: Annotated[Path | None, Option(help="Another tokenizer's directory, with a config.json.")] = None,
) -> None:
    """Measure preparation, vocabulary map and packing; prints JSON."""
    figures = measure(conversations=conversations, processes=processes, repeats=repeats, tokens=tokens, target=target)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    run(main)
