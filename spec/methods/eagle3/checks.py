"""What of an exported EAGLE-3 draft SGLang does not check: its config, the target it fits, its vocabulary map."""

from pathlib import Path
from typing import Any

import numpy as np

from spec.errors import BadInput
from spec.methods.checks import check_numbers, check_sizes
from spec.methods.method import ADAPTIVE, Drafts

Json = dict[str, Any]

_FIXED = {
    "architectures": ["LlamaForCausalLMEagle3"],
    "model_type": "llama",
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
_SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "target_hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "draft_vocab_size",
    "max_position_embeddings",
)
# Each would make SGLang compute something that was not trained.
_FOREIGN = (
    "attention_bias",
    "bias",
    "mlp_bias",
    "norm_before_fc",
    "num_aux_hidden_states",
    "quantization_config",
    "sliding_window",
    "use_aux_norm",
)


# The server reads these at the top level alone, as flags.
_SHAPES = ("fc_norm", "norm_output")


def check_config(path: Path, config: Json) -> None:
    for name, value in _FIXED.items():
        if config.get(name) != value:
            raise BadInput(f"{path}: {name} is {config.get(name)!r}; SGLang's EAGLE3 loader needs {value!r}")
    check_sizes(path, config, _SIZES)
    eagle = config.get("eagle_config")
    if not isinstance(eagle, dict) or eagle.get("use_aux_hidden_state") is not True:
        raise BadInput(f"{path}: eagle_config.use_aux_hidden_state is not true: the server would feed no aux layers")
    foreign = [name for name in _FOREIGN if config.get(name) or eagle.get(name)]
    if foreign:
        raise BadInput(f"{path}: {foreign[0]} is set; the draft was not trained with it")
    for name in _SHAPES:
        if type(config.get(name, False)) is not bool:
            raise BadInput(f"{path}: {name} is {config[name]!r}; it is true or false")
        if eagle.get(name):
            raise BadInput(f"{path}: {name} is set in eagle_config, where the server does not look for it")
    check_numbers(path, config)


def check_target(path: Path, config: Json, target: Json) -> None:
    for name, there in (("vocab_size", "vocab_size"), ("target_hidden_size", "hidden_size")):
        if config[name] != target[there]:
            raise BadInput(f"{path}: {name} is {config[name]}, the target's {there} is {target[there]}")
    if config["hidden_size"] != target["hidden_size"]:
        raise BadInput(f"{path}: hidden_size is {config['hidden_size']}, but the embeddings shared by the target have "
                       f"{target['hidden_size']}")  # fmt: skip
    ids = config["eagle_config"].get("eagle_aux_hidden_state_layer_ids")
    if ids != target["feature_layers"]:
        raise BadInput(
            f"{path}: eagle_aux_hidden_state_layer_ids is {ids}; for a target of {target['num_hidden_layers']} layers "
            f"the aux layer ids are {target['feature_layers']} (outputs of layers, 0-based; the server adds 1)"
        )


def check_vocabulary(path: Path, d2t: np.ndarray, t2d: np.ndarray) -> None:
    """d2t holds offsets: draft id i is target id i + d2t[i], ascending; t2d marks exactly those."""
    targets = np.flatnonzero(t2d)
    ids = np.arange(len(d2t)) + d2t
    if np.array_equal(ids, targets):
        return
    if np.array_equal(d2t, targets):
        raise BadInput(f"{path}: d2t holds absolute target ids; SGLang wants offsets (target id - draft id)")
    if len(targets) != len(d2t):
        raise BadInput(f"{path}: t2d marks {len(targets)} tokens, the draft's vocabulary has {len(d2t)}")
    if ids.min() < 0 or ids.max() >= len(t2d):
        raise BadInput(f"{path}: d2t leads outside the target's vocabulary of {len(t2d)}")
    raise BadInput(f"{path}: d2t and t2d disagree about which {len(d2t)} target tokens the draft can say")


def check_server(info: Json, drafts: Drafts, url: str) -> None:
    algorithm = info.get("speculative_algorithm")
    if algorithm != "EAGLE3":
        said = f"with --speculative-algorithm {algorithm}" if algorithm else "without speculation"
        raise BadInput(
            f"--base-url {url} serves {said}; it needs --speculative-algorithm EAGLE3 and the draft "
            "(EAGLE accepts nothing of an EAGLE-3 draft and says nothing)"
        )
    if _adapts(info) and drafts != ADAPTIVE:
        raise BadInput(
            f"{url} serves with --speculative-adaptive and changes its drafts a round; measured here are chains of "
            f"{drafts}: serve without it"
        )
    if drafts == ADAPTIVE and not _adapts(info):
        raise BadInput(
            f"{url} does not adapt its drafts a round: serve with --speculative-adaptive; where that is given, its log "
            'says why it is off ("speculative_adaptive disabled")'
        )
    if drafts == ADAPTIVE and info.get("speculative_adaptive_config"):
        raise BadInput(
            f"{url} adapts by {info['speculative_adaptive_config']}, a file that no recommended flags can bring along: "
            "serve without --speculative-adaptive-config"
        )
    chain = {} if drafts == ADAPTIVE else {"speculative_num_steps": drafts}
    wanted = {"speculative_eagle_topk": 1, **chain}
    for name, value in wanted.items():
        if info.get(name) != value:
            flag = "--" + name.replace("_", "-")
            raise BadInput(
                f"{url} serves with {flag} {info.get(name)}; measured here are chains of {drafts} drafts: "
                f"serve with {flag} {value}, or change --drafts"
            )


def _adapts(info: Json) -> bool:
    """What its schedulers do: the server's own record keeps the flag where it was turned off at the start."""
    states = info.get("internal_states") or [info]
    return all(state.get("speculative_adaptive", False) for state in states)
