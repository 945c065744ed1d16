"""Writes a checkpoint's draft as SGLang loads it, then reads back and checks what it wrote."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from spec.attention.block0 import Queries
from spec.attention.merged import ttt_attention
from spec.export import probe
from spec.export.layout import CONFIG, MARKER, VOCABULARY_MAP, WEIGHTS, rope_scaling
from spec.export.tensors import read_tensors
from spec.export.verify import check_files, verify_probe
from spec.methods.eagle3.draft import DraftConfig, EagleDraft
from spec.storage import Store
from spec.storage.markers import Marker, describe_files, digest_of, write_marker

STEP = "extract"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def export(
    draft: EagleDraft,
    output: Store,
    *,
    target: dict[str, Any],
    dtype: str,
    context_length: int,
    inputs: dict[str, Any],
    lineage: dict[str, Any],
) -> Marker:
    """Write `draft` to `output` as config.json, model.safetensors and, last, draft.json; returns that marker.

    `target` are `verify.target_facts`; `inputs` and `lineage` go into the marker. Raises `BadInput`, and writes
    nothing, if the exported draft is not complete, not finite, or computes other logits than `draft` itself.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        config = sglang_config(draft.config, dtype, context_length)
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        weights = {name: _stored(name, tensor, DTYPES[dtype]) for name, tensor in draft.state_dict().items()}
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
        check_files(folder, target, context_length)
        settings = {"dtype": dtype, "context_length": context_length}
        marker = Marker(
            step=STEP,
            digest=digest_of(STEP, settings, inputs),
            settings=settings,
            inputs=inputs,
            files=describe_files(folder, [CONFIG, WEIGHTS]),
            counts={"parameters": sum(w.numel() for name, w in weights.items() if name not in VOCABULARY_MAP)},
            facts={
                **lineage,
                "target": target,
                "context_length": context_length,
                "config": config,
                "tensors": {name: stored.sha256() for name, stored in read_tensors(folder / WEIGHTS).items()},
                "probe": probe.describe(trained_answer(draft, DTYPES[dtype])),
            },
        )
        verify_probe(folder, marker)
        for name in marker.files:
            output.upload(name, folder / name)
    return write_marker(output, MARKER, marker)


def sglang_config(config: DraftConfig, dtype: str, context_length: int) -> dict[str, Any]:
    """The `config.json` that SGLang reads. Every value is written out: defaults differ between transformers versions.

    RoPE stands there in both spellings, since transformers 5 reads `rope_parameters`, else takes a theta of 10000.
    """
    rope = dict(config.rope_parameters)
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "torch_dtype": dtype,
        "dtype": dtype,
        "num_hidden_layers": 1,
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


def _stored(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    tensor = tensor.detach().cpu().contiguous()
    return tensor if name in VOCABULARY_MAP else tensor.to(dtype)


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
    every = Queries.of_runs(((0, 0, probe.FEATURES),), torch.tensor([0, probe.FEATURES], dtype=torch.int32), probe.FEATURES)
    keys: list[torch.Tensor] = []
    values: list[torch.Tensor] = []

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        keys.append(key)
        values.append(value)
        return ttt_attention(query, keys, values, every)

    hidden, states = rounded.project_features(aux), []
    for step in range(probe.CHAIN + 1):
        at = embeddings[: probe.FEATURES] if step == 0 else embeddings[probe.FEATURES + step - 1].expand_as(hidden)
        hidden = rounded.midlayer(at, hidden, torch.arange(probe.FEATURES) + step, attend)
        states.append(hidden if step == 0 else hidden[-1:])
    return rounded.head(torch.cat(states))
