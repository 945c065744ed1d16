"""The loss of the drafts, fused: norm, the target's head, Markov bias, softmax and losses in chunks of blocks, their
gradients by hand.

Neither the draft's logits nor the target's ever exist for more than a chunk, and drafts that bear no loss are in none.
The place at which the target chooses a token serves every block that drafts it: neighbours are in one chunk, which
computes each place's distribution once.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F

from spec.methods.block.anchors import Blocks, Chunk
from spec.methods.eagle3.losses import _rows_of_chunk, _softmax, _wide, _wide_type, linear

Weighting = Literal["decay", "dpace"]
TERMS = ("ce", "l1", "confidence")


@dataclass(frozen=True)
class Objective:
    """A draft's loss is the sum of the terms' shares of each; `weighting` says what it weighs among a block's others.

    `ce`: cross-entropy of the target's own next token. `l1`: `sum_v |q_v - p_v|` of the draft's distribution q and the
    target's p at the same place. `confidence`: binary cross-entropy of the confidence head's logit against the share
    `1 - L1 / 2` that both have in common, which is how often verification keeps the draft (DSpark, arXiv 2607.05147).

    `decay` weighs by the given weights alone. `dpace` (D-PACE, arXiv 2605.18810) multiplies them by how much a draft's
    being right is worth: with `q~ = (1 - smoothing) q + smoothing`, q the label's probability, that of draft j is the
    sum over m >= j of the products of q~ up to m. No gradient passes through it.
    """

    ce: float = 1.0
    l1: float = 0.0
    confidence: float = 0.0
    weighting: Weighting = "decay"
    smoothing: float = 0.5


DFLASH = Objective()
DSPARK = Objective(ce=0.1, l1=0.9)


def decay_weights(drafts: int, decay: float, device: torch.device | str = "cpu") -> torch.Tensor:
    """`exp(-j / decay)` for each draft of a block, `[drafts]` fp32."""
    return torch.exp(-torch.arange(drafts, dtype=torch.float32, device=device) / decay)


def decay_of(block_size: int, markov_rank: int) -> float:
    """The published decay: DFlash's 7, 5, 4 for blocks of 16, 10, 8 (between them in proportion), DSpark's 4."""
    return 4.0 if markov_rank else float(np.interp(block_size, (8, 10, 16), (4, 5, 7)))


def dpace(q: torch.Tensor, block: torch.Tensor, draft: torch.Tensor, drafts: int, smoothing: float) -> torch.Tensor:
    """D-PACE's weights `[M]` of drafts whose labels have the probabilities `q [M]`, `draft [M]` of their `block [M]`.

    The blocks ascend by one; a block's drafts are its first ones, in order.
    """
    at = block - block[0]
    blocks = len(q)  # at least as many as there are: their number is on the device
    smoothed = q.new_zeros(blocks, drafts).index_put((at, draft), (1 - smoothing) * q + smoothing)
    return smoothed.cumprod(1).flip(1).cumsum(1).flip(1)[at, draft]


def block_loss(
    hidden: torch.Tensor,
    norm: torch.nn.RMSNorm,
    head: torch.Tensor,
    markov: tuple[torch.Tensor, torch.Tensor] | None,
    confidence: tuple[torch.Tensor, torch.Tensor] | None,
    wanted: "Wanted",
    weights: torch.Tensor,
    objective: Objective,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The weighted loss of `hidden [P * B, H]` (pre-norm) under `norm` and the target's `head [V, H]`.

    `markov`: W1 and W2, both `[V, r]`. `confidence`: its weight `[1, H + r]` and bias `[1]`. `weights [drafts]`.

    Returns the sum over drafts of weight times loss (with the gradient, computed at once: one backward only), the sum
    of these weights, each term's unweighted sums by draft `[terms, drafts]`, and how often the draft's argmax is its
    label `[drafts]` (int64).
    """
    parameters = (norm.weight, *(markov or ()), *(confidence or ()))
    return _BlockLoss.apply(
        wanted, head, weights, objective, norm.eps, markov is not None, torch.is_grad_enabled(), hidden, *parameters
    )


@dataclass(frozen=True)
class Wanted:
    """The M drafts that bear loss, and what they are compared with."""

    blocks: Blocks
    rows: torch.Tensor  # [M] int64, the row of P * B that makes the draft
    labels: torch.Tensor  # [M] int64, the token that it should be
    previous: torch.Tensor  # [M] int64, the token before
    last: torch.Tensor | None  # [N, H] the target's hidden after its final norm; None where no term asks for it


class _BlockLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, wanted, head, weights, objective, eps, has_markov, with_gradient, hidden, *parameters):
        sums = _Sums(wanted, weights, hidden, parameters, with_gradient)
        for chunk in wanted.blocks.chunks(_rows_of_chunk(len(head), head.device)):
            _add_chunk(sums, chunk, wanted, head, weights, objective, eps, has_markov, hidden, parameters)
        if with_gradient:
            ctx.save_for_backward(*(g.to(x.dtype) for g, x in zip(sums.grads, (hidden, *parameters), strict=True)))
        ctx.mark_non_differentiable(sums.weight, sums.terms, sums.correct)
        return sums.loss, sums.weight, sums.terms, sums.correct

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, *_):
        # In place: the gradients are as large as the Markov tables, and autograd refuses a second backward through them
        return *[None] * 7, *(saved.mul_(grad) for saved in ctx.saved_tensors)


class _Sums:
    """What the chunks add up to, fp32 or wider."""

    def __init__(self, wanted, weights, hidden, parameters, with_gradient):
        kind, drafts = _wide_type(hidden), len(weights)
        self.loss = torch.zeros((), dtype=kind, device=hidden.device)
        self.weight = torch.zeros_like(self.loss)
        self.terms = self.loss.new_zeros(len(TERMS), drafts)
        self.correct = torch.zeros(drafts, dtype=torch.int64, device=hidden.device)
        both = (hidden, *parameters) if with_gradient else ()
        self.grads = [torch.zeros_like(x, dtype=_wide_type(x)) for x in both]


def _add_chunk(
    sums: _Sums, chunk: Chunk, wanted: Wanted, head, weights, objective, eps, has_markov, hidden, parameters
) -> None:
    """Add a chunk of drafts to `sums`. A function, so that its logits are gone before the next chunk's are made."""
    norm, w1, w2, of_confidence, bias = _named(parameters, has_markov)
    part = slice(chunk.begin, chunk.stop)
    rows, labels, draft = wanted.rows[part], wanted.labels[part], wanted.blocks.draft[part]
    x = _wide(hidden[rows])  # [m, H]
    inverse = (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    normed = x * inverse
    y = (normed * norm).to(head.dtype)
    logits = _wide(linear(y, head))  # [m, V]
    if has_markov:
        before = w1[wanted.previous[part]]  # [m, r]
        logits = logits.addmm_(_wide(before), _wide(w2).T) if logits.dtype == w2.dtype else logits + before @ w2.T

    of_label = logits.gather(-1, labels[:, None]).squeeze(-1)
    q, lse, choice = _softmax(logits)
    ce = lse - of_label  # [m]
    weight = weights[draft].to(ce.dtype)
    if objective.weighting == "dpace":
        weight = weight * dpace((-ce).exp(), wanted.blocks.block[part], draft, len(weights), objective.smoothing)
    losses = [ce]
    if objective.l1 or objective.confidence:
        p = torch.softmax(_wide(linear(wanted.last[wanted.blocks.chosen[chunk.low : chunk.high]], head)), -1)
        far = torch.sub(q, p := p.index_select(0, wanted.blocks.slot[part] - chunk.low), out=p)
        l1 = torch.linalg.vector_norm(far, 1, -1)
        losses.append(l1)
    if objective.confidence:
        seen = torch.cat((y, before), -1)
        guess = _wide(F.linear(seen, of_confidence, bias).squeeze(-1))
        losses.append(F.binary_cross_entropy_with_logits(guess, 1 - l1 / 2, reduction="none"))

    shares = (objective.ce, objective.l1, objective.confidence)
    total = sum(share * loss for share, loss in zip(shares, losses, strict=False))
    sums.loss += (weight * total).sum()
    sums.weight += weight.sum()
    sums.correct.index_add_(0, draft, (choice == labels).long())
    for term, loss in zip(sums.terms, losses, strict=False):
        term.index_add_(0, draft, loss)
    if not sums.grads:
        return

    # The gradient of each draft's own loss by its logits; its weight goes to the narrow factors instead.
    if objective.l1:
        sign = far.sign_()
        inner = (sign * q).sum(-1, keepdim=True)
        grad_logits = sign.sub_(inner).mul_(objective.l1).add_(objective.ce).mul_(q)
    else:
        grad_logits = q.mul_(objective.ce)
    grad_logits.scatter_add_(-1, labels[:, None], q.new_full((), -objective.ce).expand(len(labels), 1))
    grad_logits = grad_logits.to(head.dtype)
    scale = weight[:, None]
    grad_y = _wide(grad_logits @ head) * scale
    grad_hidden, grad_norm, grad_w1, grad_w2, grad_of_confidence, grad_bias = (
        sums.grads[0],
        *_named(sums.grads[1:], has_markov),
    )
    if has_markov:
        grad_before = _wide(grad_logits @ w2) * scale
        scaled = (_wide(before) * scale).to(head.dtype)
        if grad_w2.dtype == scaled.dtype:
            grad_w2.addmm_(grad_logits.T, scaled)
        else:  # half precision: products of it, summed in fp32
            grad_w2 += grad_logits.T @ scaled
    if objective.confidence:
        grad_guess = (objective.confidence * weight * (guess.sigmoid() - (1 - l1 / 2)))[:, None]  # [m, 1]
        grad_of_confidence += grad_guess.T @ _wide(seen)
        grad_bias += grad_guess.sum(0)
        grad_seen = grad_guess * _wide(of_confidence)
        grad_y += grad_seen[:, : y.shape[-1]]
        grad_before += grad_seen[:, y.shape[-1] :]
    if has_markov:
        grad_w1.index_add_(0, wanted.previous[part], grad_before)
    grad_norm += (grad_y * normed).sum(0)
    grad_normed = grad_y * norm
    grad_x = inverse * (grad_normed - normed * (grad_normed * normed).mean(-1, keepdim=True))
    grad_hidden[rows] = grad_x  # each row makes one draft


def _named(parameters, has_markov: bool):
    """norm, W1, W2, the confidence head's weight and bias, None for what there is not."""
    norm, *others = parameters
    missing = [None] * (4 - len(others))
    return (norm, *others, *missing) if has_markov else (norm, None, None, *others, None, None)[:5]
