"""Prepared samples without a server or a tokenizer: documents of random tokens, written as prepare_data.py writes them.

run = prepared_run(tmp_path / "run", vocab_size=320)
"""

from pathlib import Path

import numpy as np

from spec.samples.dataset import SamplesWriter
from spec.samples.vocabulary import choose_vocabulary, count_tokens
from spec.storage import open_store
from spec.storage.markers import Marker, describe_files, digest_of, write_marker


def prepared_run(
    run: Path,
    *,
    vocab_size: int = 320,
    draft_vocab_size: int = 128,
    documents: int = 24,
    held_out: int = 4,
    seed: int = 0,
) -> Path:
    """A run directory with `samples/`: documents of 8 to 48 tokens, of which the second half bears loss."""
    folder = run / "samples"
    rng = np.random.default_rng(seed)
    for name, rows in (("train", documents), ("held_out", held_out)):
        lengths = rng.integers(8, 49, rows)
        with SamplesWriter(folder / name) as writer:
            for length in lengths:
                ids = rng.integers(0, vocab_size, length, dtype=np.int32)
                mask = (np.arange(length) >= length // 2).astype(np.uint8)
                writer.append(ids, mask, np.array([length]), rng.integers(0, 2**63, 1).astype(np.uint64))
    # Random documents say nothing about what the target would answer: a map drawn at random is as good as any.
    counts = count_tokens(rng.integers(0, vocab_size, 1000), np.ones(1000, np.uint8), vocab_size)
    choose_vocabulary(counts, draft_vocab_size).save(folder / "vocab_map.safetensors")
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    settings = {"vocab_size": vocab_size, "draft_vocab_size": draft_vocab_size, "seed": seed}
    marker = Marker(
        step="prepare",
        digest=digest_of("prepare", settings, {}),
        settings=settings,
        inputs={},
        files=describe_files(folder, files),
    )
    write_marker(open_store(folder), "samples.json", marker)
    return run
