"""The block draft's step written the way the known trainers write it: what `spec.methods.block` is measured against.

All blocks' rows stand one after the other behind the context, `[length + anchors x block]` keys, repeated for grouped
queries, under one dense mask through SDPA; the logits of all rows over the whole vocabulary, and, for DSpark, the
target's of as many, in one piece each; a loss of all rows, those without a label masked out. That is SpecForge's DFlash
trainer where it does not use FlexAttention, and speculators' DSpark.
"""

import torch
from torch.nn import functional as F

from spec.methods.block.anchors import Blocks
from spec.methods.block.draft import BlockDraft
from spec.methods.block.losses import Objective
from spec.methods.block.step import Observation
from spec.methods.layers import rotate


def plain_loss(
    draft: BlockDraft, seen: Observation, blocks: Blocks, weights: torch.Tensor, objective: Objective
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The sum of weight times loss, the sum of weights, and `[drafts]` how often the draft's choice is the label.

    For a batch of one document.
    """
    config, anchors, device = draft.config, blocks.anchors, blocks.anchors.device
    length, size, drafts = len(seen.input_ids), config.block_size, config.drafts
    rows = torch.arange(size, device=device)
    positions = (anchors[:, None] + rows).flatten()  # [P * B]
    owner = torch.arange(len(anchors), device=device).repeat_interleave(size)
    context = torch.arange(length, device=device) < anchors.repeat_interleave(size)[:, None]
    mask = torch.cat((context, owner[:, None] == owner), 1)  # [P * B, length + P * B]

    def attend(query, key, value, context_key, context_value):
        groups = query.shape[-2] // key.shape[-2]
        keys, values = (
            torch.cat(both, 0).repeat_interleave(groups, 1)
            for both in ((context_key, key[0]), (context_value, value[0]))
        )
        query, keys, values = (x.transpose(0, 1)[None] for x in (query[0], keys, values))
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)[0].transpose(0, 1)[None]

    hidden = draft.block(seen.input_ids[anchors], size).flatten(0, 1)[None]  # [1, P * B, H]
    features = _norm(draft.fc(seen.aux), draft.hidden_norm)
    of_block = draft.rope.tables(positions[None], hidden.dtype)
    of_context = draft.rope.tables(seen.positions, hidden.dtype)
    for layer in draft.layers:
        hidden = _layer(layer, hidden, features, of_block, of_context, attend)
    assert draft.target_head is not None
    logits = F.linear(_norm(hidden[0], draft.norm), draft.target_head)  # [P * B, V]

    label = anchors[:, None] + rows + 1 - config.first_row  # [P, B], of each row
    draft_of_row = rows - config.first_row
    bears = (draft_of_row >= 0) & (draft_of_row < torch.tensor(blocks.labels, device=device)[:, None])  # [P, B]
    label, weight = label.clamp(max=length - 1).flatten(), (weights[draft_of_row.clamp(min=0)] * bears).flatten()
    if draft.markov_head is not None:
        logits = logits + draft.markov_head.markov_w2(draft.markov_head.markov_w1(seen.input_ids[label - 1]))
    logits = logits.float()
    loss = objective.ce * F.cross_entropy(logits, seen.input_ids[label], reduction="none")
    if objective.l1:
        with torch.no_grad():
            target_p = F.linear(seen.last[label - 1], draft.target_head).float().softmax(-1)  # [P * B, V]
        loss = loss + objective.l1 * (logits.softmax(-1) - target_p).abs().sum(-1)
    right = ((logits.argmax(-1) == seen.input_ids[label]).view_as(bears) & bears).sum(0)[-drafts:]
    return (weight * loss).sum(), weight.sum(), right


def _layer(layer, hidden, context, of_block, of_context, attend):
    """The decoder layer, by PyTorch's own operations one after the other."""
    attention, mlp = layer.self_attn, layer.mlp

    def heads(x, projection, norm=None, tables=()):
        x = projection(x).unflatten(-1, (-1, attention.head_dim))
        return x if norm is None else rotate(_norm(x, norm), *tables)

    x = _norm(hidden, layer.input_layernorm)
    attended = attend(
        heads(x, attention.q_proj, attention.q_norm, of_block),
        heads(x, attention.k_proj, attention.k_norm, of_block),
        heads(x, attention.v_proj),
        heads(context, attention.k_proj, attention.k_norm, of_context),
        heads(context, attention.v_proj),
    )
    hidden = hidden + attention.o_proj(attended.flatten(-2))
    x = _norm(hidden, layer.post_attention_layernorm)
    return hidden + mlp.down_proj(F.silu(mlp.gate_proj(x)) * mlp.up_proj(x))


def _norm(x, norm):
    return F.rms_norm(x, norm.normalized_shape, norm.weight, norm.eps)
