"""What an EAGLE-3 draft's files hold, as SGLang 0.5.23 reads them (models/llama_eagle3.py). Imports no torch."""

from typing import Any

from spec.errors import BadInput

_LAST = "norm.weight"
_FIRST = (
    "midlayer.input_layernorm.weight",  # of the token's embedding
    "midlayer.hidden_norm.weight",  # of the feature
    "midlayer.post_attention_layernorm.weight",
)
_LATER = ("hidden_norm", "post_attention_layernorm")  # of a layer that reads no embedding
VOCABULARY_MAP = ("d2t", "t2d")  # the only tensors that are no weights


def feature_layers(num_layers: int) -> tuple[int, int, int]:
    """The layers whose outputs the draft reads, 0-based: `(1, N//2 - 1, N - 4)` as SGLang's EAGLE-3 defaults have them.

    The outputs of these layers are the inputs of the next ones, `hidden_states[2], [N//2], [N-3]` of transformers.
    `BadInput` where they are not three distinct layers in order (fewer than 7 layers).
    """
    layers = (1, num_layers // 2 - 1, num_layers - 4)
    if not layers[0] < layers[1] < layers[2]:
        raise BadInput(
            f"a target of {num_layers} layers is too shallow: the features come from layers {layers}, "
            "which must be three distinct ones in order; take a target of 7 layers or more"
        )
    return layers


def norms(config: dict[str, Any]) -> tuple[str, ...]:
    """The norms of hidden states, all of one shape."""
    later = [f"layers.{at}.{name}.weight" for at in range(1, config["num_hidden_layers"]) for name in _LATER]
    return (*_FIRST, *later, _LAST)


def fc_norms(config: dict[str, Any]) -> tuple[str, ...]:
    """The norms of the features before fc, where the draft has them."""
    return tuple(f"fc_norm.{at}.weight" for at in range(3)) if config.get("fc_norm") else ()


def weight_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor that `model.safetensors` holds, no more and no less, by the sizes in the draft's `config.json`."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]

    def layer(at: str, width: int) -> dict[str, tuple[int, ...]]:
        return {
            f"{at}.self_attn.q_proj.weight": (queries, width),
            f"{at}.self_attn.k_proj.weight": (keys, width),
            f"{at}.self_attn.v_proj.weight": (keys, width),
            f"{at}.self_attn.o_proj.weight": (hidden, queries),
            f"{at}.mlp.gate_proj.weight": (inner, hidden),
            f"{at}.mlp.up_proj.weight": (inner, hidden),
            f"{at}.mlp.down_proj.weight": (hidden, inner),
        }

    return {
        **dict.fromkeys(fc_norms(config), (config["target_hidden_size"],)),
        "fc.weight": (hidden, 3 * config["target_hidden_size"]),
        **dict.fromkeys(norms(config), (hidden,)),
        **layer("midlayer", 2 * hidden),
        **{
            name: its
            for at in range(1, config["num_hidden_layers"])
            for name, its in layer(f"layers.{at}", hidden).items()
        },
        "lm_head.weight": (config["draft_vocab_size"], hidden),
        "d2t": (config["draft_vocab_size"],),
        "t2d": (config["vocab_size"],),
    }
