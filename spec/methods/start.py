"""A draft that begins with the weights of one that is there: in the folder of an export, or the target's own layers."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import PretrainedConfig

from spec.methods.files import WEIGHTS


@torch.no_grad()
def load(draft: nn.Module, folder: Path, optional: tuple[str, ...] = ()) -> None:
    """Fills `draft`, whole on its device, with the weights in `folder`; every rank calls it.

    Tensors whose names begin as `optional` says may be missing, and stay as they are, or be one too many. Any other
    difference is a mistake of ours: names and shapes were compared when the draft was fetched.
    """
    weights = load_file(folder / WEIGHTS)
    known = draft.state_dict().keys()
    taken = {name: weight for name, weight in weights.items() if name in known or not name.startswith(optional)}
    kept = {name: weight for name, weight in draft.state_dict().items() if name not in weights}
    draft.load_state_dict(taken | {name: weight for name, weight in kept.items() if name.startswith(optional)})


def told(folder: Path, wanted: set[str], heads: tuple[str, ...]) -> str:
    """Which `heads` (beginnings of names) begin anew, and which of those in `folder` are left out, in words."""
    with safe_open(folder / WEIGHTS, "pt") as file:
        there = set(file.keys())

    def of(names: set[str]) -> str:
        return " and ".join(head.rstrip(".") for head in heads if any(name.startswith(head) for name in names))

    parts = [(of(wanted - there), "begins anew"), (of(there - wanted), "is left out")]
    return "; ".join(f"its {names} {what}" for names, what in parts if names)


def layers_fit(draft: Any, target: PretrainedConfig) -> bool:
    """Whether a dense target's last layers are of the shape of a `draft`'s, and as many, by both configs alone: its
    weights may take an hour to load.
    """
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    head_dim = getattr(target, "head_dim", None) or target.hidden_size // target.num_attention_heads
    return (
        all(getattr(draft, name) == getattr(target, name) for name in sizes)
        and draft.head_dim == head_dim
        and draft.num_hidden_layers <= target.num_hidden_layers
        and not any(getattr(target, name, False) for name in ("attention_bias", "mlp_bias"))
    )
