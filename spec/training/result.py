"""What a training step gives back, whatever the method."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class StepResult:
    """Sums over this batch, nothing divided. `loss` has the gradient; the `[P]` tensors are for logs and counts.

    `loss` is `sum_k weights[k] * loss_sum[k]`. To normalise over ranks and accumulated batches by the rows of each
    position, learn the counts first (`Training.observe`), add them up, and give the weights that follow from them.
    """

    loss: torch.Tensor  # [] fp32
    loss_sum: torch.Tensor  # [P] fp32, detached
    correct: torch.Tensor  # [P] int64: the draft's argmax is the target's
    count: torch.Tensor  # [P] int64: rows that bear loss
