"""PyTorch's two varlen flash operators of CUDA as plain softmaxes: the same arguments, order of results and meaning.

After `_flash_attention_forward` and `_backward` in ATen's native_functions.yaml (torch 2.13.0): query `[N, heads, D]`,
key and value `[M, kv_heads, D]`, documents by `cu_seqlens`, log-sum-exps `[heads, N]`; the backward believes the output
and log-sum-exp that it is given.
"""

import torch


def _flash_attention_forward(query, key, value, cu_q, cu_k, longest_q, longest_k, dropout, causal, debug):
    assert (dropout, debug) == (0.0, False)
    out, lse = torch.empty_like(query), query.new_empty(query.shape[1], len(query), dtype=_wide(query))
    for rows, _, scores, _, v in _documents(query, key, value, cu_q, cu_k, longest_q, longest_k, causal):
        lse[:, rows] = scores.logsumexp(-1)
        out[rows] = (scores.softmax(-1) @ v).transpose(0, 1).to(out.dtype)
    return out, lse, None, None, None


def _flash_attention_backward(
    grad, query, key, value, out, lse, cu_q, cu_k, longest_q, longest_k, dropout, causal, seed, offset
):
    assert dropout == 0.0 and lse.is_contiguous() and lse.shape == (query.shape[1], len(query))
    grads = [torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)]
    scale = query.shape[-1] ** -0.5
    for rows, keys, scores, k, v in _documents(query, key, value, cu_q, cu_k, longest_q, longest_k, causal):
        p = (scores - lse[:, rows, None]).exp()  # [heads, T, T]
        q, g, o = (x[rows].to(p.dtype).transpose(0, 1) for x in (query, grad, out))
        grad_scores = p * (g @ v.transpose(1, 2) - (g * o).sum(-1, keepdim=True)) * scale
        by_head = grad_scores @ k, grad_scores.transpose(1, 2) @ q, p.transpose(1, 2) @ g
        for total, place, part in zip(grads, (rows, keys, keys), by_head, strict=True):
            total[place] = part.transpose(0, 1).unflatten(1, (total.shape[1], -1)).sum(2).to(total.dtype)
    return grads


def _documents(query, key, value, cu_q, cu_k, longest_q, longest_k, causal):
    """Each document's rows and keys, its scores `[heads, T, S]`, and its keys and values, one for each query head."""
    assert torch.equal(cu_q, cu_k) or not causal  # how the kernel aligns a causal mask of two lengths is not known here
    for lengths, longest, x in ((cu_q, longest_q, query), (cu_k, longest_k, key)):
        assert lengths.dtype == torch.int32 and longest == lengths.diff().max() and lengths[-1] == len(x)
    groups = query.shape[1] // key.shape[1]
    for (start, end), (first, last) in zip(*(x.unfold(0, 2, 1).tolist() for x in (cu_q, cu_k)), strict=True):
        rows, keys = slice(start, end), slice(first, last)
        q = query[rows].to(_wide(query)).transpose(0, 1)
        k, v = (x[keys].to(q.dtype).transpose(0, 1).repeat_interleave(groups, 0) for x in (key, value))
        scores = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5
        if causal:
            scores = scores.masked_fill(torch.ones(scores.shape[1:], dtype=torch.bool).triu(1), float("-inf"))
        yield rows, keys, scores, k, v


def _wide(x):
    return torch.promote_types(x.dtype, torch.float32)
