"""How many operations a draft step needs, and how many a second this device does in one large product of matrices."""

import time

import torch

from spec.methods.eagle3.config import DraftConfig
from spec.methods.eagle3.step import Observation


def flops_of_step(config: DraftConfig, seen: Observation) -> float:
    """Multiplications and additions of the forward and the backward, of what cannot be left out.

    A linear layer takes 2 a weight and row forward and 4 backward. Recomputation counts as nothing.
    """
    hidden, steps = config.hidden_size, len(seen.wanted.bears)
    tokens, rows, answers = len(seen.input_ids), len(seen.queries.rows), len(seen.wanted.hidden)
    queries = config.num_attention_heads * config.head_dim
    qkv = hidden * (queries + 2 * config.num_key_value_heads * config.head_dim)
    others = queries * hidden + 3 * hidden * config.intermediate_size
    linears = 6 * (
        tokens * (3 * config.target_hidden_size * hidden + 2 * qkv)  # fc, and both halves of step 0's q, k and v
        + rows * ((steps - 1) * qkv + steps * others)
    )
    seen_keys = sum(
        (start - first) * (end - start) + (end - start) ** 2 // 2 for first, start, end in seen.queries.runs
    )
    attention = steps * seen_keys * queries * (4 + 10)  # two products forward, five backward
    head = 6 * hidden * config.draft_vocab_size * int(seen.wanted.bears.sum())
    target = 2 * config.target_hidden_size * answers * (config.vocab_size + config.draft_vocab_size)
    return float(linears + attention + head + target)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of the best of a few large products: what `share of peak` is a share of."""
    size = 8192 if device.type == "cuda" else 1536
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(6):
        _wait(device)
        started = time.perf_counter()
        a @ b
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
