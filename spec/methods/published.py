"""Drafts that others published: what the server reads into their files, written as our own exports write it.

So every check of our own drafts holds for them too, and whatever reads a draft meets one form of it. Imports no torch.
"""

from typing import Any

from spec.methods.files import rope_scaling

Json = dict[str, Any]

_ROPE_THETA = 10000.0  # transformers' own, of a config that names none


def written_out(config: Json, architecture: str, defaults: Json) -> Json:
    """A published `config.json` with the `defaults` of the server's config class where it says nothing."""
    said = {name: value for name, value in config.items() if value is not None}
    heads = said.get("num_attention_heads")
    whole = {"rms_norm_eps": 1e-6, "hidden_act": "silu", "num_key_value_heads": heads, **defaults, **said}
    rope = dict(said.get("rope_parameters") or said.get("rope_scaling") or {"rope_type": "default"})
    if "type" in rope:  # its older name
        rope["rope_type"] = rope.pop("type")
    rope.setdefault("rope_theta", said.get("rope_theta", _ROPE_THETA))
    return whole | {
        "architectures": [architecture],
        "tie_word_embeddings": said.get("tie_word_embeddings", False),
        "rope_parameters": rope,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": rope_scaling(rope),
    }
