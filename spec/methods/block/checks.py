"""What of an exported block draft SGLang does not check: its config, the target it fits, its Markov tables, the server.

Everything here has been seen to pass the server in silence when wrong, and to cost acceptance alone.
"""

from pathlib import Path
from typing import Any

import numpy as np

from spec.errors import BadInput
from spec.methods.checks import check_numbers, check_sizes
from spec.methods.method import ADAPTIVE, Drafts
from spec.methods.tensors import StoredTensor

Json = dict[str, Any]

_FIXED = {"model_type": "qwen3", "hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": False}
_SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "vocab_size", "max_position_embeddings", "num_target_layers", "block_size"),
)
# Each would make SGLang compute something that was not trained.
_FOREIGN = ("mlp_bias", "quantization_config", "sliding_window", "use_sliding_window", "draft_vocab_size")


def check_family(model_type: str) -> None:
    """`BadInput` for a target whose model in the server gives block drafts no features."""
    if model_type.startswith("llama4"):
        raise BadInput(
            "a Llama 4 target has no block drafts: SGLang 0.5.23's mllama4 gives them no features; train method=eagle3"
        )


def check_config(path: Path, config: Json, markov: bool) -> None:
    for name, value in _FIXED.items():
        if config.get(name) != value:
            raise BadInput(f"{path}: {name} is {config.get(name)!r}; the server's block drafts need {value!r}")
    check_sizes(path, config, _SIZES)
    if config["block_size"] == 1 and not markov:
        raise BadInput(f"{path}: block_size is 1, and a DFlash draft's row 0 drafts nothing: the smallest is 2")
    _check_features(path, config)
    if config.get("layer_types") != ["full_attention"] * config["num_hidden_layers"]:
        raise BadInput(f"{path}: layer_types is {config.get('layer_types')!r}; every layer was trained full_attention")
    if foreign := [name for name in _FOREIGN if config.get(name)]:
        raise BadInput(f"{path}: {foreign[0]} is set; the draft was not trained with it")
    _check_markov(path, config, markov)
    check_numbers(path, config)


def _check_features(path: Path, config: Json) -> None:
    block = config.get("dflash_config")
    ids = block.get("target_layer_ids") if isinstance(block, dict) else None
    if not isinstance(ids, list) or not ids or not all(type(at) is int for at in ids):
        raise BadInput(f"{path}: dflash_config.target_layer_ids is {ids!r}; the server would choose layers of its own")
    if ids != sorted(set(ids)):
        raise BadInput(
            f"{path}: dflash_config.target_layer_ids is {ids}, not ascending: the server reads the features in "
            "ascending order all the same, and fc was trained in another"
        )
    if not 0 <= ids[0] <= ids[-1] <= config["num_target_layers"] - 2:
        raise BadInput(
            f"{path}: dflash_config.target_layer_ids is {ids}; a target of {config['num_target_layers']} layers gives "
            f"the outputs of 0 to {config['num_target_layers'] - 2}"
        )
    mask = block.get("mask_token_id") if isinstance(block, dict) else None
    if type(mask) is not int or not 0 <= mask < config["vocab_size"]:
        raise BadInput(
            f"{path}: dflash_config.mask_token_id is {mask!r}; it is one of the {config['vocab_size']} rows of the "
            "target's embedding"
        )


def _check_markov(path: Path, config: Json, markov: bool) -> None:
    rank = config.get("markov_rank", 0)
    if not markov:
        if rank:
            raise BadInput(f"{path}: markov_rank is {rank}, and a DFlash draft has no Markov head")
        return
    if type(rank) is not int or rank < 1:
        raise BadInput(f"{path}: markov_rank is {rank!r}; a DSpark draft has one above 0")
    if config.get("markov_head_type") != "vanilla":
        raise BadInput(f"{path}: markov_head_type is {config.get('markov_head_type')!r}; known here is 'vanilla'")
    if config.get("sample_from_anchor", True) is not True:
        raise BadInput(
            f"{path}: sample_from_anchor is {config['sample_from_anchor']!r}: a layout with one row more to a block, "
            "in which the anchor's row drafts nothing; known here is the one in which it does"
        )


def check_target(path: Path, config: Json, target: Json) -> None:
    if config["block_size"] > target["max_position_embeddings"]:
        raise BadInput(
            f"{path}: block_size is {config['block_size']}; a block fits the target's context, which has "
            f"{target['max_position_embeddings']} positions"
        )
    for name in ("hidden_size", "vocab_size"):
        if config[name] != target[name]:
            raise BadInput(
                f"{path}: {name} is {config[name]}, the target's is {target[name]}: the draft uses its embedding and "
                "its head"
            )
    if config["num_target_layers"] != target["num_hidden_layers"]:
        raise BadInput(
            f"{path}: num_target_layers is {config['num_target_layers']}, the target has {target['num_hidden_layers']}"
        )


def check_tensors(path: Path, config: Json, tensors: dict[str, StoredTensor]) -> None:
    """The Markov tables are of one shape, so exchanging or transposing them shows in nothing but what they compute."""
    for name in ("markov_head.markov_w1.weight", "markov_head.markov_w2.weight"):
        if name in tensors and not np.any(tensors[name].values[: 1 << 24]):
            raise BadInput(f"{path}: {name} is all zeros: nothing was learnt, or it was lost")


def number_of(drafts: Drafts) -> int:
    """`BadInput` for an adaptive number."""
    if drafts == ADAPTIVE:
        raise BadInput(
            f"{ADAPTIVE} drafts a round: SGLang adapts an EAGLE-3 draft's rounds alone; name numbers, as 3,7"
        )
    return drafts


def check_server(info: Json, algorithm: str, drafts: int, url: str) -> None:
    served = info.get("speculative_algorithm")
    if served != algorithm:
        said = f"with --speculative-algorithm {served}" if served else "without speculation"
        raise BadInput(f"--base-url {url} serves {said}; it needs --speculative-algorithm {algorithm} and the draft")
    if info.get("speculative_num_draft_tokens") != drafts + 1:
        raise BadInput(
            f"{url} verifies {info.get('speculative_num_draft_tokens')} tokens a round; measured here are {drafts} "
            f"drafts and one token: serve with {drafts} drafts a round, or change --drafts"
        )
