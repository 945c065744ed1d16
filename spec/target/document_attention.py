"""Attention of the frozen target over packed documents, plugged into transformers by name.

Each document attends to itself alone, causally, and, where a layer's attention is chunked (Llama 4's RoPE layers), only
within its chunk: a chunk is a shorter document. No mask is ever built, so memory stays linear in the length.
"""

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from spec.attention import kernels
from spec.attention.documents import Documents

NAME = "sgl_spec_documents"


def document_attention(
    module: nn.Module,
    query: torch.Tensor,  # [B, heads, T, D]
    key: torch.Tensor,  # [B, kv_heads, T, D]
    value: torch.Tensor,  # [B, kv_heads, T, D]
    attention_mask: None,
    *,
    scaling: float,
    documents: Documents,
    **_,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each document; zero on padding. Returns [B, T, heads, D].

    On CUDA in bf16 or fp16 one flash call serves all documents; elsewhere it is one SDPA call for each (whose flash
    kernel on CPU takes grouped heads too; CUDA in fp32 builds `T x T` scores and is for tests).
    """
    if getattr(module, "attn_temperature_tuning", False) and not module.use_rope:
        query = query * _temperature(module, documents).to(query.dtype)
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        return _flash(query, key, value, scaling, documents), None
    out = query.new_zeros(query.shape).transpose(1, 2)  # [B, T, heads, D]
    for row, start, end in documents.spans:
        part = (slice(row, row + 1), slice(None), slice(start, end))
        attended = nn.functional.scaled_dot_product_attention(
            query[part], key[part], value[part], is_causal=True, scale=scaling, enable_gqa=True
        )
        out[row, start:end] = attended[0].transpose(0, 1)
    return out, None


def _flash(query, key, value, scaling: float, documents: Documents) -> torch.Tensor:
    batch, heads, length, dim = query.shape
    padded = len(documents.tokens) < batch * length

    def packed(x: torch.Tensor) -> torch.Tensor:
        flat = x.transpose(1, 2).reshape(batch * length, x.shape[1], dim)
        return flat[documents.tokens] if padded else flat

    ends, longest = documents.cu_seqlens, max(documents.lengths)
    lengths = kernels.Lengths(ends, ends, longest, longest)
    attended, _ = kernels.flash(packed(query), packed(key), packed(value), lengths, scale=scaling)  # [N, heads, D]
    if padded:
        attended = attended.new_zeros(batch * length, heads, dim).index_copy(0, documents.tokens, attended)
    return attended.view(batch, length, heads, dim)


def _temperature(module: Any, documents: Documents) -> torch.Tensor:
    """What Llama 4's temperature on NoPE layers lacks for packed rows, `[B, 1, T, 1]`.

    transformers scales each query by its place in the row; in the model it is the place in the document
    (`Llama4TextAttention.forward`). The two are equal below `floor_scale` tokens and in rows of one document.
    """
    places = torch.arange(documents.position_ids.shape[1], device=documents.position_ids.device)

    def scale(positions: torch.Tensor) -> torch.Tensor:
        return torch.log1p(torch.floor((positions.float() + 1.0) / module.floor_scale)) * module.attn_scale + 1.0

    return (scale(documents.position_ids) / scale(places))[:, None, :, None]


AttentionInterface.register(NAME, document_attention)
