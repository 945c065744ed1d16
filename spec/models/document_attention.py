"""Attention of the frozen target over packed documents, plugged into transformers by name.

Each document attends to itself alone, causally, and where a layer's attention is chunked (Llama 4's RoPE layers) only
within its chunk. No mask is ever built: a chunk is a shorter span, and every span is one causal call.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface

NAME = "sgl_spec_documents"


def document_attention(
    module: nn.Module,
    query: torch.Tensor,  # [B, heads, T, D]
    key: torch.Tensor,  # [B, kv_heads, T, D]
    value: torch.Tensor,  # [B, kv_heads, T, D]
    attention_mask: None,
    *,
    scaling: float,
    documents,
    spans: list[tuple[int, int, int]],
    **_,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each span of (row, start, end); zero on padding. Returns [B, T, heads, D]."""
    out = query.new_zeros(query.shape[0], query.shape[2], query.shape[1], query.shape[3])
    for row, start, end in spans:
        part = slice(start, end)
        attended = F.scaled_dot_product_attention(
            query[row : row + 1, :, part],
            key[row : row + 1, :, part],
            value[row : row + 1, :, part],
            is_causal=True,
            scale=scaling,
            enable_gqa=True,
        )
        out[row, part] = attended[0].transpose(0, 1)
    return out, None


AttentionInterface.register(NAME, document_attention)
