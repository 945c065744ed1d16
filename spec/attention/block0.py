"""Causal attention over block 0 that returns its log-sum-exp, and its backward: one pair of functions a device.

A forward gives `out [A, heads, D]` and `lse [A, heads]` (fp32 or wider); a backward takes them **after** whatever else
the caller merged into both, and gives the gradients of query, key and value. A key head serves `heads / kv_heads` query
heads and is never repeated. Nothing here grows with the square of the length.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from spec.attention import kernels

BLOCK = 128  # queries at a time where scores are made explicitly: BLOCK x length of them, per head


@dataclass(frozen=True)
class Queries:
    """Which of the N tokens are queries (A of them, ascending), and where their documents lie among the N."""

    runs: tuple[tuple[int, int, int], ...]  # (first, start, end): a document's first token, and a run of its queries
    rows: torch.Tensor  # [A] int64, the queries' indices among the N tokens
    cu_seqlens: torch.Tensor  # [documents + 1] int32
    longest: int  # tokens in the longest document

    @classmethod
    def of_runs(cls, runs: Sequence[tuple[int, int, int]], cu_seqlens: torch.Tensor, longest: int) -> "Queries":
        """The queries of `runs`, made on the host as `cu_seqlens` are."""
        parts = [torch.arange(start, end) for _, start, end in runs]
        rows = torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)
        return cls(tuple(runs), rows, cu_seqlens, longest)

    @property
    def lengths(self) -> kernels.Lengths:
        return kernels.Lengths(self.cu_seqlens, self.cu_seqlens, self.longest, self.longest)


def forward(query, key, value, queries: Queries) -> tuple[torch.Tensor, torch.Tensor]:
    """`query [A, heads, D]`, `key` and `value [N, kv_heads, D]` -> (out, lse) as above."""
    if query.device.type == "cpu":
        return _cpu_forward(query, key, value, queries)
    if query.device.type in ("cuda", "meta") and query.dtype in (torch.bfloat16, torch.float16):
        return _flash_forward(query, key, value, queries)
    return _explicit_forward(query, key, value, queries)


def backward(grad, query, key, value, out, lse, queries: Queries) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of query, key and value, given `grad` of the merged `out`, and the merged `lse`."""
    if query.device.type == "cpu":
        return _cpu_backward(grad, query, key, value, out, lse, queries)
    if query.device.type in ("cuda", "meta") and query.dtype in (torch.bfloat16, torch.float16):
        return _flash_backward(grad, query, key, value, out, lse, queries)
    return _explicit_backward(grad, query, key, value, out, lse, queries)


# CPU: PyTorch's own flash kernel. It aligns a causal mask to the first key, so a run that starts inside its document
# takes two calls: the keys before the run, all visible, and the run's own, causal.


def _cpu_forward(query, key, value, queries):
    out, lse = torch.empty_like(query), query.new_empty(query.shape[:2], dtype=_wide(query))
    at = 0
    for first, start, end in queries.runs:
        rows = slice(at, at := at + end - start)
        own, own_lse = _cpu_flash(query[rows], key[start:end], value[start:end], True)
        if start > first:
            before, before_lse = _cpu_flash(query[rows], key[first:start], value[first:start], False)
            merged = torch.logaddexp(own_lse, before_lse)
            own = own * (own_lse - merged).exp()[..., None] + before * (before_lse - merged).exp()[..., None]
            own_lse = merged
        out[rows], lse[rows] = own, own_lse
    return out, lse


def _cpu_backward(grad, query, key, value, out, lse, queries):
    grad_query, grad_key, grad_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
    at = 0
    for first, start, end in queries.runs:
        rows = slice(at, at := at + end - start)
        grad_query[rows] = 0
        for keys, causal in ((slice(start, end), True), (slice(first, start), False)):
            if keys.start < keys.stop:
                parts = kernels.cpu_flash_backward(
                    *(_heads_first(x) for x in (grad[rows], query[rows], key[keys], value[keys], out[rows])),
                    lse[rows].T[None],
                    causal,
                )
                for total, part in zip((grad_query[rows], grad_key[keys], grad_value[keys]), parts, strict=True):
                    total += part[0].transpose(0, 1)
    return grad_query, grad_key, grad_value


def _cpu_flash(query, key, value, causal: bool):
    out, lse = kernels.cpu_flash(_heads_first(query), _heads_first(key), _heads_first(value), causal)
    return out[0].transpose(0, 1), lse[0].T


def _heads_first(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(0, 1)[None]  # [1, heads, rows, D], a view


# CUDA in half precision: PyTorch's varlen flash kernel over whole documents. Positions that are no query get a query of
# zeros, whose output nobody reads and whose gradient is zero.


def _flash_forward(query, key, value, queries):
    whole = query.new_zeros(key.shape[0], *query.shape[1:]).index_copy(0, queries.rows, query)
    out, lse = kernels.flash(whole, key, value, queries.lengths)
    return out[queries.rows], lse.T[queries.rows]  # lse [heads, N] -> [A, heads]


def _flash_backward(grad, query, key, value, out, lse, queries):
    def whole(x):
        return x.new_zeros(key.shape[0], *x.shape[1:]).index_copy(0, queries.rows, x)

    grad_query, grad_key, grad_value = kernels.flash_backward(
        whole(grad),
        whole(query),
        key,
        value,
        whole(out),
        whole(lse).T.contiguous(),
        queries.lengths,
    )
    return grad_query[queries.rows], grad_key, grad_value


# Any other device or precision: explicit scores for a block of queries at a time.


def _explicit_forward(query, key, value, queries):
    out, lse = torch.empty_like(query), query.new_empty(query.shape[:2], dtype=_wide(query))
    for rows, keys, scores in _score_blocks(query, key, queries):
        block_lse = scores.logsumexp(-1)  # [kv_heads, groups, rows]
        mixed = torch.einsum("hgqk,khd->qhgd", (scores - block_lse[..., None]).exp().to(value.dtype), value[keys])
        out[rows] = mixed.flatten(1, 2)
        lse[rows] = block_lse.permute(2, 0, 1).flatten(1)
    return out, lse


def _explicit_backward(grad, query, key, value, out, lse, queries):
    grad_query, grad_key, grad_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
    for rows, keys, scores in _score_blocks(query, key, queries):
        p = (scores - _by_group(lse[rows, :, None], key).permute(1, 2, 0, 3)).exp()  # [kv_heads, groups, rows, keys]
        g = _by_group(grad[rows], key)  # [rows, kv_heads, groups, D]
        delta = _by_group((grad[rows] * out[rows]).sum(-1, keepdim=True), key).permute(1, 2, 0, 3)
        grad_value[keys] += torch.einsum("hgqk,qhgd->khd", p.to(g.dtype), g)
        grad_scores = p * (torch.einsum("qhgd,khd->hgqk", g, value[keys]) - delta) * query.shape[-1] ** -0.5
        grad_scores = grad_scores.to(query.dtype)
        grad_query[rows] = torch.einsum("hgqk,khd->qhgd", grad_scores, key[keys]).flatten(1, 2)
        grad_key[keys] += torch.einsum("hgqk,qhgd->khd", grad_scores, _by_group(query[rows], key))
    return grad_query, grad_key, grad_value


def _score_blocks(query, key, queries):
    """Yields (rows of queries, slice of keys, scores [kv_heads, groups, rows, keys]), masked causally."""
    at = 0
    for first, start, end in queries.runs:
        for begin in range(start, end, BLOCK):
            stop = min(begin + BLOCK, end)
            rows, keys = slice(at, at := at + stop - begin), slice(first, stop)
            scores = torch.einsum("qhgd,khd->hgqk", _by_group(query[rows], key), key[keys])
            scores = scores.to(_wide(query)) * query.shape[-1] ** -0.5
            future = torch.ones(scores.shape[2:], dtype=torch.bool, device=query.device).triu(begin - first + 1)
            yield rows, keys, scores.masked_fill_(future, float("-inf"))


def _by_group(x: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return x.unflatten(1, (key.shape[1], -1))  # [rows, heads, ..] -> [rows, kv_heads, groups, ..], a view


def _wide(x: torch.Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
