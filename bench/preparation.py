"""Preparing samples against bare tokenisation of the same text, the vocabulary map against a plain loop, and packing.

    python3 -m bench.preparation --conversations 5000

The corpus is made of Python's own manual, cut into conversations of about 1,000 tokens, with the real Llama 3 tokenizer
(`--target` takes any other). Both contenders load the tokenizer and use the same number of processes; bare tokenisation
is one `encode_batch` call a chunk, of texts that are already rendered and in memory.
"""

import json
import os
import random
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from pydoc_data.topics import topics
from typing import Annotated, Any

import numpy as np
import typer

from spec.samples.packing import pack
from spec.samples.parallel import ordered_map
from spec.samples.prepare import Settings, prepare
from spec.samples.target import load_tokenizer
from spec.samples.vocabulary import choose_vocabulary, count_tokens
from tests import chat_tokenizers
from tests.answered import answered, answered_run, chat, save_target

_CHUNK = 64
_WORDS = {"question": 90, "answer": 560}  # a conversation of one turn then has about 1,000 tokens


def measure(
    *,
    conversations: int = 5000,
    processes: int | None = None,
    repeats: int = 3,
    tokens: int = 100_000_000,
    target: Path | None = None,
) -> dict[str, Any]:
    """All figures of this file: seconds are medians of `repeats`, the contenders alternating."""
    return {
        "preparation": measure_preparation(conversations, processes or len(os.sched_getaffinity(0)), repeats, target),
        "vocabulary": measure_vocabulary(tokens, repeats),
        "packing": measure_packing(200_000),
    }


def measure_preparation(conversations: int, processes: int, repeats: int, target: Path | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        folder = Path(scratch)
        target = target or save_target(chat_tokenizers.llama3(), folder / "target")
        tokenizer = load_tokenizer(target)
        rows = list(_conversations(tokenizer, conversations))
        texts = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in rows]
        run = answered_run(folder / "run", rows, target)

        def prepared() -> dict[str, Any]:
            shutil.rmtree(folder / "run/samples", ignore_errors=True)
            return prepare(run, str(target), Settings(), processes=processes)[0].facts

        def bare() -> int:
            backend = load_tokenizer(target).backend_tokenizer
            chunks = iter(lambda it=iter(texts): list(islice(it, _CHUNK)), [])
            count = lambda chunk: sum(map(len, backend.encode_batch(chunk, add_special_tokens=False)))  # noqa: E731
            return sum(ordered_map(count, chunks, processes))

        seconds: dict[str, list[float]] = {"prepared": [], "bare": []}
        with _peak_memory() as peak:
            for _ in range(repeats):
                for name, contender in (("prepared", prepared), ("bare", bare)):
                    started = time.perf_counter()
                    result = contender()
                    seconds[name].append(time.perf_counter() - started)
        facts = prepared()
    ...
