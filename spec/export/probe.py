"""A fixed question to a draft, and its answer: damage that names and shapes do not show changes the answer.

The probe is 32 positions with features, then three in a chain of the draft's own states, so that every tensor, the
causal mask, the cache, RoPE and the carry take part. Its numbers come from a seed, not from a target: the check runs
anywhere, without the target's weights.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from spec.methods.eagle3.inference import InferenceDraft

SEED = 3503
FEATURES = 32  # positions read with features
CHAIN = 3  # positions read with the draft's own state
TOP = 8  # largest logits kept of a position
TOLERANCE = 2e-4  # of the largest logit; fp32 on different machines differs by 1e-5 of it


def inputs(hidden_size: int, target_hidden_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings [FEATURES + CHAIN, H] and features [FEATURES, 3 * H_target], fp32, equal on every machine."""
    random = np.random.RandomState(SEED)  # numpy keeps this generator's numbers for good
    embeddings = random.standard_normal((FEATURES + CHAIN, hidden_size))
    aux = random.standard_normal((FEATURES, 3 * target_hidden_size))
    return torch.from_numpy(embeddings).float(), torch.from_numpy(aux).float()


def answer(folder: Path) -> torch.Tensor:
    """The logits [FEATURES + CHAIN, draft_vocab] of the exported draft in `folder`, in fp32."""
    draft = InferenceDraft.load(folder)
    embeddings, aux = inputs(draft.config.hidden_size, draft.config.target_hidden_size)
    hidden, cache = draft.read(embeddings[:FEATURES], draft.project(aux), draft.empty_cache())
    states = [hidden]
    for embedding in embeddings[FEATURES:]:
        hidden, cache = draft.read(embedding[None], hidden[-1:], cache)
        states.append(hidden)
    return draft.logits(torch.cat(states))


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
