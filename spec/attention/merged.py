"""The attention of training-time test: block 0 causally, and of each later step the one key made at the same position.

Block 0 is one flash call that returns its log-sum-exp; the diagonals are one score a step, merged exactly. The backward
gives the merged output and log-sum-exp to the flash backward of block 0 (a softmax's gradient over some of its keys
needs no more) and does the diagonals by hand.
"""

from collections.abc import Sequence

import torch

from spec.attention import block0
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
            scale = query.shape[-1] ** -0.5
            diagonals = (_dot(_grouped(query, key), key[:, :, None]).flatten(1) * scale for key in keys[1:])
            scores = torch.stack([lse, *diagonals])  # [k + 1, A, heads]
            lse = scores.logsumexp(0)
            p = (scores - lse).exp()
            merged = out.to(p.dtype) * p[0, ..., None]
            for value, share in zip(values[1:], p[1:], strict=True):
                _add_product(merged, share, value)
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
        grad_keys, grad_values = [block0_grads[0]], [block0_grads[1]]
        delta = _dot(grad, out)  # [A, heads]
        for key, value, share in zip(keys[1:], values[1:], p, strict=True):
            grad_share = _dot(_grouped(grad, value), value[:, :, None]).flatten(1)
            grad_score = share * (grad_share - delta) * query.shape[-1] ** -0.5  # [A, heads]
            _add_product(grad_query, grad_score, key)
            grad_keys.append(_sum_groups(grad_score, query, key))
            grad_values.append(_sum_groups(share, grad, value))
        return None, grad_query.to(query.dtype), *grad_keys, *grad_values


def _halves(keys_values: Sequence[torch.Tensor]) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]:
    middle = len(keys_values) // 2
    return keys_values[:middle], keys_values[middle:]


def _grouped(x: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """`[A, heads, ..]` as `[A, kv_heads, groups, ..]`: query head h reads key head `h // groups`. A view."""
    return x.unflatten(1, (key.shape[1], -1))


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Dot products along the last dimension, summed in fp32 or wider."""
    return (a * b).sum(-1, dtype=torch.promote_types(a.dtype, torch.float32))


def _add_product(total: torch.Tensor, factor: torch.Tensor, key: torch.Tensor) -> None:
    """Adds `factor [A, heads]` times each query head's key of `[A, kv_heads, D]` to `total [A, heads, D]`."""
    _grouped(total, key).addcmul_(_grouped(factor, key)[..., None], key[:, :, None].to(total.dtype))


def _sum_groups(factor: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """`factor [A, heads]` times `query [A, heads, D]`, summed over the heads that read one key: `[A, kv_heads, D]`."""
    return (_grouped(factor, key)[..., None] * _grouped(query, key)).sum(2).to(key.dtype)
