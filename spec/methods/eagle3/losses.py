"""The loss of the drafted rows, fused: norm, head, softmax and loss in chunks of rows, their gradients by hand.

Neither the target's logits nor the draft's ever exist for more than a chunk. A target position's distribution serves
every step that drafts its token, so a chunk holds target positions, and computes each distribution once.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from spec.attention.kernels import add_product, linear, product
from spec.methods.logits import gpu_chunks, largest, softmax, wide, wide_type

# Logits in a chunk. Wide products are the fast ones, but on a CPU more than these gain nothing, and below 32 MiB the
# allocator gives a chunk's pages to the next one.
CHUNK = {"cpu": 8_000_000}
LOGIT_BYTES = 10  # on a GPU: a logit in fp32, its gradient in bf16, and a temporary one

WIDTH = {"cpu": 8000}  # tokens of the target's vocabulary at a time; else all

SMALLEST_ACCEPTANCE = 1e-30  # below it the logarithm's slope is cut off: exp underflows in fp32 there


@dataclass(frozen=True)
class Wanted:
    """The target's distributions at J positions, and the draft's rows that should match them."""

    hidden: torch.Tensor  # [J, H_target] after the target's final norm
    lse: torch.Tensor | None  # [J] fp32, of the logits over the target's whole vocabulary, where the objective needs it
    choice: torch.Tensor  # [J] int64, the target's argmax as a draft token
    rows: torch.Tensor  # [K, J] int64, the row of step k that drafts position j's token, among the K * A of all steps
    bears: torch.Tensor  # [K, J] bool, whether one does


# An objective: (logits [K, J, draft_vocab], wanted, its target logits [J, draft_vocab]) -> (losses [K, J], gradient of
# each loss by its logits, their argmax [K, J]). It may overwrite both of the logits it is given.
Objective = Callable[[torch.Tensor, Wanted, torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def cross_entropy(logits, wanted, target_logits):
    """Soft cross-entropy against the target's distribution renormalised on the draft's vocabulary (EAGLE-3)."""
    p = torch.softmax(target_logits, -1, out=target_logits)
    agreement = torch.einsum("jv,kjv->kj", p, logits)
    q, lse, choices = softmax(logits)
    return lse - agreement, q.sub_(p), choices


def hard_cross_entropy(logits, wanted, target_logits):
    """Cross-entropy against the target's own choice."""
    choice = wanted.choice.expand(logits.shape[:2])[..., None]
    agreement = logits.gather(-1, choice).squeeze(-1)
    q, lse, choices = softmax(logits)
    return lse - agreement, q.scatter_add_(-1, choice, q.new_full((), -1.0).expand(choice.shape)), choices


def negative_log_acceptance(logits, wanted, target_logits):
    """`-log(alpha)`, alpha the expected acceptance `sum_v min(p_v, q_v)` (LK losses, arXiv 2602.23881).

    p is not renormalised on the draft's vocabulary: what the draft cannot say can never be accepted.
    """
    p = (target_logits - wanted.lse[:, None]).exp_()
    q, _, choices = softmax(logits)
    alpha = torch.minimum(p, q).sum(-1, keepdim=True).clamp_min(SMALLEST_ACCEPTANCE)
    short = torch.where(q < p, q, 0)  # the tokens whose q a gradient can raise alpha with
    return -alpha.log().squeeze(-1), q.mul_(short.sum(-1, keepdim=True)).sub_(short).div_(alpha), choices


OBJECTIVES: dict[str, Objective] = {
    "ce": cross_entropy,
    "hard": hard_cross_entropy,
    "lk": negative_log_acceptance,
}


@torch.no_grad()
def argmax_and_lse(
    hidden: torch.Tensor, head: torch.Tensor, *, with_lse: bool = True
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The argmax (int64) and log-sum-exp (fp32) of `hidden [J, H] @ head.T [H, V]`, both `[J]`, by chunks of both.

    Without `with_lse` the second is None: it costs passes over all the logits.
    """
    width = min(len(head), WIDTH.get(hidden.device.type, len(head)))
    best, lses = [], []
    for rows in hidden.split(_chunk(len(hidden), width, hidden.device)):
        top = rows.new_full(rows.shape[:1], float("-inf"), dtype=wide_type(rows))
        argmax = torch.zeros_like(top, dtype=torch.int64)
        lse = top.clone()
        for start in range(0, len(head), width):
            logits = linear(rows, head[start : start + width])
            value, index = largest(logits)
            argmax = torch.where(value > top, index + start, argmax)
            top = torch.maximum(top, value)
            if with_lse:
                lse = torch.logaddexp(lse, value + logits.sub_(value[:, None]).exp_().sum(-1).log())
        best.append(argmax)
        lses.append(lse)
    return torch.cat(best), torch.cat(lses) if with_lse else None


def drafting_loss(
    hiddens: Sequence[torch.Tensor],
    norm: torch.nn.RMSNorm,
    head: torch.Tensor,
    target_head: torch.Tensor,
    wanted: Wanted,
    weights: torch.Tensor,
    objective: Objective,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The weighted loss of the K steps' `hiddens [A, H]` (pre-norm) under `norm` and `head [draft_vocab, H]`, against
    `wanted` under `target_head [draft_vocab, H_target]`.

    Returns `sum_k weights[k] * loss_k` (with the gradient, computed at once: one backward only), the sums `loss_k [K]`
    and how often the draft's argmax is the target's choice `[K]` (int64).
    """
    return _DraftingLoss.apply(
        wanted, target_head, weights, objective, norm.eps, torch.is_grad_enabled(), norm.weight, head, *hiddens
    )


class _DraftingLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, wanted, target_head, weights, objective, eps, with_gradient, norm, head, *hiddens):
        steps = len(hiddens)
        loss_sum = torch.zeros(steps, dtype=wide_type(head), device=head.device)
        correct = torch.zeros_like(loss_sum, dtype=torch.int64)
        hidden = torch.cat(hiddens)  # [K * A, H]
        grads = [torch.zeros_like(x, dtype=wide_type(x)) for x in (norm, head, hidden)] if with_gradient else []
        for part in _split(wanted, _chunk(len(wanted.hidden), steps * len(head), head.device, steps)):
            _add_chunk(part, target_head, weights, objective, eps, norm, head, hidden, loss_sum, correct, grads)
        if with_gradient:
            ctx.save_for_backward(*(g.to(x.dtype) for g, x in zip(grads, (norm, head, hidden), strict=True)))
            ctx.steps = steps
        loss = (weights * loss_sum).sum()
        ctx.mark_non_differentiable(loss_sum, correct)
        return loss, loss_sum, correct

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, *_):
        # In place: the gradients are as large as the head, and autograd refuses a second backward through them.
        norm, head, hidden = (saved.mul_(grad) for saved in ctx.saved_tensors)
        return None, None, None, None, None, None, norm, head, *hidden.chunk(ctx.steps)


def _add_chunk(
    part: Wanted, target_head, weights, objective, eps, norm, head, hidden, loss_sum, correct, grads
) -> None:
    """Add a chunk of target positions to `loss_sum [K]` and `correct [K]`, and to `grads` where there are any.

    A function, so that a chunk's logits are gone before the next one's are made.
    """
    rows = part.rows.flatten()  # [K * J]
    x = hidden.index_select(0, rows).view(*part.rows.shape, -1)  # [K, J, H]
    inverse = (wide(x).square().mean(-1, keepdim=True) + eps).rsqrt()
    normed = wide(x) * inverse
    y = (normed * norm).to(head.dtype)
    logits = linear(y.flatten(0, 1), head).view(*part.rows.shape, -1)  # [K, J, draft_vocab]
    losses, grad_logits, choices = objective(logits, part, linear(part.hidden, target_head))
    correct += ((choices == part.choice) & part.bears).sum(1)
    loss_sum += torch.where(part.bears, losses, 0).sum(1)
    if not grads:
        return
    grad_norm, grad_head, grad_hidden = grads
    grad_logits = grad_logits.to(head.dtype).flatten(0, 1)
    scale = (weights[:, None] * part.bears)[..., None]  # [K, J, 1], of the narrow factors instead of the logits
    add_product(grad_head, grad_logits.T, (y * scale).to(head.dtype).flatten(0, 1))
    grad_y = product(grad_logits, head).view(x.shape) * scale  # not by `linear`, which is no faster this way round
    grad_norm += (grad_y * normed).sum((0, 1))
    grad_normed = grad_y * norm
    grad_x = inverse * (grad_normed - normed * (grad_normed * normed).mean(-1, keepdim=True))
    grad_hidden.index_add_(0, rows, grad_x.flatten(0, 1))


def _chunk(total: int, logits: int, device: torch.device, rows: int = 1) -> int:
    """How many of `total` positions a chunk holds, each of `logits` in `rows` rows of a product.

    All chunks are as equal as can be: a narrow product is a slow one.
    """
    if total == 0:
        return 1
    if device.type in CHUNK:
        count = math.ceil(total / max(1, CHUNK[device.type] // logits))
    else:
        count = gpu_chunks(total, logits, device, size=LOGIT_BYTES, rows=rows)
    return math.ceil(total / count)


def _split(wanted: Wanted, size: int) -> Iterator[Wanted]:
    """`wanted` by chunks of `size` target positions."""
    for at in range(0, len(wanted.hidden), size):
        part = slice(at, at + size)
        yield replace(
            wanted,
            hidden=wanted.hidden[part],
            lse=None if wanted.lse is None else wanted.lse[part],
            choice=wanted.choice[part],
            rows=wanted.rows[:, part],
            bears=wanted.bears[:, part],
        )
