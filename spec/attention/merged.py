"""The attention of training-time test: block 0 causally, and of each later step the one key made at the same position.

Block 0 is one flash call that returns its log-sum-exp; the diagonals are one score a step, merged exactly. The backward
gives the merged output and log-sum-exp to the flash backward of block 0 (a softmax's gradient over some of its keys
needs no more) and does the diagonals by hand.
"""

from collections.abc import Sequence

import torch

from spec.attention import block0, diagonals
from spec.attention.block0 import Queries


def ttt_attention(
    query: torch.Tensor, keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor], queries: Queries
) -> torch.Tensor:
    """Attention of step k = `len(keys) - 1`, scores scaled by `D ** -0.5`.

    `query [A, heads, D]`; `keys[0]` and `values[0] [N, kv_heads, D]` of all tokens, those of later steps
    `[A, kv_heads, D]` of the queries' own positions. All rotated. Returns `[A, heads, D]`.
    """
    return _TttAttention.apply(queries, query, *keys, *values)


class _TttAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, queries, query, *keys_values):
        keys, values = _halves(keys_values)
        out, lse = block0.forward(query, keys[0], values[0], queries)  # [A, heads, D], [A, heads]
        p = lse.new_empty(0, *lse.shape)  # [k, A, heads]: each diagonal's share of the softmax
        if len(keys) > 1:
            scores = torch.cat((lse[None], diagonals.scores(query, keys[1:])))  # [k + 1, A, heads]
            lse = scores.logsumexp(0)
            p = (scores - lse).exp()
            merged = out.to(p.dtype) * p[0, ..., None]
            diagonals.add_values(merged, p[1:], values[1:])
            out, p = merged.to(query.dtype), p[1:]
        ctx.queries = queries
        ctx.save_for_backward(query, out, lse, p, *keys, *values)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        query, out, lse, p, *keys_values = ctx.saved_tensors
        keys, values = _halves(keys_values)
        grad_query, *block0_grads = block0.backward(grad, query, keys[0], values[0], out, lse, ctx.queries)
        grad_query = grad_query.to(lse.dtype)
        delta = diagonals.dot(grad, out)  # [A, heads]
        later = diagonals.gradients(grad, query, delta, p, keys[1:], values[1:], grad_query)
        grad_keys, grad_values = ([first, *others] for first, others in zip(block0_grads, later, strict=True))
        return None, grad_query.to(query.dtype), *grad_keys, *grad_values


def _halves(keys_values: Sequence[torch.Tensor]) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]:
    middle = len(keys_values) // 2
    return keys_values[:middle], keys_values[middle:]
