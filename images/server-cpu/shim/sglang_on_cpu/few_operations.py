"""Norms and rotary embedding in a few operations each.

SGLang's own in PyTorch are some ten small ones for each norm and thirty for each rotation; what they cost in a tiny
model comes near to its products. What is not as in a dense model in float32 takes SGLang's way.
"""

import torch
from torch.nn import functional as F


def norm(self, x, residual=None):
    """The normed sum, and with a residual the sum, as `RMSNorm.forward_native` gives them; None: take that."""
    if x.dtype != torch.float32 or self.weight.dtype != torch.float32 or self.variance_size_override is not None:
        return None
    if residual is not None:
        x = x + residual
    out = F.rms_norm(x, (self.hidden_size,), self.weight, self.variance_epsilon)
    return out if residual is None else (out, x)


def rotate(self, positions, query, key):
    """Both turned, as `RotaryEmbedding.forward_native` gives them; None: take that."""
    whole = self.is_neox_style and self.rotary_dim == self.head_size
    if not whole or query.dtype != torch.float32 or hasattr(self, "sin_cos_cache"):
        return None
    cos, sin = _turns(self).index_select(0, positions.flatten()).unsqueeze(1).chunk(2, dim=-1)

    def turned(x):
        halves = x.view(len(cos), -1, self.head_size)
        return torch.addcmul(halves * cos, halves.roll(self.head_size // 2, dims=-1), sin).view(x.shape)

    return turned(query), turned(key)


def _turns(self):
    """[positions, 2 * head_size]: cosines for both halves, and sines, of which the first half is subtracted."""
    of, turns = getattr(self, "few_operations", (None, None))
    if of is not self.cos_sin_cache:  # it grows with longer contexts
        cos, sin = self.cos_sin_cache.float().chunk(2, dim=-1)
        turns = torch.cat((cos, cos, -sin, sin), dim=-1)
        self.few_operations = self.cos_sin_cache, turns
    return turns
