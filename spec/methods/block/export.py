"""A block draft as SGLang loads it: its `config.json`, and what it must answer to the probe."""

from functools import partial
from typing import Any

import torch

from spec.attention.blocks import block_attention, group
from spec.methods.block import probe
from spec.methods.block.config import BlockDraftConfig
from spec.methods.block.draft import BlockDraft
from spec.methods.files import rope_scaling


def server_config(config: BlockDraftConfig, architecture: str, dtype: str, context_length: int) -> dict[str, Any]:
    """The `config.json` that SGLang reads. Every value is written out: what is missing it fills in, and says nothing.

    RoPE stands there in both spellings, since transformers 5 reads `rope_parameters`, else takes a theta of 10000.
    """
    rope = dict(config.rope_parameters)
    written = {
        "architectures": [architecture],
        "model_type": "qwen3",
        "torch_dtype": dtype,
        "dtype": dtype,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "layer_types": ["full_attention"] * config.num_hidden_layers,
        "hidden_act": "silu",
        "attention_bias": False,
        "rms_norm_eps": config.rms_norm_eps,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": False,
        "max_position_embeddings": max(config.max_position_embeddings, context_length),
        "rope_theta": rope["rope_theta"],
        "rope_scaling": rope_scaling(rope),
        "rope_parameters": rope,
        "num_target_layers": config.num_target_layers,
        "block_size": config.block_size,
        "dflash_config": {
            "target_layer_ids": list(config.feature_layers),
            "mask_token_id": config.mask_token_id,
        },
    }
    if config.markov_rank:
        written |= {
            "markov_rank": config.markov_rank,
            "markov_head_type": "vanilla",
            "enable_confidence_head": config.confidence_head,
            "sample_from_anchor": True,
        }
    return written


@torch.no_grad()
def trained_answer(draft: BlockDraft, dtype: torch.dtype) -> torch.Tensor:
    """The training module's answer `[rows, TOKENS]` to the probe, from weights rounded to `dtype`; DSpark's with the
    Markov bias's `[TOKENS, TOKENS]` below it.
    """
    config = draft.config
    rounded = BlockDraft(config)
    rounded.load_state_dict({name: weight.to(dtype) for name, weight in draft.state_dict().items()})
    asked = probe.question(config.hidden_size, len(config.feature_layers), config.vocab_size)
    rows, anchor = config.block_size, probe.FEATURES
    hidden = asked.embeddings[torch.arange(rows).clamp(max=1)][None]  # [1, B, H]
    context = rounded.context(asked.aux)  # [FEATURES, H]
    of_block = rounded.rope.tables(anchor + torch.arange(rows)[None], hidden.dtype)
    of_context = rounded.rope.tables(torch.arange(anchor), hidden.dtype)
    groups = group((0,), (anchor,), rows, torch.device("cpu"))
    attend: Any = partial(block_attention, anchors=torch.tensor([anchor]), groups=groups)
    for layer in rounded.layers:
        hidden = layer(hidden, context, of_block, of_context, attend)
    answer = rounded.norm(hidden[0]) @ asked.directions.T
    if rounded.markov_head is None:
        return answer
    first, second = rounded.markov_head.markov_w1.weight, rounded.markov_head.markov_w2.weight
    return torch.cat((answer, first[asked.tokens] @ second[asked.tokens].T))
