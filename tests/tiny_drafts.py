"""A draft of a tiny random target, trained for seconds, until the target accepts some of what it says."""

import copy
from typing import Any

import torch

from spec.evaluation.speculation import CachedTarget, greedy
from spec.methods.eagle3.config import DraftConfig
from spec.methods.eagle3.draft import EagleDraft
from spec.methods.eagle3.step import decay_weights, draft_loss
from spec.target.frozen import FrozenTarget
from spec.training.batch import collate

PROMPT_LENGTH = 10


def random_draft(
    target: FrozenTarget, draft_vocab_size: int | None = 128, *, seed: int = 1, **shape: Any
) -> EagleDraft:
    """An untrained draft whose tensors are all different, norms too, and whose vocabulary map has gaps, or is whole."""
    torch.manual_seed(seed)
    draft = EagleDraft(DraftConfig.for_target(target.text_config, draft_vocab_size, **shape))
    for name, parameter in draft.named_parameters():
        if "norm" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    set_vocabulary(draft, torch.randperm(target.vocab_size)[:draft_vocab_size])
    draft.share_target(target.embed_weight, target.head_weight)
    return draft


def set_vocabulary(draft: EagleDraft, tokens: torch.Tensor) -> None:
    tokens = tokens.sort().values
    t2d = torch.zeros(draft.config.vocab_size, dtype=torch.bool)
    t2d[tokens] = True
    draft.set_vocabulary(tokens - torch.arange(len(tokens)), t2d)


def prompts(count: int, *, seed: int = 11) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, 256, (count, PROMPT_LENGTH), generator=generator).tolist()


def train(draft: EagleDraft, target: FrozenTarget, asked: list[list[int]], *, steps: int, length: int) -> float:
    """Overfit `draft` to the target's own answers to `asked`; returns the last loss. Seconds."""
    reader = CachedTarget(copy.deepcopy(target))  # it changes the attention of what it reads
    answers = [greedy(reader, prompt, max_new_tokens=length, stop=frozenset()) for prompt in asked]
    said = torch.tensor(answers).flatten().unique()
    others = torch.tensor([token for token in range(draft.config.vocab_size) if token not in said.tolist()])
    set_vocabulary(draft, torch.cat([said, others])[: draft.config.draft_vocab_size])
    draft.share_target(target.embed_weight, target.head_weight)
    masks = [[0] * len(prompt) + [1] * length for prompt in asked]
    rows = [[(prompt + answer, mask)] for prompt, answer, mask in zip(asked, answers, masks, strict=True)]
    batch = collate(rows)
    optimizer = torch.optim.AdamW(draft.parameters(), lr=3e-3)
    for _ in range(steps):
        result = draft_loss(draft, target, batch, steps=3)
        (result.loss / result.count.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return float((result.loss_sum * decay_weights(3)).sum() / result.count.sum())
