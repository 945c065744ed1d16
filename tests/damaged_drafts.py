"""Eight ways in which an exported draft may be damaged that SGLang serves without a word, and how each is to be named.

DAMAGES["d2t absolute"].damage(folder)      # an exported draft, changed in place
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

Weights = dict[str, torch.Tensor]


class Damage(NamedTuple):
    damage: Callable[[Path], None]
    named: str  # a regular expression that the refusal matches


def change_config(draft: Path, **changes: Any) -> None:
    config = json.loads((draft / "config.json").read_text())
    (draft / "config.json").write_text(json.dumps(config | changes))


def change_weights(draft: Path, change: Callable[[Weights], None]) -> None:
    weights = load_file(draft / "model.safetensors")
    change(weights)
    save_file(weights, draft / "model.safetensors", metadata={"format": "pt"})


def misname_fc(weights: Weights) -> None:
    weights["fc_weight"] = weights.pop("fc.weight")


def drop_d2t(weights: Weights) -> None:
    del weights["d2t"]


def absolute_d2t(weights: Weights) -> None:
    weights["d2t"] += torch.arange(len(weights["d2t"]))


def swap_norms(weights: Weights) -> None:
    one, other = "midlayer.input_layernorm.weight", "midlayer.hidden_norm.weight"
    weights[one], weights[other] = weights[other].clone(), weights[one].clone()


def put_nan(weights: Weights) -> None:
    weights["midlayer.mlp.up_proj.weight"][3, 5] = float("nan")


def eagle(*layers: int, **more: Any) -> dict[str, Any]:
    """The part of a draft's config that says which layers feed it."""
    return {"eagle_config": {"eagle_aux_hidden_state_layer_ids": list(layers), "use_aux_hidden_state": True} | more}


DAMAGES = {
    "fc misnamed": Damage(lambda draft: change_weights(draft, misname_fc), r"fc\.weight missing \(it has fc_weight"),
    "d2t missing": Damage(lambda draft: change_weights(draft, drop_d2t), "d2t missing"),
    "d2t absolute": Damage(
        lambda draft: change_weights(draft, absolute_d2t), "d2t holds absolute target ids; SGLang wants offsets"
    ),
    "aux layers off by one": Damage(
        lambda draft: change_config(draft, **eagle(2, 4, 5)),
        r"layer_ids is \[2, 4, 5\]; for a target of 8 layers the aux layer ids are \[1, 3, 4\]",
    ),
    "norms swapped": Damage(
        lambda draft: change_weights(draft, swap_norms),
        r"norms swapped: midlayer.hidden_norm.weight holds what .* midlayer.input_layernorm.weight",
    ),
    "NaN": Damage(lambda draft: change_weights(draft, put_nan), "midlayer.mlp.up_proj.weight holds NaN"),
    "context too short": Damage(
        lambda draft: change_config(draft, max_position_embeddings=256),
        "max_position_embeddings is 256, below the served context length of 512",
    ),
    "wrong vocabulary size": Damage(
        lambda draft: change_config(draft, vocab_size=319), "vocab_size is 319, the target's vocab_size is 320"
    ),
}
