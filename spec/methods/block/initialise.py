"""A block draft whose layers begin as the target's own last ones, instead of at random.

They have never read a mask token or a context of one feature, which is what training teaches them; what they need not
learn is to read hidden states and to write ones that the target's head reads.
"""

import torch
from torch.distributed.tensor import DTensor

from spec.methods.block.config import COPIED
from spec.methods.block.draft import BlockDraft
from spec.methods.config import check_copied, other_layers
from spec.target.frozen import FrozenTarget

_HEAD_NORMS = ("self_attn.q_norm.weight", "self_attn.k_norm.weight")


@torch.no_grad()
def from_target(draft: BlockDraft, target: FrozenTarget) -> None:
    """Copies the target's last layers and final norm into `draft`; every rank calls it.

    The last feature passes `fc` as it is, into the norm that the target's first copied layer has before its attention.
    Where the target does not norm its heads (Llama), `q_norm` and `k_norm` give queries and keys the size that the
    target's have. `BadInput` where its layers are of another shape or kind (Llama 4 rotates pairs, MoE routes experts).
    """
    check_copied(draft.config, target.text_config, COPIED)
    hidden, copied = draft.config.hidden_size, list(target.model.model.layers)[-draft.config.num_hidden_layers :]
    for ours, theirs in zip(draft.layers, copied, strict=True):
        layer = {name: _whole(weight) for name, weight in theirs.named_parameters()}
        wanted = dict(ours.named_parameters())
        if _HEAD_NORMS[0] not in layer and target.text_config.model_type == "llama":
            layer |= _head_norms(layer, draft.config.head_dim)
        if {name: tuple(x.shape) for name, x in layer.items()} != {name: tuple(x.shape) for name, x in wanted.items()}:
            raise other_layers(target.text_config, COPIED)
        for name, weight in layer.items():
            wanted[name].copy_(weight)
    draft.hidden_norm.weight.copy_(_whole(copied[0].input_layernorm.weight))
    draft.norm.weight.copy_(_whole(target.model.model.norm.weight))
    draft.fc.weight.zero_()
    draft.fc.weight[:, -hidden:].copy_(torch.eye(hidden))


def _head_norms(layer: dict[str, torch.Tensor], head_dim: int) -> dict[str, torch.Tensor]:
    """`[D]` each: the root mean square, over heads, of what the projection makes of normed noise."""
    scale = layer["input_layernorm.weight"].float()  # [H]

    def size(name: str) -> torch.Tensor:
        weight = layer[f"self_attn.{name}_proj.weight"].float() * scale  # [heads * D, H]
        return weight.square().sum(1).unflatten(0, (-1, head_dim)).mean(0).sqrt()

    return {name: size(part) for name, part in zip(_HEAD_NORMS, "qk", strict=True)}


def _whole(weight: torch.Tensor) -> torch.Tensor:
    return weight.full_tensor() if isinstance(weight, DTensor) else weight
