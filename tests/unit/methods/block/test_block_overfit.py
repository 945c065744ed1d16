"""A block draft learns one fixed batch by heart, at every draft: no shift, mask or row is silently wrong."""

import pytest
import torch

from spec.methods.block.draft import BlockDraft
from spec.methods.block.losses import DFLASH, DSPARK, decay_weights
from spec.methods.block.step import observe, step_loss
from tests.tiny_blocks import fake_target, some_blocks, tiny_config
from tests.tiny_steps import tiny_batch


@pytest.mark.parametrize("rank, objective", [(0, DFLASH), (8, DSPARK)], ids=["DFlash", "DSpark"])
def test_a_fixed_batch_is_learnt_at_every_draft(rank, objective):
    torch.manual_seed(0)
    draft = BlockDraft(tiny_config(markov_rank=rank, hidden_size=64, head_dim=16, intermediate_size=128))
    batch = tiny_batch([[20, 14], [18]], width=36, bearing=1.0)
    target, blocks = fake_target(draft, batch), some_blocks(draft, batch)
    if rank:  # its distribution says what its text does
        for row, start, end in batch.documents.spans:
            target.last[row, start : end - 1] = target.head_weight[batch.input_ids[row, start + 1 : end]]
    seen = observe(draft, target, batch, keep_last=objective.l1 > 0)
    optimizer = torch.optim.AdamW(draft.parameters(), lr=3e-3, weight_decay=0.0)
    weights = decay_weights(draft.config.drafts, 4.0)
    for _ in range(500):
        result = step_loss(draft, seen, blocks, weights, objective=objective)
        accuracy = result.correct / result.count
        if accuracy.min() > 0.98:
            break
        (result.loss / result.weight).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len(accuracy) == draft.config.drafts and accuracy.min() > 0.95, accuracy
