"""Attention of queries that all see all of the keys, with its log-sum-exp, and its backward: one pair a device.

A forward gives `out [heads, R, D]` and `lse [heads, R]` (fp32 or wider); a backward takes them **after** whatever else
the caller merged into both, as those of `spec.attention.block0` do.
"""

import torch

from spec.attention import kernels


def forward(query, key, value) -> tuple[torch.Tensor, torch.Tensor]:
    """`query [heads, R, D]`, `key` and `value [heads, L, D]`, L at least 1 -> (out, lse) as above."""
    if query.device.type == "cpu":
        return _cpu_forward(query, key, value)
    if query.device.type in ("cuda", "meta") and query.dtype in (torch.bfloat16, torch.float16):
        return _flash_forward(query, key, value)
    return _explicit_forward(query, key, value)


def backward(grad, query, key, value, out, lse) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of query, key and value, given `grad` of the merged `out`, and the merged `lse`."""
    if query.device.type == "cpu":
        return _cpu_backward(grad, query, key, value, out, lse)
    if query.device.type in ("cuda", "meta") and query.dtype in (torch.bfloat16, torch.float16):
        return _flash_backward(grad, query, key, value, out, lse)
    return _explicit_backward(grad, query, key, value, out, lse)


def _cpu_forward(query, key, value):
    out, lse = kernels.cpu_flash(query[None], key[None], value[None], False)
    return out[0], lse[0]


def _cpu_backward(grad, query, key, value, out, lse):
    parts = (x[None] for x in (grad, query, key, value, out, lse))
    return tuple(x[0] for x in kernels.cpu_flash_backward(*parts, False))


# CUDA in half precision: PyTorch's varlen flash kernel over one sequence, which wants rows before heads.


def _flash_forward(query, key, value):
    parts = (x.transpose(0, 1) for x in (query, key, value))
    out, lse = kernels.flash(*parts, _lengths(query, key), causal=False)
    return out.transpose(0, 1), lse


def _flash_backward(grad, query, key, value, out, lse):
    parts = (x.transpose(0, 1) for x in (grad, query, key, value, out))
    grads = kernels.flash_backward(*parts, lse.contiguous(), _lengths(query, key), causal=False)
    return tuple(x.transpose(0, 1) for x in grads)


def _lengths(query, key) -> kernels.Lengths:
    """Of the one sequence. Made on the device: a copy from the host would wait for it."""
    ends = torch.arange(2, dtype=torch.int32, device=query.device)
    return kernels.Lengths(ends * query.shape[1], ends * key.shape[1], query.shape[1], key.shape[1])


# Any other device or precision: explicit scores. Callers have few queries at a time, so they stay linear in the keys.


def _explicit_forward(query, key, value):
    scores = _scores(query, key)
    lse = scores.logsumexp(-1)
    return scores.sub_(lse[..., None]).exp_().to(value.dtype) @ value, lse


def _explicit_backward(grad, query, key, value, out, lse):
    p = (_scores(query, key) - lse[..., None]).exp()  # [heads, R, L]
    delta = (grad * out).sum(-1, keepdim=True, dtype=p.dtype)
    grad_scores = (p * (grad @ value.mT - delta) * query.shape[-1] ** -0.5).to(query.dtype)
    return grad_scores @ key, grad_scores.mT @ query, p.to(grad.dtype).mT @ grad


def _scores(query, key):
    return (query @ key.mT).to(torch.promote_types(query.dtype, torch.float32)) * query.shape[-1] ** -0.5
