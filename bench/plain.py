"""The draft step written the way the known trainers write it: what `spec.methods.eagle3` is measured against.

Per step: one SDPA call over the keys of all steps under a dense mask `T x (k + 1) T`, keys repeated for grouped
queries, logits of every position, and from the target's full logits `[B, T, V]` again the argmax, the draft's part and
its softmax, shifted by a copy. That is the loop of EAGLE's `cnets.py`, and of SpecForge's `OnlineEagle3Model.forward`
before it computed the targets once for all steps, but for the attention, which is SDPA here and explicit scores there,
and the loss mask, which shifts with the targets as Automodel and speculators have it: so both contenders compute the
same loss.
"""

import torch
from torch.nn import functional as F

from spec.methods.eagle3.draft import EagleDraft
from spec.methods.layers import rotate
from spec.training.batch import Batch


def plain_loss(
    draft: EagleDraft, target, batch: Batch, *, steps: int, decay: float = 0.8
) -> tuple[torch.Tensor, torch.Tensor]:
    """`sum_k decay ** k * CE_k`, sums over loss-bearing rows, and `[K]` how often the draft's choice is the target's.

    For a batch of one document a row, no padding.
    """
    layer, attention = draft.midlayer, draft.midlayer.self_attn
    with torch.no_grad():
        features = target.features(batch.input_ids, batch.documents, draft.config.feature_layers)
        target_logits = _shifted(features.last @ target.head_weight.T)  # [B, T, V]
    input_ids, loss_mask = _shifted(batch.input_ids), _shifted(_shifted(batch.loss_mask))
    length = input_ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril()
    diagonal = torch.eye(length, dtype=torch.bool, device=input_ids.device)
    groups = layer.heads // layer.kv_heads
    hidden = draft.project_features(features.aux)  # [B, T, H]
    keys, values, correct, loss = [], [], [], hidden.new_zeros(())
    for k in range(steps):
        x = torch.cat((layer.input_layernorm(draft.embed(input_ids)), layer.hidden_norm(hidden)), dim=-1)
        cos, sin = layer.rope.tables(batch.documents.position_ids + k, x.dtype)
        query = rotate(attention.q_proj(x).unflatten(-1, (-1, layer.head_dim)), cos, sin).transpose(1, 2)
        key = rotate(attention.k_proj(x).unflatten(-1, (-1, layer.head_dim)), cos, sin).transpose(1, 2)
        value = attention.v_proj(x).unflatten(-1, (-1, layer.head_dim)).transpose(1, 2)
        keys.append(key.repeat_interleave(groups, 1))
        values.append(value.repeat_interleave(groups, 1))
        mask = torch.cat((causal, *[diagonal] * k), dim=1)  # [T, (k + 1) T]
        attended = F.scaled_dot_product_attention(query, torch.cat(keys, 2), torch.cat(values, 2), attn_mask=mask)
        hidden = layer.after_attention(hidden, attended.transpose(1, 2))
        with torch.no_grad():
            position_mask = draft.t2d[target_logits.argmax(-1)] & loss_mask
            target_p = target_logits[..., draft.t2d].float().softmax(-1)  # [B, T, draft_vocab]
        logits = draft.head(hidden)  # [B, T, draft_vocab]
        with torch.no_grad():
            correct.append(((logits.argmax(-1) == target_p.argmax(-1)) & position_mask).sum())
        log_q = logits.float().log_softmax(-1)  # [B, T, draft_vocab]
        plogp = target_p * log_q
        loss = loss - decay**k * (position_mask[..., None].int() * plogp).sum()
        input_ids, target_logits, loss_mask = _shifted(input_ids), _shifted(target_logits), _shifted(loss_mask)
    return loss, torch.stack(correct)


def _shifted(x: torch.Tensor) -> torch.Tensor:
    """`x [B, T, ..]` one to the left along T, zeros coming in: a copy."""
    return torch.cat((x[:, 1:], torch.zeros_like(x[:, :1])), dim=1)
