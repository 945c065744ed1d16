"""What the decoder layers of all methods' drafts have in common: rotary positions and the gated MLP."""

from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding


class LayerSizes(Protocol):
    """The fields of a draft's config that its layers are made from."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def max_position_embeddings(self) -> int: ...
    @property
    def rope_parameters(self) -> dict[str, Any]: ...


class Rope:
    """Half-rotation RoPE in the Hugging Face layout, with transformers' own frequencies for every scaling type.

    Deliberately no module: a draft cast to bf16 must not round its frequencies.
    """

    def __init__(self, config: LayerSizes):
        rotary = LlamaRotaryEmbedding(
            LlamaConfig(
                hidden_size=config.num_attention_heads
                * config.head_dim,  # else heads that do not divide it are refused
                num_attention_heads=config.num_attention_heads,
                head_dim=config.head_dim,
                max_position_embeddings=config.max_position_embeddings,
                rope_parameters=dict(config.rope_parameters),
            )
        )
        self.inv_freq = rotary.inv_freq  # [D / 2] fp32
        self.scaling = rotary.attention_scaling

    def tables(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines `[.., 1, D / 2]` of `positions [..]`, computed in fp32, for rows of `[.., heads, D]`."""
        angles = positions[..., None, None].float() * self.inv_freq.to(positions.device)
        return (angles.cos() * self.scaling).to(dtype), (angles.sin() * self.scaling).to(dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates `x [.., heads, D]`: element d pairs with element d + D / 2."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Mlp(nn.Module):
    def __init__(self, config: LayerSizes):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
