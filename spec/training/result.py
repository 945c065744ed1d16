"""What a training step gives back, whatever the method."""

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class StepResult:
    """Sums over this batch, nothing divided. `loss` has the gradient; the `[P]` tensors are for logs and counts.

    A method normalises over ranks and accumulated batches in one of two ways. Where the counts say all, they are
    learnt first (`Training.observe`), added up, and the weights that follow from them are given to the step. Where a
    row's weight follows from what the draft says, the gradient is of a sum, and to be divided by `weight`, the sum of
    the rows' weights over all of them.
    """

    loss: torch.Tensor  # [] fp32
    loss_sum: torch.Tensor  # [P] fp32, detached, unweighted
    correct: torch.Tensor  # [P] int64: the draft's first choice is right
    count: torch.Tensor  # [P] int64: rows that bear loss
    weight: torch.Tensor | None = None  # [] fp32
    terms: dict[str, torch.Tensor] = field(default_factory=dict)  # sums of the loss's parts, each [P] fp32
