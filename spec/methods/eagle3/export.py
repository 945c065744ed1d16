"""An EAGLE-3 draft as SGLang loads it: its `config.json`, and what its logits on the probe must be."""

from typing import Any

import torch

from spec.attention.block0 import Queries
from spec.attention.merged import ttt_attention
from spec.methods.eagle3 import probe
from spec.methods.eagle3.config import DraftConfig
from spec.methods.eagle3.draft import EagleDraft
from spec.methods.files import rope_scaling


def sglang_config(config: DraftConfig, dtype: str, context_length: int) -> dict[str, Any]:
    """The `config.json` that SGLang reads. Every value is written out: defaults differ between transformers versions.

    RoPE stands there in both spellings, since transformers 5 reads `rope_parameters`, else takes a theta of 10000.
    """
    rope = dict(config.rope_parameters)
    shapes = {name: True for name in ("fc_norm", "norm_output") if getattr(config, name)}
    return shapes | {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "torch_dtype": dtype,
        "dtype": dtype,
        "num_hidden_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "target_hidden_size": config.target_hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "attention_bias": False,
        "mlp_bias": False,
        "vocab_size": config.vocab_size,
        "draft_vocab_size": config.draft_vocab_size,
        "tie_word_embeddings": False,
        "max_position_embeddings": max(config.max_position_embeddings, context_length),
        "rope_theta": rope["rope_theta"],
        "rope_scaling": rope_scaling(rope),
        "rope_parameters": rope,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "eagle_config": {
            "eagle_aux_hidden_state_layer_ids": list(config.feature_layers),
            "use_aux_hidden_state": True,
        },
    }


@torch.no_grad()
def trained_answer(draft: EagleDraft, dtype: torch.dtype) -> torch.Tensor:
    """The training module's logits [FEATURES + CHAIN, draft_vocab] on the probe, from weights rounded to `dtype`.

    The chain follows the last position that has features, which in the training-time test is what its steps do.
    """
    rounded = EagleDraft(draft.config)
    rounded.load_state_dict(
        {name: w.to(dtype) if w.is_floating_point() else w for name, w in draft.state_dict().items()}
    )
    embeddings, aux = probe.inputs(draft.config.hidden_size, draft.config.target_hidden_size)
    every = Queries.of_runs(
        ((0, 0, probe.FEATURES),), torch.tensor([0, probe.FEATURES], dtype=torch.int32), probe.FEATURES
    )
    attends = [_Attend(every) for _ in range(draft.config.num_hidden_layers)]
    hidden, states = rounded.project_features(aux), []
    for step in range(probe.CHAIN + 1):
        at = embeddings[: probe.FEATURES] if step == 0 else embeddings[probe.FEATURES + step - 1].expand_as(hidden)
        hidden = hidden if step == 0 else rounded.carry(hidden)
        positions = torch.arange(probe.FEATURES) + step
        hidden = rounded.midlayer(at, hidden, positions, attends[0])
        for layer, attend in zip(rounded.layers.values(), attends[1:], strict=True):
            hidden = layer(hidden, positions, attend)
        states.append(hidden if step == 0 else hidden[-1:])
    return rounded.head(torch.cat(states))


class _Attend:
    """A layer's attention, which remembers the keys and values of earlier steps."""

    def __init__(self, queries: Queries):
        self.queries = queries
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        self.keys.append(key)
        self.values.append(value)
        return ttt_attention(query, self.keys, self.values, self.queries)
