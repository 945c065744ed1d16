"""The training step of the draft: K steps of training-time test, and their loss.

At position i, step k: the draft reads the embedding of token i+1+k and, at k = 0, the target's features of position i,
later its own pre-norm hidden of step k-1; it predicts token i+2+k from the target's distribution at i+1+k. The step
bears loss where token i+2+k does, the target's own choice there is in the draft's vocabulary, and all of it lies in
i's document.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional as F

from spec.models.draft import EagleDraft
from spec.training.batch import Batch

Objective = Literal["ce", "lk", "hard"]


@dataclass(frozen=True)
class StepResult:
    """Sums over this batch, nothing divided. `loss` has the gradient; the `[K]` tensors are for logs and counts.

    `loss` is `sum_k weights[k] * loss_sum[k]`. To normalise over ranks and accumulated batches by the rows of each
    step, learn the counts first (`observe`), add them up, and give `weights = decay**k / count[k]`.
    """

    loss: torch.Tensor  # [] fp32
    loss_sum: torch.Tensor  # [K] fp32, detached
    correct: torch.Tensor  # [K] int64: the draft's argmax is the target's
    count: torch.Tensor  # [K] int64: rows that bear loss


@dataclass(frozen=True)
class Observation:
    """What the frozen target says of a batch; all that a step needs of it. No gradient reaches it."""

    batch: Batch
    steps: int
    aux: torch.Tensor  # [B, T, 3 * H_target]
    last: torch.Tensor  # [B, T, H_target]
    bears: torch.Tensor  # [K, B, T] bool: position i bears loss at step k
    head_weight: torch.Tensor  # [V, H_target]

    @property
    def count(self) -> torch.Tensor:
        return self.bears.sum((1, 2))  # [K] int64


def decay_weights(steps: int, decay: float = 0.8, device: torch.device | str = "cpu") -> torch.Tensor:
    """`decay ** k` for each step, `[K]` fp32 (EAGLE-3 reference trainers: 0.8)."""
    return decay ** torch.arange(steps, dtype=torch.float32, device=device)


@torch.no_grad()
def observe(draft: EagleDraft, target, batch: Batch, *, steps: int = 7) -> Observation:
    """Runs the frozen target over `batch` and finds the rows that bear loss at each step."""
    aux, last = target.features(batch.input_ids, batch.documents)
    choice = (last @ target.head_weight.T).argmax(-1)  # [B, T]
    ids = batch.documents.document_ids
    bears = []
    for k in range(steps):
        same = (_shifted(ids, 2 + k, -1) == ids) & (ids >= 0)
        bears.append(_shifted(batch.loss_mask, 2 + k, False) & _shifted(draft.t2d[choice], 1 + k, False) & same)
    return Observation(batch, steps, aux, last, torch.stack(bears), target.head_weight)


def draft_loss(
    draft: EagleDraft,
    target,
    batch: Batch,
    *,
    steps: int = 7,
    decay: float = 0.8,
    objective: Objective = "ce",
    checkpoint_steps: bool = False,
) -> StepResult:
    """The whole step in one call, weighted by `decay ** k`: `observe`, then `step_loss`."""
    observation = observe(draft, target, batch, steps=steps)
    weights = decay_weights(steps, decay, batch.input_ids.device)
    return step_loss(draft, observation, weights, objective=objective, checkpoint_steps=checkpoint_steps)


def step_loss(
    draft: EagleDraft,
    observation: Observation,
    weights: torch.Tensor,
    *,
    objective: Objective = "ce",
    checkpoint_steps: bool = False,
) -> StepResult:
    """The loss of the draft against `observation`, each step's sum times `weights[k]`.

    Runs inside `draft(...)`, so that an FSDP2 draft gathers its parameters once for all steps.
    """
    loss, loss_sum, correct = draft(_unroll, observation, weights, objective, checkpoint_steps)
    return StepResult(loss, loss_sum, correct, observation.count)


def _unroll(draft: EagleDraft, seen: Observation, weights: torch.Tensor, objective: str, checkpoint_steps: bool):
    batch, ids = seen.batch, seen.batch.documents.document_ids
    length = ids.shape[1]
    block0 = (ids[:, :, None] == ids[:, None, :]) & torch.ones(
        length, length, dtype=torch.bool, device=ids.device
    ).tril()
    keys: list[torch.Tensor] = []
    values: list[torch.Tensor] = []

    def attend(query, key, value):  # [B, T, heads, D]
        groups = query.shape[2] // key.shape[2]
        keys.append(key.repeat_interleave(groups, 2))
        values.append(value.repeat_interleave(groups, 2))
        scores = [torch.einsum("bqhd,bkhd->bhqk", query, keys[0]).masked_fill(~block0[:, None], -1e30)]
        scores += [torch.einsum("bqhd,bqhd->bhq", query, k)[..., None] for k in keys[1:]]
        p = (torch.cat(scores, -1) * query.shape[-1] ** -0.5).softmax(-1)
        out = torch.einsum("bhqk,bkhd->bqhd", p[..., :length], values[0])
        for j, v in enumerate(values[1:]):
            out = out + p[..., length + j].transpose(1, 2)[..., None] * v
        return out

    hidden = draft.project_features(seen.aux)
    target_logits = (seen.last @ seen.head_weight.T).float()[..., draft.draft_tokens()]
    sums, corrects = [], []
    for k in range(seen.steps):
        embeds = draft.embed(_shifted(batch.input_ids, 1 + k, 0))
        hidden = draft.midlayer(embeds, hidden, batch.documents.position_ids + k, attend)
        rows = seen.bears[k]
        logits = draft.head(hidden[rows]).float()
        wanted = _shifted(target_logits, 1 + k, 0.0)[rows]
        if objective != "ce":
            raise NotImplementedError(objective)
        sums.append(-(wanted.softmax(-1) * F.log_softmax(logits, -1)).sum())
        corrects.append((logits.argmax(-1) == wanted.argmax(-1)).sum())
    loss_sum = torch.stack(sums)
    return (loss_sum * weights).sum(), loss_sum.detach(), torch.stack(corrects)


def _shifted(x: torch.Tensor, by: int, fill) -> torch.Tensor:
    """`x [B, T, ..]` moved left along T, `fill` coming in."""
    out = torch.full_like(x, fill)
    out[:, : x.shape[1] - by] = x[:, by:]
    return out
