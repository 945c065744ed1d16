"""The one table of target families: what of a target differs between Llama 3, Llama 4 and Qwen3, and nothing else.

Everything that is the same in all of them (embedding, decoder layers, final norm, head) is reached by the names that
transformers gives it in every causal language model: `model.embed_tokens`, `model.layers`, `model.norm`, `lm_head`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import transformers
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from spec.errors import BadInput


def _route_experts(model: PreTrainedModel) -> None:
    from spec.target.llama4_experts import route_experts  # torch, and preflight reads configs without

    route_experts(model)


@dataclass(frozen=True)
class Family:
    causal_lm: str  # transformers' class of the text model
    wrapped_as: str = ""  # prefix of the text model's tensors in the files, where a multimodal model wraps it
    adapt: Callable[[PreTrainedModel], None] = lambda model: None  # what transformers' own code is too slow at


FAMILIES = {
    "llama": Family("LlamaForCausalLM"),
    "llama4": Family("Llama4ForCausalLM", wrapped_as="language_model.", adapt=_route_experts),
    "llama4_text": Family("Llama4ForCausalLM", adapt=_route_experts),
    "qwen3": Family("Qwen3ForCausalLM"),
    "qwen3_moe": Family("Qwen3MoeForCausalLM"),
}


def family_of(config: PretrainedConfig) -> Family:
    """The family of a target's config (of its wrapper, where it has one); `BadInput` if it is none of the table's."""
    try:
        return FAMILIES[config.model_type]
    except KeyError:
        raise BadInput(
            f"a target of type {config.model_type!r} is not known here; the families are {', '.join(FAMILIES)}"
        ) from None


def text_config_of(config: PretrainedConfig) -> PretrainedConfig:
    """The config of the text model, which is the config itself where nothing wraps it."""
    return config.get_text_config()


def model_class(family: Family) -> type[PreTrainedModel]:
    return getattr(transformers, family.causal_lm)


def read_config(path: str | Path) -> PretrainedConfig:
    """The target's config from its directory or `config.json`; `BadInput` if it is missing, damaged or of no family."""
    file = Path(path) / "config.json" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise BadInput(f"{file}: no such file; a target is a directory with config.json and safetensors files")
    try:
        plain = json.loads(file.read_text())
        known = plain.get("model_type") in FAMILIES
    except (ValueError, AttributeError) as error:
        raise BadInput(f"{file}: not a model's config: {error}") from error
    if not known:
        raise BadInput(
            f"{file}: a target of type {plain.get('model_type')!r} is not known here; "
            f"the families are {', '.join(FAMILIES)}"
        )
    try:
        return AutoConfig.from_pretrained(str(file))
    except Exception as error:  # transformers' validators raise many kinds
        raise BadInput(f"{file}: transformers cannot read this config: {error}") from error
