"""The block step without a GPU: its path on CUDA by fake tensors, its memory by the meta device."""

import math
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from spec.attention import blocks as attention
from spec.methods.block import losses
from spec.methods.block.draft import BlockDraft
from spec.methods.block.losses import DFLASH, DSPARK, decay_weights
from spec.methods.block.step import Observation, step_loss
from spec.planning.live import LiveBytes
from spec.planning.roofline import Watch
from tests.forked import forked
from tests.tiny_blocks import some_blocks, tiny_config
from tests.tiny_steps import tiny_batch


def observation(draft, tokens: int, dtype: torch.dtype = torch.float32) -> Observation:
    ids, hidden = torch.zeros(tokens, dtype=torch.int64), draft.config.hidden_size
    aux = torch.zeros(tokens, len(draft.config.feature_layers) * hidden, dtype=dtype)
    return Observation(ids, torch.zeros_like(ids), aux, torch.zeros(tokens, hidden, dtype=dtype))


def loss_on(device, config, blocks, tokens, objective, dtype=torch.float32):
    with torch.device(device):
        draft = BlockDraft(config)
        draft.share_target(*torch.zeros(2, config.vocab_size, config.hidden_size, dtype=dtype))
        seen = observation(draft, tokens, dtype)
        return step_loss(draft, seen, blocks, decay_weights(config.drafts, 4.0, device), objective=objective)


@pytest.mark.parametrize("rank, objective", [(0, DFLASH), (6, DSPARK)], ids=["DFlash", "DSpark"])
@forked
def test_the_step_runs_in_bf16_on_cuda_by_its_flash_calls_and_asks_the_device_for_nothing(rank, objective):
    config = tiny_config(markov_rank=rank)
    batch = tiny_batch([[12, 9, 14], [20]], width=36, bearing=0.9)
    blocks = some_blocks(BlockDraft(config), batch)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):  # a number asked of a fake tensor is an error
            result = loss_on("cuda", config, blocks.to("cuda"), 55, objective, torch.bfloat16)
    finally:
        torch.set_default_dtype(torch.float32)
    assert result.loss.device.type == "cuda" and result.loss.dtype == torch.float32
    assert result.correct.shape == result.loss_sum.shape == (config.drafts,)


def run_on_meta(length: int, anchors: int, block_size: int) -> None:
    """A forward and a backward."""
    config = replace(tiny_config(block_size=block_size), hidden_size=128, head_dim=32, intermediate_size=256)
    blocks = some_blocks(BlockDraft(config), tiny_batch([[length]], bearing=1.0), most=anchors)
    loss_on("meta", config, blocks.to("meta"), length, DFLASH).loss.backward()


def peak(*sizes: int) -> int:
    """Bytes of all tensors alive at once."""
    with LiveBytes() as memory:
        run_on_meta(*sizes)
    return memory.peak


def flops(*sizes: int) -> int:
    with Watch() as watch:
        run_on_meta(*sizes)
    return watch.rest.flops


def test_memory_is_linear_in_the_length_in_the_anchors_and_in_the_block(monkeypatch):
    monkeypatch.setitem(losses.CHUNK, "meta", 1 << 14)
    monkeypatch.setitem(attention.ROWS, "meta", 32)
    base = peak(2048, 128, 8)
    for its in ((4096, 128, 8), (2048, 256, 8), (2048, 128, 16), (4096, 256, 8)):
        assert math.log2(peak(*its) / base) < 1.1, its


def test_work_is_linear_in_each_of_them():
    base = flops(2048, 128, 8)
    for its in ((4096, 128, 8), (2048, 256, 8), (2048, 128, 16)):
        assert math.log2(flops(*its) / base) < 1.1, its
    assert base < flops(4096, 128, 8)
