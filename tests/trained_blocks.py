"""A block draft of a tiny random target, trained for seconds, until the target accepts some of what it says."""

import copy

import torch

from spec.evaluation.speculation import CachedTarget, greedy
from spec.methods.block.anchors import draw
from spec.methods.block.config import BlockDraftConfig
from spec.methods.block.draft import BlockDraft
from spec.methods.block.losses import Objective, decay_weights
from spec.methods.block.step import observe, step_loss
from spec.target.frozen import FrozenTarget
from spec.training.batch import collate

OBJECTIVE = Objective()


def block_draft(target: FrozenTarget, *, block_size: int, markov_rank: int = 0, seed: int = 1) -> BlockDraft:
    """An untrained draft whose tensors are all different, norms too; the mask token is the target's last."""
    torch.manual_seed(seed)
    config = BlockDraftConfig.for_target(
        target.text_config,
        layers=2,
        block_size=block_size,
        features=3,
        mask_token_id=target.vocab_size - 1,
        markov_rank=markov_rank,
    )
    draft = BlockDraft(config)
    for name, parameter in draft.named_parameters():
        if "norm" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
        if "markov" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    draft.share_target(target.embed_weight, target.head_weight)
    return draft


def train(draft: BlockDraft, target: FrozenTarget, asked: list[list[int]], *, steps: int, length: int) -> float:
    """Overfit `draft` to the target's own answers to `asked`; the share of first drafts that are right at the end."""
    reader = CachedTarget(copy.deepcopy(target))  # it changes the attention of what it reads
    answers = [greedy(reader, prompt, max_new_tokens=length, stop=frozenset()) for prompt in asked]
    masks = [[0] * len(prompt) + [1] * length for prompt in asked]
    rows = [[(prompt + answer, mask)] for prompt, answer, mask in zip(asked, answers, masks, strict=True)]
    batch, drafts = collate(rows), draft.config.drafts
    blocks = draw(batch.documents, batch.loss_mask, batch.row_ids, drafts=drafts, most=512, seed=0, epoch=0)
    seen = observe(draft, target, batch, keep_last=False)
    optimizer = torch.optim.AdamW(draft.parameters(), lr=3e-3)
    for _ in range(steps):
        result = step_loss(draft, seen, blocks, decay_weights(drafts, 4.0), objective=OBJECTIVE)
        assert result.weight is not None
        (result.loss / result.weight).backward()
        optimizer.step()
        optimizer.zero_grad()
    return float(result.correct[0] / result.count[0])
