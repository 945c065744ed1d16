"""Clipping, and a gradient that is not finite, without the host waiting for either."""

import inspect
import math
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn
from torch.distributed.tensor import DTensor
from torchtune import config
from torchtune.config._utils import _get_component_from_path

from spec.errors import BadInput


def make_optimizer(cfg: DictConfig, parameters: Any, device: torch.device) -> torch.optim.Optimizer:
    """The optimizer of the settings `cfg`; on a GPU in one kernel, where it has that form and no other is asked for.

    Not by the settings: those decide a run's numbers and would part a run on a GPU from its resume elsewhere.
    """
    component = _get_component_from_path(cfg._component_)
    asked = {name for name in ("fused", "foreach") if cfg.get(name) is not None}
    has_kernel = device.type == "cuda" and "fused" in inspect.signature(component).parameters
    return config.instantiate(cfg, parameters, **({"fused": True} if has_kernel and not asked else {}))


class Gradients:
    """Clips a draft's gradients, and keeps the first of their norms that was not finite.

    After one, no update changes the draft: a fused optimizer is told so on the device and skips it, and `check` ends
    the run at the next log or save. Before any other optimizer's update the host looks itself.
    """

    def __init__(self, draft: nn.Module, optimizer: torch.optim.Optimizer, most: float | None, device: torch.device):
        """`most`: the norm that gradients are clipped to, or None."""
        self.draft, self.optimizer, self.most = draft, optimizer, most or math.inf
        self.broken = torch.zeros(2, dtype=torch.float64, device=device)  # the step and its norm, once there is one

    def clip(self, step: int) -> torch.Tensor:
        """The norm `[]` over all ranks before it was clipped, of optimizer step `step` (from 1 on)."""
        clipped = torch.nn.utils.clip_grad_norm_(self.draft.parameters(), self.most)
        norm = clipped.full_tensor() if isinstance(clipped, DTensor) else clipped
        now = torch.stack((torch.full_like(self.broken[0], step), norm.to(self.broken.dtype)))
        self.broken = torch.where((self.broken[0] == 0) & ~norm.isfinite(), now, self.broken)
        if all(
            group.get("fused") for group in self.optimizer.param_groups
        ):  # a checkpoint may have brought another form
            self.optimizer.found_inf = (self.broken[0] > 0).float()  # type: ignore[attr-defined]
        else:
            self.check()
        return norm

    def check(self) -> None:
        """`BadInput`, on every rank alike, once a gradient was NaN or infinite. Waits for the device."""
        step, value = self.broken.tolist()
        if step:
            error = BadInput(
                f"step {int(step)}: the gradient is {value}: lower optimizer.lr or raise "
                "lr_scheduler.num_warmup_steps; the checkpoints so far are good"
            )
            error.agreed = True
            raise error
