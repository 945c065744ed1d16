"""What a block draft's files hold, as SGLang 0.5.23 reads them (models/dflash.py and dspark.py). Imports no torch."""

from typing import Any

from spec.errors import BadInput


def feature_layers(num_layers: int, count: int) -> tuple[int, ...]:
    """The `count` layers of `num_layers` whose outputs the draft reads, 0-based, ascending, as SGLang's
    `build_target_layer_ids` spreads them: `round(1 + i (num_layers - 4) / (count - 1))`, halves to even.

    `BadInput` where they are not so many distinct layers, all before the last one, which the server cannot give.
    """
    if count > num_layers:  # before so many are listed
        layers: tuple[int, ...] = ()
    elif count == 1:
        layers = (num_layers // 2,)
    else:
        layers = tuple(round(1 + i * (num_layers - 4) / (count - 1)) for i in range(count))
    if len(set(layers)) < count or not 0 <= layers[0] <= layers[-1] < num_layers - 1:
        raise BadInput(
            f"config: features of {count} layers: a target of {num_layers} has no {count} distinct ones from 1 to "
            f"{num_layers - 3}; take fewer features or a deeper target"
        )
    return layers


def weight_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor that `model.safetensors` holds, no more and no less, by the draft's `config.json`."""
    hidden, inner, size = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    shapes: dict[str, tuple[int, ...]] = {
        "fc.weight": (hidden, len(config["dflash_config"]["target_layer_ids"]) * hidden),
        "hidden_norm.weight": (hidden,),
        "norm.weight": (hidden,),
    }
    for layer in range(config["num_hidden_layers"]):
        at = f"layers.{layer}"
        shapes |= {
            f"{at}.input_layernorm.weight": (hidden,),
            f"{at}.post_attention_layernorm.weight": (hidden,),
            f"{at}.self_attn.q_proj.weight": (queries, hidden),
            f"{at}.self_attn.k_proj.weight": (keys, hidden),
            f"{at}.self_attn.v_proj.weight": (keys, hidden),
            f"{at}.self_attn.o_proj.weight": (hidden, queries),
            f"{at}.self_attn.q_norm.weight": (size,),
            f"{at}.self_attn.k_norm.weight": (size,),
            f"{at}.mlp.gate_proj.weight": (inner, hidden),
            f"{at}.mlp.up_proj.weight": (inner, hidden),
            f"{at}.mlp.down_proj.weight": (hidden, inner),
        }
    if rank := config.get("markov_rank", 0):
        tables = (config["vocab_size"], rank)
        shapes |= {"markov_head.markov_w1.weight": tables, "markov_head.markov_w2.weight": tables}
        if config.get("enable_confidence_head"):
            shapes |= {"confidence_head.proj.weight": (1, hidden + rank), "confidence_head.proj.bias": (1,)}
    return shapes


def norms(config: dict[str, Any]) -> tuple[str, ...]:
    return tuple(name for name in weight_shapes(config) if name.endswith("norm.weight"))
