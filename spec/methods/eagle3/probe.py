"""What an EAGLE-3 draft is asked by the probe: 32 positions with features, then three in a chain of its own states.

So every tensor, the causal mask, the cache, RoPE and the carry take part.
"""

import numpy as np
import torch

SEED = 3503
FEATURES = 32  # positions read with features
CHAIN = 3  # positions read with the draft's own state


def inputs(hidden_size: int, target_hidden_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings [FEATURES + CHAIN, H] and features [FEATURES, 3 * H_target], fp32, equal on every machine."""
    random = np.random.RandomState(SEED)  # numpy keeps this generator's numbers for good
    embeddings = random.standard_normal((FEATURES + CHAIN, hidden_size))
    aux = random.standard_normal((FEATURES, 3 * target_hidden_size))
    return torch.from_numpy(embeddings).float(), torch.from_numpy(aux).float()
