"""How many operators a block draft's step hands to a GPU at Llama 3.1 8B's sizes: what a host has to launch."""

import pytest
import torch

from spec.methods import layers
from spec.methods.block.draft import BlockDraft
from spec.methods.block.losses import DFLASH, DSPARK, decay_weights
from spec.methods.block.step import Observation, step_loss
from tests.tiny_blocks import some_blocks, tiny_config
from tests.tiny_steps import tiny_batch
from tests.unit.methods.eagle3.test_operators import Count, FusedNorm

VOCAB, TOKENS, HIDDEN = 128_256, 2048, 4096
SIZES = {
    **{"heads": 32, "kv_heads": 8, "hidden_size": HIDDEN, "head_dim": 128, "intermediate_size": 14336},
    **{"vocab_size": VOCAB, "max_position_embeddings": 131_072, "num_hidden_layers": 5},
    **{"num_target_layers": 32, "feature_layers": (1, 8, 15, 22, 29)},
}


@pytest.mark.parametrize(
    ("own", "objective", "most"),
    [({"block_size": 16}, DFLASH, 4800), ({"block_size": 7, "markov_rank": 256}, DSPARK, 4100)],
    ids=["DFlash", "DSpark"],
)
def test_a_step_takes_no_more_operators_than_it_did(own, objective, most, monkeypatch):
    """On the meta device, with the operators of CUDA: 512 anchors in two documents, ten and eight groups of blocks."""
    monkeypatch.setattr(layers.LeanNorm, "forward", lambda self, x: FusedNorm.apply(x, self.weight))
    blocks = some_blocks(BlockDraft(tiny_config(**own)), tiny_batch([[TOKENS // 2] * 2], bearing=1.0), most=256)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            draft = BlockDraft(tiny_config(**SIZES, **own))
            draft.share_target(*torch.zeros(2, VOCAB, HIDDEN))
            ids, last = torch.zeros(TOKENS, dtype=torch.int64), torch.zeros(TOKENS, HIDDEN)
            seen = Observation(ids, torch.zeros_like(ids), torch.zeros(TOKENS, 5 * HIDDEN), last)
            weights = decay_weights(draft.config.drafts, 4.0, "meta")
            with Count() as count:
                step_loss(draft, seen, blocks.to("meta"), weights, objective=objective).loss.backward()
    finally:
        torch.set_default_dtype(torch.float32)
    assert most / 1.1 < count.number <= most
