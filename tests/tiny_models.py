"""Tiny random targets of every family, saved the way the real ones are, with a tokenizer that knows every character.

    path = save_tiny_target("qwen3_moe", tmp_path / "target")

Eight layers (the fewest but one that give three distinct feature layers), width 64, grouped queries, weights large
enough that the next-token distribution is peaked and argmaxes do not hang on rounding.
"""

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

FAMILIES = ("llama", "llama4", "llama4_dense", "qwen3", "qwen3_moe")

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PRINTABLE = 94  # the first ids are the characters from ! to ~
VOCAB_SIZE = 320  # 256 bytes, three special tokens, and ids that no text uses

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.25,
    "bos_token_id": None,
    "eos_token_id": 258,
    "pad_token_id": 256,
}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte (token ids 0..255), then the special tokens 256..258; ChatML."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    plain.decoder = decoders.ByteLevel()
    plain.add_special_tokens(SPECIAL_TOKENS)
    return PreTrainedTokenizerFast(
        tokenizer_object=plain,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def tiny_target(family: str, *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random model of `family` in fp32; `overrides` change its (text) config."""
    torch.manual_seed(seed)
    shape = _SHAPE | overrides
    match family:
        case "llama":
            model = transformers.LlamaForCausalLM(
                transformers.LlamaConfig(**shape, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
            )
        case "qwen3":
            model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**({"tie_word_embeddings": True} | shape)))
        case "qwen3_moe":
            moe = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
            model = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**(moe | shape)))
        case "llama4":
            model = transformers.Llama4ForConditionalGeneration(_llama4_config(shape, moe=True))
        case "llama4_dense":
            model = transformers.Llama4ForCausalLM(_llama4_config(shape, moe=False).text_config)
        case _:
            raise ValueError(f"no tiny target of family {family!r}; there are {FAMILIES}")
    return model.eval()


def save_tiny_target(family: str, folder: Path, *, seed: int = 0, **overrides: Any) -> Path:
    """Save `tiny_target` and its tokenizer below `folder`, as fp32 safetensors; returns the folder."""
    tiny_target(family, seed=seed, **overrides).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def save_learnable_target(folder: Path) -> Path:
    """A Llama with something to learn: each token follows mostly, not always, from the one before.

    It says printable characters alone, so that its answers read back as the tokens they were.
    """
    save_tiny_target("llama", folder, tie_word_embeddings=False)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][PRINTABLE:] = 0.0
    weights["model.embed_tokens.weight"] *= 4
    for name in weights:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name] *= 0.05
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _llama4_config(shape: dict[str, Any], *, moe: bool) -> transformers.Llama4Config:
    # Chunks of 32 tokens and no RoPE in every fourth layer, as in Scout: short tests cross both.
    layers = shape["num_hidden_layers"]
    text = {
        "intermediate_size_mlp": 128,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "moe_layers": list(range(layers)) if moe else [],
        "interleave_moe_layer_step": 1 if moe else layers + 1,  # the same for SGLang, which does not read moe_layers
        "attention_chunk_size": 32,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    } | shape
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vision_output_dim": 32,
        "image_size": 28,
        "patch_size": 14,
        "projector_input_dim": 32,
        "projector_output_dim": 32,
    }
    return transformers.Llama4Config(text_config=text, vision_config=vision)
