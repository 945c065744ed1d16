"""A draft that begins as the target's own last layer, norm and head, instead of at random.

It cannot shift by one token yet, which is what training teaches it; what it need not learn is to read hidden states.
"""

import torch
from torch.distributed.tensor import DTensor

from spec.errors import BadInput
from spec.methods.eagle3.draft import EagleDraft
from spec.target.frozen import FrozenTarget


@torch.no_grad()
def from_target(draft: EagleDraft, target: FrozenTarget) -> None:
    """Copies the target's last decoder layer, final norm and head rows into `draft`; every rank calls it.

    The third feature passes `fc` as it is. q, k and v read `cat(embedding, hidden)`: the hidden half is the target's,
    the embedding half begins at zero. `BadInput` where the layer is not the draft's kind (Qwen3 norms its queries,
    Llama 4 rotates pairs and routes experts) or not of its shape.
    """
    if draft.config.num_hidden_layers > 1:
        raise BadInput("config: initialise=target copies one layer; take draft.num_hidden_layers=1 or another start")
    if draft.config.fc_norm:
        raise BadInput(
            "config: initialise=target has a feature pass fc as it is; take draft.fc_norm=false or another start"
        )
    layer = {name: _whole(weight) for name, weight in target.model.model.layers[-1].named_parameters()}
    hidden = draft.config.hidden_size
    ours = dict(draft.midlayer.named_parameters())
    ours["input_layernorm.weight"] = ours.pop("hidden_norm.weight")  # the norm of what the target's layer reads
    halves = {name: weight[:, hidden:] for name, weight in ours.items() if name.split(".")[-2] in _QKV}
    wanted = {name: tuple(weight.shape) for name, weight in (ours | halves).items()}
    there = {name: tuple(weight.shape) for name, weight in layer.items()}
    if target.text_config.model_type != "llama" or wanted != there:
        raise BadInput(
            "config: initialise=target copies a Llama layer of the draft's own shape, and the target "
            f"({target.text_config.model_type}) has another; take initialise=random"
        )
    for name, weight in layer.items():
        ours[name].zero_()
        halves.get(name, ours[name]).copy_(weight)
    draft.norm.weight.copy_(_whole(target.model.model.norm.weight))
    draft.lm_head.weight.copy_(_whole(target.head_weight)[draft.draft_tokens()])
    draft.fc.weight.zero_()
    draft.fc.weight[:, -hidden:].copy_(torch.eye(hidden))


_QKV = ("q_proj", "k_proj", "v_proj")


def _whole(weight: torch.Tensor) -> torch.Tensor:
    return weight.full_tensor() if isinstance(weight, DTensor) else weight
