"""The loss of the drafts, fused: norm, the target's head, Markov bias, softmax and losses in chunks of blocks, their
gradients by hand.

Neither the draft's logits nor the target's ever exist for more than a chunk, and drafts that bear no loss are in none.
The place at which the target chooses a token serves every block that drafts it: neighbours are in one chunk, which
computes each place's distribution once.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from spec.attention.kernels import add_product, linear, product
from spec.methods.block.anchors import Blocks
from spec.methods.logits import gpu_chunks, softmax, wide, wide_type

Weighting = Literal["decay", "dpace"]
TERMS = ("ce", "l1", "confidence")

# Logits of the draft in a chunk; where no number is given, as many as keep a GPU busy. Twice as many where the target's
# distribution is asked for: more of a chunk's blocks then share a place of it, and fewer places are computed twice.
CHUNK = {"cpu": 4_000_000}
LOGIT_BYTES = 14  # on a GPU: in fp32 a logit, the target's and its probability; in bf16 the gradient
# Logits of both that are compared at once: on a CPU no more than its cache holds.
SLICE = {"cpu": 500_000, "cuda": 1 << 26}


@dataclass(frozen=True)
class Objective:
    """A draft's loss is the sum of the terms' shares of each; `weighting` says what it weighs among a block's others.

    `ce`: cross-entropy of the target's own next token. `l1`: `sum_v |q_v - p_v|` of the draft's distribution q and the
    target's p at the same place. `confidence`: binary cross-entropy of the confidence head's logit against the share
    `1 - L1 / 2` that both have in common, which is how often verification keeps the draft (DSpark, arXiv 2607.05147).

    `decay` weighs by the given weights alone. `dpace` (D-PACE, arXiv 2605.18810) multiplies them, which training gives
    as ones then, by how much a draft's being right is worth: with `q~ = (1 - smoothing) q + smoothing`, q the label's
    probability, that of draft j is the sum over m >= j of the products of q~ up to m. No gradient passes through it.
    """

    ce: float = 1.0
    l1: float = 0.0
    confidence: float = 0.0
    weighting: Weighting = "decay"
    smoothing: float = 0.5

    @property
    def compares(self) -> bool:
        """Whether any term asks for the target's distribution."""
        return bool(self.l1 or self.confidence)


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
    at = block - block[:1]
    smoothed = q.new_zeros(len(q), drafts)  # a row a block: as many as drafts are enough, their number is on the device
    smoothed[at, draft] = (1 - smoothing) * q + smoothing
    return smoothed.cumprod(1).flip(1).cumsum(1).flip(1)[at, draft]


class Head(NamedTuple):
    """The parameters that the loss has a gradient for; of DFlash the norm's alone."""

    norm: torch.Tensor  # [H]
    w1: torch.Tensor | None  # [V, r]
    w2: torch.Tensor | None  # [V, r]
    confidence: torch.Tensor | None  # [1, H + r]
    bias: torch.Tensor | None  # [1]


@dataclass(frozen=True)
class Wanted:
    """The M drafts that bear loss, and what they are compared with."""

    blocks: Blocks
    rows: torch.Tensor  # [M] int64, the row of all P * B that makes the draft
    labels: torch.Tensor  # [M] int64, the token that it should be
    previous: torch.Tensor  # [M] int64, the token before
    last: torch.Tensor | None  # [N, H] the target's hidden after its final norm; None where no term asks for it


class Loss(NamedTuple):
    total: torch.Tensor  # [] the sum over drafts of weight times loss, with the gradient
    weight: torch.Tensor  # [] the sum of the weights
    terms: torch.Tensor  # [terms, drafts] the sums of each term, unweighted
    correct: torch.Tensor  # [drafts] int64, how often the draft's argmax is its label


def block_loss(
    hidden: torch.Tensor,
    eps: float,
    own: Head,
    target_head: torch.Tensor,
    wanted: Wanted,
    weights: torch.Tensor,
    objective: Objective,
) -> Loss:
    """The loss of `hidden [P * B, H]` (pre-norm) under the draft's `own` head and the `target_head [V, H]`.

    `weights [drafts]` by place in the block. The gradient is computed at once, so there is one backward only.
    """
    return Loss(*_BlockLoss.apply(wanted, target_head, weights, objective, eps, torch.is_grad_enabled(), hidden, *own))


class _BlockLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, wanted, target_head, weights, objective, eps, with_gradient, hidden, *own):
        sums = _Sums(weights, (hidden, *own), with_gradient)
        most = _most(len(wanted.rows), len(target_head), len(weights), objective, hidden.device)
        for chunk in wanted.blocks.chunks(most):
            _add_chunk(sums, chunk, wanted, target_head, weights, objective, eps, hidden, Head(*own))
        ctx.grads = sums.grads
        ctx.kinds = [None if x is None else x.dtype for x in (hidden, *own)]
        ctx.mark_non_differentiable(sums.weight, sums.terms, sums.correct)
        return sums.loss, sums.weight, sums.terms, sums.correct

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, *_):
        # Handed over, not kept: a parameter takes what nobody else holds, and copies the rest, as large as W1 and W2.
        if ctx.grads is None:
            raise RuntimeError("a second backward through a block's loss: its gradients are given away in the first")
        grads, ctx.grads = ctx.grads, None
        scaled = (g if g is None else g.mul_(grad).to(kind) for g, kind in zip(grads, ctx.kinds, strict=True))
        return *[None] * 6, *scaled


def _most(total: int, vocabulary: int, drafts: int, objective: Objective, device: torch.device) -> int:
    """How many of `total` drafts a chunk holds at most."""
    if device.type in CHUNK:
        return max(1, CHUNK[device.type] * (2 if objective.compares else 1) // vocabulary)
    # A block is never cut: with one block's drafts more they come to no more chunks than these, and none is narrow.
    return -(-total // gpu_chunks(total, vocabulary, device, size=LOGIT_BYTES)) + drafts - 1


class _Sums:
    """What the chunks add up to, in fp32 or wider."""

    def __init__(self, weights, inputs, with_gradient):
        hidden = inputs[0]
        self.loss = torch.zeros((), dtype=wide_type(hidden), device=hidden.device)
        self.weight = torch.zeros_like(self.loss)
        self.terms = self.loss.new_zeros(len(TERMS), len(weights))
        self.correct = torch.zeros_like(weights, dtype=torch.int64)
        self.grads = [
            torch.zeros_like(x, dtype=wide_type(x)) if with_gradient and x is not None else None for x in inputs
        ]
        self.with_gradient = with_gradient


def _add_chunk(sums, chunk, wanted, target_head, weights, objective, eps, hidden, own):
    """Add a chunk of m drafts to `sums`. A function, so that its logits are gone before the next chunk's are made."""
    part = slice(chunk.begin, chunk.stop)
    rows, labels, previous = wanted.rows[part], wanted.labels[part], wanted.previous[part]
    block, draft, slot = wanted.blocks.block[part], wanted.blocks.draft[part], wanted.blocks.slot[part] - chunk.low

    x = wide(hidden[rows])  # [m, H]
    inverse = (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    normed = x * inverse
    y = (normed * own.norm).to(target_head.dtype)
    seen = y if own.w1 is None else torch.cat((y, own.w1[previous].to(y.dtype)), -1)  # [m, H] or [m, H + r]
    logits = linear(y, target_head)  # [m, V]
    w2 = None if own.w2 is None else own.w2.to(y.dtype)  # the draft's dtype need not be the target's
    if w2 is not None:
        add_product(logits, seen[:, y.shape[1] :], w2.T)

    of_label = logits.gather(-1, labels[:, None]).squeeze(-1)
    q, lse, choice = softmax(logits)  # in place
    losses = {"ce": lse - of_label}
    weight = weights[draft].to(q.dtype)
    if objective.weighting == "dpace":
        weight = weight * dpace((-losses["ce"]).exp(), block, draft, len(weights), objective.smoothing)
    p = None
    if objective.compares:
        p = torch.softmax(linear(wanted.last[wanted.blocks.chosen[chunk.low : chunk.high]], target_head), -1)
    losses["l1"] = _compare(q, p, slot, objective)  # q is the gradient of each draft's own loss by its logits now
    q.scatter_add_(-1, labels[:, None], q.new_full((), -objective.ce).expand(len(labels), 1))
    guess = kept = None
    if own.confidence is not None:
        guess = wide(F.linear(seen, own.confidence.to(y.dtype), own.bias.to(y.dtype)).squeeze(-1))
        kept = 1 - losses["l1"] / 2
        losses["confidence"] = F.binary_cross_entropy_with_logits(guess, kept, reduction="none")

    sums.weight += weight.sum()
    sums.correct.index_add_(0, draft, (choice == labels).long())
    for name, term in zip(TERMS, sums.terms, strict=True):
        if getattr(objective, name):
            sums.loss += getattr(objective, name) * (weight * losses[name]).sum()
            term.index_add_(0, draft, losses[name])
    if not sums.with_gradient:
        return

    # A draft's weight goes to the narrow factors instead of the logits.
    grad_hidden, *others = sums.grads
    grad_own, grad_logits = Head(*others), q.to(target_head.dtype)
    grad_y = product(grad_logits, target_head)
    grad_seen = grad_y if w2 is None else torch.cat((grad_y, product(grad_logits, w2)), -1)
    grad_seen *= weight[:, None]
    if w2 is not None:
        add_product(grad_own.w2, grad_logits.T, (seen[:, y.shape[1] :] * weight[:, None]).to(seen.dtype))
    if guess is not None:
        grad_guess = (objective.confidence * weight * (guess.sigmoid() - kept))[:, None]  # [m, 1]
        grad_own.confidence.addmm_(grad_guess.T, wide(seen))
        grad_own.bias.add_(grad_guess.sum(0))
        grad_seen.addmm_(grad_guess, wide(own.confidence))
    if own.w1 is not None:
        grad_own.w1.index_add_(0, previous, grad_seen[:, y.shape[1] :])
    grad_y = grad_seen[:, : y.shape[1]]
    grad_own.norm.add_((grad_y * normed).sum(0))
    grad_normed = grad_y * own.norm
    grad_hidden[rows] = inverse * (grad_normed - normed * (grad_normed * normed).mean(-1, keepdim=True))


def _compare(q: torch.Tensor, p: torch.Tensor | None, slot: torch.Tensor, objective: Objective) -> torch.Tensor | None:
    """`sum_v |q_v - p_v|` of `q [m, V]` and the rows `slot [m]` of `p [.., V]`, `[m]`, some drafts at a time.

    Overwrites `q` by the gradient of the terms `ce` (but for the label's own part) and `l1` by the logits.
    """
    if p is None:
        q.mul_(objective.ce)
        return None
    distances = []
    size = max(1, SLICE.get(q.device.type, SLICE["cuda"]) // q.shape[1])
    for its_q, its_slot in zip(q.split(size), slot.split(size), strict=True):
        difference = p.index_select(0, its_slot)
        torch.sub(its_q, difference, out=difference)
        distances.append(difference.abs().sum(-1))  # not by vector_norm, whose sums lose digits
        sign = difference.sign_()
        inner = (sign * its_q).sum(-1, keepdim=True)
        its_q.mul_(sign.sub_(inner).mul_(objective.l1).add_(objective.ce))
    return torch.cat(distances)
