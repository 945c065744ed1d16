"""The diagonals of training-time test: of each later step the one key made at the query's own position.

D is a head's width; a key head serves `heads / kv_heads` query heads and is never repeated. On a CPU one diagonal at a
time, which its caches hold; elsewhere all of them in one kernel, as there a launch costs more than a small tensor.
"""

from collections.abc import Sequence

import torch


def scores(query: torch.Tensor, keys: Sequence[torch.Tensor]) -> torch.Tensor:
    """`query [A, heads, D]` by each of k `keys [A, kv_heads, D]`, scaled by `D ** -0.5`: `[k, A, heads]`."""
    scale = query.shape[-1] ** -0.5
    if _one_by_one(query):
        return torch.stack([dot(_grouped(query, key), key[:, :, None]).flatten(1) * scale for key in keys])
    key = torch.stack(list(keys))[:, :, :, None]  # [k, A, kv_heads, 1, D]
    return dot(_grouped(query, keys[0]), key).flatten(2).mul_(scale)


def add_values(merged: torch.Tensor, shares: torch.Tensor, values: Sequence[torch.Tensor]) -> None:
    """Adds each of k `values [A, kv_heads, D]` times its `shares [k, A, heads]` to `merged [A, heads, D]`."""
    if _one_by_one(merged):
        for value, share in zip(values, shares, strict=True):
            _add_product(merged, share, value)
    else:
        merged += _weighted(shares, values)


def gradients(
    grad: torch.Tensor,
    query: torch.Tensor,
    delta: torch.Tensor,
    shares: torch.Tensor,
    keys: Sequence[torch.Tensor],
    values: Sequence[torch.Tensor],
    grad_query: torch.Tensor,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Those of the keys and of the values, and what `grad_query [A, heads, D]` lacks, added to it in place.

    `grad` of the merged output `[A, heads, D]`, `delta [A, heads]` its dot product with that output.
    """
    if not keys:
        return [], []
    scale = query.shape[-1] ** -0.5
    if not _one_by_one(query):
        value = torch.stack(list(values))[:, :, :, None]
        grad_scores = shares * (dot(_grouped(grad, values[0]), value).flatten(2) - delta) * scale  # [k, A, heads]
        grad_query += _weighted(grad_scores, keys)
        together = _sum_groups(grad_scores, query, keys[0]), _sum_groups(shares, grad, values[0])  # [k, A, kv_heads, D]
        return list(together[0].unbind()), list(together[1].unbind())
    grad_keys: list[torch.Tensor] = []
    grad_values: list[torch.Tensor] = []
    for key, value, share in zip(keys, values, shares, strict=True):
        grad_share = dot(_grouped(grad, value), value[:, :, None]).flatten(1)
        grad_score = share * (grad_share - delta) * scale  # [A, heads]
        _add_product(grad_query, grad_score, key)
        grad_keys.append(_sum_groups(grad_score, query, key))
        grad_values.append(_sum_groups(share, grad, value))
    return grad_keys, grad_values


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Dot products along the last dimension, summed in fp32 or wider."""
    return (a * b).sum(-1, dtype=torch.promote_types(a.dtype, torch.float32))


def _one_by_one(x: torch.Tensor) -> bool:
    return x.device.type == "cpu"


def _grouped(x: torch.Tensor, key: torch.Tensor, dim: int = 1) -> torch.Tensor:
    """`[A, heads, ..]` as `[A, kv_heads, groups, ..]`: query head h reads key head `h // groups`. A view."""
    return x.unflatten(dim, (key.shape[1], -1))


def _add_product(total: torch.Tensor, factor: torch.Tensor, key: torch.Tensor) -> None:
    """Adds `factor [A, heads]` times each query head's key of `[A, kv_heads, D]` to `total [A, heads, D]`."""
    _grouped(total, key).addcmul_(_grouped(factor, key)[..., None], key[:, :, None].to(total.dtype))


def _weighted(factors: torch.Tensor, keys: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum of k `keys [A, kv_heads, D]` times their `factors [k, A, heads]`: `[A, heads, D]`."""
    key = torch.stack(list(keys))[:, :, :, None]  # [k, A, kv_heads, 1, D]
    return (_grouped(factors, keys[0], 2)[..., None] * key).sum(0).flatten(1, 2)


def _sum_groups(factor: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """`factor [.., A, heads]` times `query [A, heads, D]`, summed over the heads of one key: `[.., A, kv_heads, D]`."""
    return (_grouped(factor, key, -1)[..., None] * _grouped(query, key)).sum(-2).to(key.dtype)
