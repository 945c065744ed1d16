"""An EAGLE-3 draft that others published in SGLang's format (models/llama_eagle3.py), in our own form."""

from typing import TYPE_CHECKING, Any

from spec.errors import BadInput
from spec.methods.published import check_layers, group, written_out

if TYPE_CHECKING:
    import torch

Json = dict[str, Any]

_ROPE_THETA = 10000.0  # of transformers' LlamaConfig, where a config names none
_DROPPED = ("embed_tokens.weight", "rotary_emb.inv_freq")  # the server has the target's embedding, and makes the other


def as_served(config: Json, architecture: str, target: Json) -> Json:
    check_layers(config, target)
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    defaults = {"target_hidden_size": hidden, "max_position_embeddings": 2048, "rope_theta": _ROPE_THETA}
    if type(hidden) is int and type(heads) is int and heads:
        defaults["head_dim"] = hidden // heads
    served = written_out(config, architecture, defaults)
    eagle = {"use_aux_hidden_state": True} | group(config, "eagle_config")
    if not eagle.get("eagle_aux_hidden_state_layer_ids"):
        eagle["eagle_aux_hidden_state_layer_ids"] = target["feature_layers"]  # what the server takes by itself
    if not isinstance(ids := eagle["eagle_aux_hidden_state_layer_ids"], list):
        raise BadInput(
            f"config.json: eagle_config.eagle_aux_hidden_state_layer_ids is {ids!r}; it must be a list, for this "
            f"target {target['feature_layers']}"
        )
    if served.get("num_aux_hidden_states") == len(ids):
        del served["num_aux_hidden_states"]
    if served.pop("use_aux_norm", False):  # its older name
        served["fc_norm"] = True
    return served | {"eagle_config": eagle}


def adopt(config: Json, tensors: "dict[str, torch.Tensor]") -> tuple[Json, "dict[str, torch.Tensor]"]:
    import torch

    ours = {_own_name(name): tensor for name, tensor in tensors.items()}
    ours = {name: tensor for name, tensor in ours.items() if not name.endswith(_DROPPED) and not _unread(name)}
    whole = config.get("draft_vocab_size") == config["vocab_size"]
    if whole and "d2t" not in ours:  # the server takes draft tokens for the target's
        ours["d2t"] = torch.zeros(config["vocab_size"], dtype=torch.int64)
    if "d2t" in ours:
        ours["d2t"] = ours["d2t"].to(torch.int64)
        if "t2d" not in ours:  # the server does without
            reached = (ours["d2t"] + torch.arange(len(ours["d2t"]))).clamp(0, config["vocab_size"] - 1)
            ours["t2d"] = torch.zeros(config["vocab_size"], dtype=torch.bool).index_fill(0, reached, True)
        ours["t2d"] = ours["t2d"].to(torch.bool)
    return config, ours


def _unread(name: str) -> bool:
    """A norm of the embedding, where only the first layer reads one."""
    return name.startswith("layers.") and name.endswith(".input_layernorm.weight")


_OLDER = {f"aux_norm_{which}.weight": f"fc_norm.{at}.weight" for at, which in enumerate(("low", "mid", "high"))}


def _own_name(name: str) -> str:
    name = name.removeprefix("model.")
    name = _OLDER.get(name, name)
    return name.replace("layers.0.", "midlayer.", 1) if name.startswith("layers.0.") else name
