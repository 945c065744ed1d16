"""A draft that begins as the target's own last layers, norm and head, instead of at random.

It cannot shift by one token yet, which is what training teaches it; what it need not learn is to read hidden states.
"""

from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from spec.methods.config import other_layers
from spec.methods.eagle3.config import COPIED, check_start
from spec.methods.eagle3.draft import EagleDraft, Layer
from spec.target.frozen import FrozenTarget


@torch.no_grad()
def from_target(draft: EagleDraft, target: FrozenTarget) -> None:
    """Copies the target's last decoder layers, final norm and head rows into `draft`; every rank calls it.

    The third feature passes `fc` as it is. The first layer's q, k and v read `cat(embedding, hidden)`: the hidden half
    is the target's, the embedding half begins at zero. `BadInput` where the layers are not the draft's kind (Qwen3
    norms its queries, Llama 4 rotates pairs and routes experts) or not of its shape.
    """
    check_start(draft.config, target.text_config)
    layers: list[Any] = [draft.midlayer, *draft.layers.values()]
    for ours, theirs in zip(layers, target.model.model.layers[-len(layers) :], strict=True):
        if not _copied(ours, theirs):
            raise other_layers(target.text_config, COPIED)
    draft.norm.weight.copy_(_whole(target.model.model.norm.weight))
    draft.lm_head.weight.copy_(_whole(target.head_weight)[draft.draft_tokens()])
    draft.fc.weight.zero_()
    draft.fc.weight[:, -draft.config.hidden_size :].copy_(torch.eye(draft.config.hidden_size))


def _copied(ours: Layer, theirs: nn.Module) -> bool:
    """Whether the target's layer is of the draft's shape; then the draft's has its weights."""
    layer = {name: _whole(weight) for name, weight in theirs.named_parameters()}
    own = dict(ours.named_parameters())
    own["input_layernorm.weight"] = own.pop("hidden_norm.weight")  # the norm of what the target's layer reads
    hidden = len(own["input_layernorm.weight"])
    halves = {name: weight[:, -hidden:] for name, weight in own.items() if name.split(".")[-2] in _QKV}
    wanted = {name: tuple(weight.shape) for name, weight in (own | halves).items()}
    if wanted != {name: tuple(weight.shape) for name, weight in layer.items()}:
        return False
    for name, weight in layer.items():
        own[name].zero_()
        halves.get(name, own[name]).copy_(weight)
    return True


_QKV = ("q_proj", "k_proj", "v_proj")


def _whole(weight: torch.Tensor) -> torch.Tensor:
    return weight.full_tensor() if isinstance(weight, DTensor) else weight
