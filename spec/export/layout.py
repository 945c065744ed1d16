"""What a draft's folder holds, and what SGLang 0.5.23 reads out of it (models/llama_eagle3.py).

Imports no torch: the machine that publishes a draft has none.
"""

from typing import Any

from spec.errors import BadInput
from spec.storage import Store
from spec.storage.markers import Marker, read_marker

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
MARKER = "draft.json"

NORMS = (
    "midlayer.input_layernorm.weight",  # of the token's embedding
    "midlayer.hidden_norm.weight",  # of the feature
    "midlayer.post_attention_layernorm.weight",
    "norm.weight",
)
VOCABULARY_MAP = ("d2t", "t2d")  # the only tensors that are no weights

# A draft serves contexts up to its max_position_embeddings. Without a wish for more, no further than this: the rotary
# table that a server builds grows with it, and Llama 4 Scout's config says 10M.
LONGEST_CONTEXT = 131072


def exported(draft: Store) -> Marker:
    """The marker of the draft that `draft` holds, whose files it vouches for; `BadInput` if there is none."""
    marker = read_marker(draft, MARKER)
    if marker is None:
        raise BadInput(f"{draft.url}: no draft here ({MARKER} is missing); run tools/extract_draft_model.py")
    return marker


def default_context(target_positions: int) -> int:
    """The context length a draft is made for unless told otherwise, from the target's max_position_embeddings."""
    return min(target_positions, LONGEST_CONTEXT)


def weight_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor that `model.safetensors` holds, no more and no less, by the sizes in the draft's `config.json`."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    return {
        "fc.weight": (hidden, 3 * config["target_hidden_size"]),
        **dict.fromkeys(NORMS, (hidden,)),
        "midlayer.self_attn.q_proj.weight": (queries, 2 * hidden),
        "midlayer.self_attn.k_proj.weight": (keys, 2 * hidden),
        "midlayer.self_attn.v_proj.weight": (keys, 2 * hidden),
        "midlayer.self_attn.o_proj.weight": (hidden, queries),
        "midlayer.mlp.gate_proj.weight": (inner, hidden),
        "midlayer.mlp.up_proj.weight": (inner, hidden),
        "midlayer.mlp.down_proj.weight": (hidden, inner),
        "lm_head.weight": (config["draft_vocab_size"], hidden),
        "d2t": (config["draft_vocab_size"],),
        "t2d": (config["vocab_size"],),
    }


def rope_scaling(rope_parameters: dict[str, Any]) -> dict[str, Any] | None:
    """The older spelling of transformers 5's `rope_parameters`, which goes beside a `rope_theta` of its own."""
    scaling = {name: value for name, value in rope_parameters.items() if name != "rope_theta"}
    return None if scaling == {"rope_type": "default"} else scaling
