"""PyTorch's two varlen flash operators of CUDA as plain softmaxes: the same arguments, order of results and meaning.

After `_flash_attention_forward` and `_backward` in ATen's native_functions.yaml (torch 2.13.0): query `[N, heads, D]`,
key and value `[N, kv_heads, D]`, documents by `cu_seqlens`, log-sum-exps `[heads, N]`; the backward believes the output
and log-sum-exp that it is given.
"""

import torch


def _flash_attention_forward(query, key, value, cu_q, cu_k, longest_q, longest_k, dropout, causal, debug):
    assert (dropout, debug) == (0.0, False)
    out, lse = torch.empty_like(query), query.new_empty(query.shape[1], len(query), dtype=_wide(query))
    for rows, scores, _, v in _documents(query, key, value, cu_q, cu_k, longest_q, longest_k, causal):
        lse[:, rows] = scores.logsumexp(-1)
        out[rows] = (scores.softmax(-1) @ v).transpose(0, 1).to(out.dtype)
    return out, lse, None, None, None


def _flash_attention_backward(
    grad, query, key, value, out, lse, cu_q, cu_k, longest_q, longest_k, dropout, causal, seed, offset
):
    assert dropout == 0.0 and lse.is_contiguous() and lse.shape == (query.shape[1], len(query))
    grads = [torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)]
    scale = query.shape[-1] ** -0.5
    for rows, scores, k, v in _documents(query, key, value, cu_q, cu_k, longest_q, longest_k, causal):
        p = (scores - lse[:, rows, None]).exp()  # [heads, T, T]
        q, g, o = (x[rows].to(p.dtype).transpose(0, 1) for x in (query, grad, out))
        grad_scores = p * (g @ v.transpose(1, 2) - (g * o).sum(-1, keepdim=True)) * scale
        by_head = grad_scores @ k, grad_scores.transpose(1, 2) @ q, p.transpose(1, 2) @ g
        for total, part in zip(grads, by_head, strict=True):
            total[rows] = part.transpose(0, 1).unflatten(1, (total.shape[1], -1)).sum(2).to(total.dtype)
    return grads


def _documents(query, key, value, cu_q, cu_k, longest_q, longest_k, causal):
    """Each document's rows, its scores `[heads, T, T]`, and its keys and values, one for each query head."""
    assert torch.equal(cu_q, cu_k) and cu_q.dtype == torch.int32 and longest_q == longest_k
    assert causal and longest_q == cu_q.diff().max() and cu_q[-1] == len(query) == len(key)
    groups = query.shape[1] // key.shape[1]
    for start, end in zip(cu_q[:-1].tolist(), cu_q[1:].tolist(), strict=True):
        rows = slice(start, end)
        q = query[rows].to(_wide(query)).transpose(0, 1)
        k, v = (x[rows].to(q.dtype).transpose(0, 1).repeat_interleave(groups, 0) for x in (key, value))
        future = torch.ones(end - start, end - start, dtype=torch.bool).triu(1)
        yield rows, (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).masked_fill(future, float("-inf")), k, v


def _wide(x):
    return torch.promote_types(x.dtype, torch.float32)
