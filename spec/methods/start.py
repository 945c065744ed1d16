"""A draft that begins with the weights of one that is there: in the folder of an export."""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

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
