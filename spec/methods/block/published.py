"""A DFlash or DSpark draft that others published, as SGLang 0.5.23 reads it (dflash_utils.py), in our own form."""

from typing import TYPE_CHECKING, Any

from spec.errors import BadInput
from spec.methods.block.layout import feature_layers
from spec.methods.published import check_layers, group, written_out

if TYPE_CHECKING:
    import torch

Json = dict[str, Any]

_HEAD_DIM = 128  # of transformers' Qwen3Config, where a config names none
# Nested in dflash_config, or not.
_ANYWHERE = ("block_size", "num_target_layers", "markov_rank", "markov_head_type", "sample_from_anchor")
_NESTED = ("target_layer_ids", "mask_token_id")  # not or nested
_KNOWN = {*_ANYWHERE, *_NESTED, "mask_token"}
_DROPPED = ("embed_tokens.", "lm_head.", "rotary_emb.")  # the target's serve


def as_served(config: Json, architecture: str, target: Json, markov: bool) -> Json:
    check_layers(config, target)
    nested = group(config, "dflash_config") | group(config, "dspark_config")
    other = [f"dflash_config.{name}" for name in sorted(nested.keys() - _KNOWN) if nested[name]]
    other += [
        name for name in sorted(config) if name.startswith("dspark_") and name != "dspark_config" and config[name]
    ]
    if other:
        raise BadInput(f"config.json: {other[0]} is set: a kind of block draft that is not known here")
    found = {name: nested[name] for name in _ANYWHERE if nested.get(name) is not None}
    layers = config["num_hidden_layers"]
    # No rope_theta: the draft was trained with its target's, seldom with the 10000 that the server would take.
    defaults: Json = {"head_dim": _HEAD_DIM, "max_position_embeddings": 32768, "attention_bias": False}
    defaults |= {"num_target_layers": target["num_hidden_layers"]}
    if not config.get("use_sliding_window"):
        defaults["layer_types"] = ["full_attention"] * layers
    if markov:
        defaults |= {"markov_head_type": "vanilla", "sample_from_anchor": True}
    served = written_out(config, architecture, defaults) | found
    served.pop("dspark_config", None)
    block = {name: nested.get(name, config.get(name)) for name in _NESTED}
    if block["target_layer_ids"] is None:  # the server reads as many layers as the draft has
        block["target_layer_ids"] = list(feature_layers(target["num_hidden_layers"], layers))
    return served | {"dflash_config": block}


def adopt(config: Json, tensors: "dict[str, torch.Tensor]") -> tuple[Json, "dict[str, torch.Tensor]"]:
    ours = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    ours = {name: tensor for name, tensor in ours.items() if not name.startswith(_DROPPED)}
    if config.get("markov_rank"):
        confident = any(name.startswith("confidence_head.") for name in ours)
        config = {"enable_confidence_head": confident} | config
    return config, ours
