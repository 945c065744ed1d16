"""Llama 4's mixture of experts with each token through its own experts only.

transformers 5 runs every token through every expert and zeroes what the router did not choose (`Llama4TextMoe`): 16
times the work for Scout, and 16 copies of the hidden states. Same numbers here, from one grouped product a matrix.
"""

from types import MethodType
from typing import Any

import torch
from torch.nn.functional import grouped_mm, linear
from transformers import PreTrainedModel
from transformers.models.llama4.modeling_llama4 import Llama4TextMoe


def route_experts(model: PreTrainedModel) -> None:
    """Let every mixture layer of `model` compute only what its router chose."""
    for module in model.modules():
        if isinstance(module, Llama4TextMoe):
            module.forward = MethodType(_routed_forward, module)  # type: ignore[method-assign]


def _routed_forward(self: Any, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`hidden_states [B, T, H]` -> `[B * T, H]` and router logits `[B * T, experts]`, as `Llama4TextMoe`."""
    flat = hidden_states.reshape(-1, self.hidden_dim)  # [N, H]
    logits = linear(flat, self.router.weight)
    top, chosen = logits.topk(self.top_k, dim=1)  # [N, k]
    scores = torch.sigmoid(top.float()).to(flat.dtype)
    # Llama 4 weighs what goes into an expert, not what comes out.
    weighed = (flat[:, None] * scores[..., None]).flatten(0, 1)  # [N * k, H]
    chosen = chosen.flatten()
    order = chosen.argsort(stable=True)
    ends = (chosen[:, None] == torch.arange(self.num_experts, device=chosen.device)).sum(0).cumsum(0).int()
    gate, up = grouped_mm(weighed[order], self.experts.gate_up_proj, offs=ends).chunk(2, dim=-1)
    came = grouped_mm(up * self.experts.act_fn(gate), self.experts.down_proj, offs=ends)  # [N * k, H]
    routed = torch.empty_like(came).index_copy_(0, order, came).view(*scores.shape, self.hidden_dim).sum(1)
    return self.shared_expert(flat) + routed, logits
