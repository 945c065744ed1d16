"""What the decoder layers of the methods' drafts have in common: rotary positions, norms and the gated MLP."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from spec.errors import BadInput
from spec.methods.config import LayerSizes


def recomputed(function: Callable[..., Any], *given: Any) -> Any:
    """`function(*given)`, computed again for the backward. Nothing here is random: no generator is asked or set."""
    return checkpoint(function, *given, use_reentrant=False, preserve_rng_state=False)


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
        self.inv_freq: torch.Tensor = rotary.inv_freq  # [D / 2] fp32
        self.scaling = rotary.attention_scaling

    def tables(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and signed sines `[.., 1, D]` of `positions [..]`, for rows of `[.., heads, D]`; computed in fp32."""
        if self.inv_freq.device != positions.device:  # once: copied in every step, a GPU would be waited for
            self.inv_freq = self.inv_freq.to(positions.device, non_blocking=True)
        angles = positions[..., None, None].float() * self.inv_freq
        cos, sin = (angles.cos() * self.scaling).to(dtype), (angles.sin() * self.scaling).to(dtype)
        return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def check_frequencies(config: LayerSizes) -> None:
    """`BadInput` for a draft's own `rope_parameters` of which transformers makes no frequencies."""
    given = config.rope_parameters
    try:
        frequencies = Rope(config).inv_freq
    except Exception as error:  # transformers' validators raise many kinds
        raise BadInput(
            f"config: draft.rope_parameters={given!r}: no such RoPE: {str(error).splitlines()[0]}"
        ) from error
    if not 0 <= frequencies.min() <= frequencies.max() < math.inf:  # transformers only warns of a factor below 0
        raise BadInput(f"config: draft.rope_parameters={given!r}: not all of its frequencies are numbers from 0 on")


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates `x [.., heads, D]` by `Rope.tables`: element d pairs with element d + D / 2."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


class Mlp(nn.Module):
    def __init__(self, config: LayerSizes):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LeanMlp(Mlp):
    """The same, keeping no more than its input and both projections of it.

    The backward makes their product again, and writes its gradients over what it has done with.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _LeanDown.apply(self.gate_proj(x), self.up_proj(x), self.down_proj.weight)


class _LeanDown(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up, weight):
        ctx.save_for_backward(gate, up, weight)
        return F.linear(F.silu(gate).mul_(up), weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        gate, up, weight = ctx.saved_tensors
        silu = F.silu(gate)
        grad_weight = grad.flatten(0, -2).T @ (silu * up).flatten(0, -2)
        grad_product = grad @ weight
        grad_up = silu.mul_(grad_product)
        return torch.ops.aten.silu_backward(grad_product.mul_(up), gate), grad_up, grad_weight


class LeanNorm(nn.RMSNorm):
    """`nn.RMSNorm`, keeping its input alone where PyTorch has no fused kernel: on CPU it keeps three tensors more."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.is_cuda else _LeanNorm.apply(x, self.weight, self.eps)


class _LeanNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        inverse = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (wide * inverse).mul_(weight).to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, weight, inverse = ctx.saved_tensors
        normed = x.to(inverse.dtype) * inverse
        grad_weight = (grad * normed).flatten(0, -2).sum(0).to(weight.dtype)
        scaled = grad * weight
        mean = (scaled * normed).mean(-1, keepdim=True)
        return scaled.sub_(normed.mul_(mean)).mul_(inverse).to(x.dtype), grad_weight, None
