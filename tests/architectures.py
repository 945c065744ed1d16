"""The true sizes of the targets that have a config here, as their public `config.json` files state them."""

from transformers import Llama4TextConfig, LlamaConfig, PretrainedConfig, Qwen3Config, Qwen3MoeConfig

_LLAMA3 = {
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
_QWEN3 = {
    "vocab_size": 151936,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 40960,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
}


def _sizes(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


def _experts(intermediate: int) -> dict[str, int]:
    return {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": intermediate}


# config below spec/configs -> the target's text model
TARGETS: dict[str, PretrainedConfig] = {
    "llama3/8B_eagle": LlamaConfig(**(_LLAMA3 | _sizes(4096, 14336, 32, 32, 8))),
    "llama3/70B_eagle": LlamaConfig(**(_LLAMA3 | _sizes(8192, 28672, 80, 64, 8))),
    "llama4/scout_17B_16E_eagle": Llama4TextConfig(
        **_sizes(5120, 8192, 48, 40, 8),
        vocab_size=202048,
        intermediate_size_mlp=16384,
        head_dim=128,
        num_local_experts=16,
        num_experts_per_tok=1,
        interleave_moe_layer_step=1,
        max_position_embeddings=10485760,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    ),
    "qwen3/8B_eagle": Qwen3Config(**(_QWEN3 | _sizes(4096, 12288, 36, 32, 8))),
    "qwen3/32B_eagle": Qwen3Config(**(_QWEN3 | _sizes(5120, 25600, 64, 64, 8))),
    "qwen3/30B_A3B_eagle": Qwen3MoeConfig(**(_QWEN3 | _sizes(2048, 6144, 48, 32, 4) | _experts(768))),
    "qwen3/235B_A22B_eagle": Qwen3MoeConfig(**(_QWEN3 | _sizes(4096, 12288, 94, 64, 4) | _experts(1536))),
}
