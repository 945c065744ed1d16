"""A fixed question to a draft, and its answer: damage that names and shapes do not show changes the answer.

The question is the method's. Its numbers come from a seed, not from a target: the check runs anywhere, without the
target's weights.
"""

from typing import Any

import torch

SEED = 3503
TOP = 8  # largest logits kept of a position
TOLERANCE = 2e-4  # of the largest logit; fp32 on different machines differs by 1e-5 of it


def describe(logits: torch.Tensor) -> dict[str, Any]:
    """What `draft.json` keeps of an answer."""
    top = logits.float().topk(min(TOP, logits.shape[-1]))
    return {
        "seed": SEED,
        "positions": len(logits),
        "top_ids": top.indices.tolist(),
        "top_values": [[float(f"{value:.7g}") for value in row] for row in top.values.tolist()],
        "logsumexp": [float(f"{value:.7g}") for value in logits.float().logsumexp(-1).tolist()],
    }


def difference(expected: dict[str, Any], logits: torch.Tensor) -> str | None:
    """Where an answer differs from a kept one by more than rounding, in words; None where it does not."""
    if (expected["seed"], expected["positions"]) != (SEED, len(logits)):
        return "draft.json keeps another version's probe"
    kept = torch.tensor(expected["top_values"])
    scale = kept.abs().max().item()
    off = (logits.gather(1, torch.tensor(expected["top_ids"])) - kept).abs().amax(1)  # [positions]
    off = torch.maximum(off, (logits.logsumexp(-1) - torch.tensor(expected["logsumexp"])).abs())
    if bool((off <= TOLERANCE * scale).all()):  # false for NaN too
        return None
    position = int((~(off <= TOLERANCE * scale)).nonzero()[0])
    return f"from position {position} on its logits are off by {off[position]:.3g}, where the largest is {scale:.3g}"
