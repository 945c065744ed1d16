"""The target's RMSNorms as one kernel each on a GPU.

transformers computes them by seven operators in eager mode, 65 times a forward of Llama 3.1 8B: 4 ms of memory traffic
by estimate. The kernel rounds once, after the weight, as the server's own does; transformers rounds before it as well.
"""

from types import MethodType
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel


def fuse_norms(model: PreTrainedModel) -> None:
    """Let every RMSNorm of `model` run as one kernel where there is one."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and _epsilon(module) is not None:
            module.forward = MethodType(_forward, module)  # type: ignore[method-assign]


def _epsilon(norm: Any) -> float | None:
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))  # Llama 4 calls it eps


def _forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    if hidden_states.is_cuda:
        return F.rms_norm(hidden_states, self.weight.shape, self.weight, _epsilon(self))
    return type(self).forward(self, hidden_states)
