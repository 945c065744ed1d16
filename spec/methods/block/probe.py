"""What a block draft is asked by the probe: one block of mask tokens after 32 positions with features.

Every tensor takes part, the Markov tables through the bias that a few tokens give to a few others. The target's head
takes none: the states are looked at from random directions instead, so that the check runs without the target.
"""

from typing import NamedTuple

import numpy as np
import torch

SEED = 3503
FEATURES = 32  # positions read with features
TOKENS = 64  # tokens between which the Markov bias is looked at


class Probe(NamedTuple):
    embeddings: torch.Tensor  # [2, H] of the anchor and of the mask token
    aux: torch.Tensor  # [FEATURES, K * H]
    directions: torch.Tensor  # [TOKENS, H]
    tokens: torch.Tensor  # [TOKENS] int64, target ids


def question(hidden_size: int, features: int, vocab_size: int) -> Probe:
    """Equal on every machine, fp32."""
    random = np.random.RandomState(SEED)  # numpy keeps this generator's numbers for good

    def numbers(*shape: int) -> torch.Tensor:
        return torch.from_numpy(random.standard_normal(shape)).float()

    return Probe(
        embeddings=numbers(2, hidden_size),
        aux=numbers(FEATURES, features * hidden_size),
        directions=numbers(TOKENS, hidden_size),
        tokens=torch.from_numpy(random.randint(0, vocab_size, TOKENS)),
    )
