"""The training step of a block draft: the hidden states of all blocks in one forward, and the loss of their drafts.

A block's anchor lies at position a of its document. Its rows see the target's features of the tokens before a, and each
other; draft j should be token a + 1 + j, which the target chose at a + j.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from spec.attention.blocks import block_attention, group
from spec.methods.block.anchors import Blocks
from spec.methods.block.draft import BlockDraft
from spec.methods.block.losses import TERMS, Head, Loss, Objective, Wanted, block_loss
from spec.methods.layers import recomputed
from spec.training.batch import Batch
from spec.training.result import StepResult


@dataclass(frozen=True)
class Observation:
    """What the frozen target says of a batch: the same in every epoch. N are the batch's tokens without padding."""

    input_ids: torch.Tensor  # [N] int64
    positions: torch.Tensor  # [N] int64, in each document
    aux: torch.Tensor  # [N, K * H]
    last: torch.Tensor | None  # [N, H] after the final norm; None where no term of the loss asks for it


@torch.no_grad()
def observe(draft: BlockDraft, target, batch: Batch, *, keep_last: bool) -> Observation:
    """Runs the frozen target over `batch`. `keep_last`: for a loss that compares distributions."""
    documents = batch.documents
    features = target.features(batch.input_ids, documents, draft.config.feature_layers)
    tokens = documents.tokens  # [N]
    return Observation(
        batch.input_ids.flatten()[tokens],
        documents.position_ids.flatten()[tokens],
        features.aux.flatten(0, 1)[tokens],
        features.last.flatten(0, 1)[tokens] if keep_last else None,
    )


def step_loss(
    draft: BlockDraft,
    observation: Observation,
    blocks: Blocks,
    weights: torch.Tensor,
    *,
    objective: Objective,
    checkpoint_layers: bool = False,
) -> StepResult:
    """The loss of the draft's `blocks` of `observation`, `weights [drafts]` by place in the block; one backward only.

    Runs inside `draft(...)`, so that an FSDP2 draft gathers its parameters. `checkpoint_layers` keeps a layer's input
    alone and computes the rest again in the backward.
    """
    loss: Loss = draft(_drafts, observation, blocks, weights, objective, checkpoint_layers)
    shares = {name: getattr(objective, name) for name in TERMS}
    terms = {name: its for name, its in zip(TERMS, loss.terms, strict=True) if shares[name]}
    loss_sum = torch.stack([shares[name] * its for name, its in terms.items()]).sum(0)
    return StepResult(loss.total, loss_sum, loss.correct, blocks.count, loss.weight, terms)


def _drafts(
    draft: BlockDraft,
    seen: Observation,
    blocks: Blocks,
    weights: torch.Tensor,
    objective: Objective,
    checkpoint_layers: bool,
) -> Loss:
    config = draft.config
    if draft.target_head is None:
        raise RuntimeError("share_target() comes before the first step")
    hidden = hidden_of_blocks(draft, seen, blocks, checkpoint_layers)
    token = blocks.anchors[blocks.block] + blocks.draft  # [M], the one before the draft's
    wanted = Wanted(
        blocks,
        rows=blocks.block * config.block_size + config.first_row + blocks.draft,
        labels=seen.input_ids[token + 1],
        previous=seen.input_ids[token],
        last=seen.last,
    )
    return block_loss(
        hidden.flatten(0, 1),
        config.rms_norm_eps,
        _own_head(draft, objective),
        draft.target_head,
        wanted,
        weights,
        objective,
    )


def _own_head(draft: BlockDraft, objective: Objective) -> Head:
    markov, confidence = draft.markov_head, draft.confidence_head if objective.confidence else None
    return Head(
        draft.norm.weight,
        markov.markov_w1.weight if markov else None,
        markov.markov_w2.weight if markov else None,
        confidence.proj.weight if confidence else None,
        confidence.proj.bias if confidence else None,
    )


def hidden_of_blocks(
    draft: BlockDraft, seen: Observation, blocks: Blocks, checkpoint_layers: bool = False
) -> torch.Tensor:
    """The blocks' hidden states after the last layer, before the norm, `[P, B, H]`."""
    rows, device = draft.config.block_size, blocks.anchors.device
    context = draft.context(seen.aux)  # [N, H]
    hidden = draft.block(seen.input_ids[blocks.anchors], rows)  # [P, B, H]
    positions = seen.positions[blocks.anchors][:, None] + torch.arange(rows, device=device)  # [P, B]
    of_block = draft.rope.tables(positions, hidden.dtype)
    of_context = draft.rope.tables(seen.positions, hidden.dtype)
    groups = group(blocks.firsts, blocks.places, rows, device)
    attend: Any = partial(block_attention, anchors=blocks.anchors, groups=groups)
    for layer in draft.layers:
        arguments = (hidden, context, of_block, of_context, attend)
        hidden = recomputed(layer, *arguments) if checkpoint_layers else layer(*arguments)
    return hidden
