"""Memory grows linearly with the length: the real step on the meta device, at the benchmark's sizes."""

import math

import pytest
import torch

from spec.attention.block0 import Queries
from spec.methods.eagle3 import losses
from spec.methods.eagle3.draft import EagleDraft
from spec.methods.eagle3.losses import Wanted
from spec.methods.eagle3.step import Observation, decay_weights, step_loss
from spec.planning.live import LiveBytes
from tests.tiny_steps import tiny_config

STEPS, TURN = 7, 128
CONFIG = tiny_config(
    heads=8,
    kv_heads=4,
    hidden_size=512,
    target_hidden_size=512,
    head_dim=64,
    intermediate_size=1536,
    vocab_size=32_000,
    draft_vocab_size=8_000,
)


def half_bearing(length: int, rows: int = 2) -> Observation:
    """Questions and answers of `TURN` tokens in turns, on the meta device."""
    starts = [(first, first + at) for first in range(0, rows * length, length) for at in range(TURN, length, 2 * TURN)]
    answers = len(starts) * TURN
    with torch.device("meta"):
        ids = torch.zeros(rows * length, dtype=torch.int64)
        wanted = Wanted(
            hidden=torch.zeros(answers, 512),
            lse=torch.zeros(answers),
            choice=torch.zeros(answers, dtype=torch.int64),
            rows=torch.zeros(STEPS, answers, dtype=torch.int64),
            bears=torch.ones(STEPS, answers, dtype=torch.bool),
        )
        runs = tuple((first, start, start + TURN) for first, start in starts)
        queries = Queries.of_runs(runs, torch.zeros(rows + 1, dtype=torch.int32), length)
        return Observation(ids, torch.zeros_like(ids), torch.zeros(rows * length, 3 * 512), queries, wanted)


def peak(length: int, checkpoint_steps: bool) -> int:
    """Bytes of all tensors alive at once in a forward and a backward, the gradients among them."""
    seen = half_bearing(length)
    with torch.device("meta"):
        draft = EagleDraft(CONFIG)
        draft.share_target(*torch.zeros(2, CONFIG.vocab_size, 512))
        with LiveBytes() as memory:
            result = step_loss(draft, seen, decay_weights(STEPS, device="meta"), checkpoint_steps=checkpoint_steps)
            result.loss.backward()
    return memory.peak


@pytest.fixture(autouse=True)
def chunk_of_cpu(monkeypatch):
    """A GPU's large chunk of logits would hide, as a constant, how the rest grows."""
    monkeypatch.setitem(losses.CHUNK, "meta", losses.CHUNK["cpu"])


def test_recomputing_takes_less_than_half_the_memory_at_a_long_length():
    assert peak(8192, True) < 0.5 * peak(8192, False)


@pytest.mark.parametrize("checkpoint_steps", [False, True])
def test_twice_the_length_takes_at_most_twice_the_memory(checkpoint_steps):
    lengths = [512, 1024, 2048, 4096, 8192]
    peaks = [peak(length, checkpoint_steps) for length in lengths]
    print({length: f"{its / 2**20:.0f} MiB" for length, its in zip(lengths, peaks, strict=True)})
    for shorter, longer in zip(peaks, peaks[1:], strict=False):
        assert math.log2(longer / shorter) < 1.1
