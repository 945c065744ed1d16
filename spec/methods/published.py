"""Drafts that others published: what the server reads into their files, written as our own exports write it.

So every check of our own drafts holds for them too, and whatever reads a draft meets one form of it. Imports no torch.
"""

from typing import Any

from spec.errors import BadInput
from spec.methods.files import rope_scaling

Json = dict[str, Any]


def group(config: Json, name: str) -> Json:
    """The object that `name` is in a published config; {} where it is not there."""
    found = config.get(name)
    if found is not None and not isinstance(found, dict):
        raise BadInput(f"config.json: {name} is {found!r}; it must be an object of names and values, or left out")
    return found or {}


def check_layers(config: Json, target: Json) -> None:
    """Before lists are made of so many."""
    layers, most = config.get("num_hidden_layers"), target["num_hidden_layers"]
    if type(layers) is not int or not 1 <= layers <= most:
        raise BadInput(
            f"config.json: num_hidden_layers is {layers!r}; it must be a whole number from 1 to {most}, the target's"
        )


def written_out(config: Json, architecture: str, defaults: Json) -> Json:
    """A published `config.json` with the `defaults` of the server's config class where it says nothing."""
    said = {name: value for name, value in config.items() if value is not None}
    heads = said.get("num_attention_heads")
    whole = {"rms_norm_eps": 1e-6, "hidden_act": "silu", "num_key_value_heads": heads, **defaults, **said}
    rope = dict(group(said, "rope_parameters") or group(said, "rope_scaling") or {"rope_type": "default"})
    if "type" in rope:  # its older name
        rope["rope_type"] = rope.pop("type")
    rope.setdefault("rope_theta", whole.get("rope_theta"))
    return whole | {
        "architectures": [architecture],
        "tie_word_embeddings": said.get("tie_word_embeddings", False),
        "rope_parameters": rope,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": rope_scaling(rope),
    }
