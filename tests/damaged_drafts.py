"""Ways in which an exported draft may be damaged that SGLang serves without a word, and how each is to be named.

DAMAGES["d2t absolute"].damage(folder)      # an exported EAGLE-3 draft, changed in place
BLOCK_DAMAGES["dspark"]["NaN"].damage(folder)      # one of `existing_drafts.exported`
"""

import json
import re
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
    "layers without end": Damage(
        lambda draft: change_config(draft, num_hidden_layers=10**9), "num_hidden_layers is 1000000000; .* at most 256"
    ),
    "wrong vocabulary size": Damage(
        lambda draft: change_config(draft, vocab_size=319), "vocab_size is 319, the target's vocab_size is 320"
    ),
}


# ---------------------------------------------------------------- DFlash and DSpark
MARKOV = ("markov_head.markov_w1.weight", "markov_head.markov_w2.weight")


def change_block(draft: Path, **changes: Any) -> None:
    config = json.loads((draft / "config.json").read_text())
    change_config(draft, dflash_config=config["dflash_config"] | changes)


def drop_field(draft: Path, name: str) -> None:
    config = json.loads((draft / "config.json").read_text())
    del config[name]
    (draft / "config.json").write_text(json.dumps(config))


def exchange(one: str, other: str) -> Callable[[Weights], None]:
    def exchanged(weights: Weights) -> None:
        weights[one], weights[other] = weights[other].clone(), weights[one].clone()

    return exchanged


def drop_hidden_norm(weights: Weights) -> None:
    del weights["hidden_norm.weight"]


def put_nan_in_fc(weights: Weights) -> None:
    weights["fc.weight"][3, 5] = float("nan")


def shorten_markov(weights: Weights) -> None:
    for name in MARKOV:
        weights[name] = weights[name][:-1].clone()


def of_both(layers: list[int]) -> dict[str, Damage]:
    """Of a draft that reads the outputs of the target's `layers`."""
    beside, turned = [layer + 1 for layer in layers], layers[::-1]
    said = f"dflash_config.target_layer_ids is {beside}, was exported as {layers}"
    norms = [f"layers.0.self_attn.{which}_norm.weight" for which in "qk"]
    return {
        "feature ids off by one": Damage(lambda at: change_block(at, target_layer_ids=beside), re.escape(said)),
        "feature ids unsorted": Damage(
            lambda at: change_block(at, target_layer_ids=turned),
            re.escape(f"dflash_config.target_layer_ids is {turned}, not ascending"),
        ),
        "another mask token": Damage(
            lambda at: change_block(at, mask_token_id=5), "dflash_config.mask_token_id is 5, was exported as 319"
        ),
        "q and k norms swapped": Damage(
            lambda at: change_weights(at, exchange(*norms)), f"norms swapped: {norms[1]} holds what .* as {norms[0]}"
        ),
        "another block size": Damage(lambda at: change_config(at, block_size=7), "block_size is 7, was exported as 4"),
        "rope_theta missing": Damage(
            lambda at: drop_field(at, "rope_theta"), "rope_theta is None, and rope_parameters says 10000.0"
        ),
        "rope_parameters missing": Damage(
            lambda at: drop_field(at, "rope_parameters"), "rope_theta missing: the server would take 10000"
        ),
        "NaN": Damage(lambda at: change_weights(at, put_nan_in_fc), "fc.weight holds NaN"),
        "context too short": Damage(
            lambda at: change_config(at, max_position_embeddings=256),
            "max_position_embeddings is 256, below the served context length of 512",
        ),
        "layers without end": Damage(
            lambda at: change_config(at, num_hidden_layers=10**9), "num_hidden_layers is 1000000000; .* at most 256"
        ),
        "tensor missing": Damage(lambda at: change_weights(at, drop_hidden_norm), "hidden_norm.weight missing: "),
        "tensor misnamed": Damage(
            lambda at: change_weights(at, misname_fc), r"fc.weight missing \(it has fc_weight, a name that the server"
        ),
    }


BLOCK_DAMAGES = {
    "dflash": of_both([1, 3, 5]),
    "dspark": of_both([1, 3, 5])
    | {
        "W1 and W2 exchanged": Damage(
            lambda at: change_weights(at, exchange(*MARKOV)), f"exchanged: {MARKOV[0]} holds what .* as {MARKOV[1]}"
        ),
        "Markov tables of another vocabulary": Damage(
            lambda at: change_weights(at, shorten_markov),
            rf"{MARKOV[0]} has shape \(319, 8\); by config.json it is \(320, 8\)",
        ),
    },
}
