"""What drafts' own configs have in common: kept as JSON, and of sizes that layers can be made from.

Imports no torch: what cannot be trained is refused before a GPU is asked for.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

from spec.errors import BadInput
from spec.methods.checks import check_rope
from spec.methods.files import default_context

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class LayerSizes(Protocol):
    """The fields of a draft's config that its layers are made from."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def num_key_value_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def rms_norm_eps(self) -> float: ...
    @property
    def max_position_embeddings(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def rope_parameters(self) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class OwnConfig:
    """A draft's own config, as training keeps it beside the checkpoints: a dataclass with `feature_layers`."""

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The config that `to_json` wrote; `BadInput` if it is not one."""
        try:
            fields = json.loads(text)
            return cls(**(fields | {"feature_layers": tuple(fields["feature_layers"])}))
        except (ValueError, TypeError, KeyError) as error:
            raise BadInput(f"not a draft's config, as training writes it beside its checkpoints: {error}") from error


def check_sizes(config: LayerSizes, counts: Iterable[str]) -> None:
    """`BadInput` for fields of a draft's own config that no layer can be made from; `counts` are whole numbers."""
    for name in counts:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise BadInput(f"config: draft.{name}={value!r}; it is a whole number of at least 1")
    if not isinstance(config.rms_norm_eps, float) or not 0 < config.rms_norm_eps < math.inf:
        raise BadInput(f"config: draft.rms_norm_eps={config.rms_norm_eps!r}; it is a decimal number above 0, as 1e-6")
    if config.num_attention_heads % config.num_key_value_heads or config.head_dim % 2:
        raise BadInput(
            f"config: a draft of {config.num_attention_heads} heads, {config.num_key_value_heads} of keys, head_dim "
            f"{config.head_dim}: the heads must divide by those of keys, and head_dim by 2"
        )
    check_rope("config: draft.rope_parameters", config.rope_parameters, config.head_dim)


def fields_of(target: "PretrainedConfig") -> dict[str, Any]:
    """Of the config of a draft as wide as a target's text model, with its heads, RoPE and vocabulary."""
    return {
        "hidden_size": target.hidden_size,
        "intermediate_size": target.intermediate_size,
        "num_attention_heads": target.num_attention_heads,
        "num_key_value_heads": target.num_key_value_heads,
        "head_dim": head_dim_of(target),
        "rms_norm_eps": target.rms_norm_eps,
        "rope_parameters": dict(target.rope_parameters),
        "vocab_size": target.vocab_size,
        "max_position_embeddings": default_context(target.max_position_embeddings),
    }


def check_width(draft: LayerSizes, target: "PretrainedConfig") -> None:
    """`BadInput` for a draft of another width than the target's, whose embedding it reads."""
    if draft.hidden_size != target.hidden_size:
        raise BadInput(
            f"config: draft.hidden_size={draft.hidden_size}; it must be the target's {target.hidden_size}, as the "
            "draft reads the target's embedding"
        )


def check_copied(
    draft: LayerSizes, target: "PretrainedConfig", families: Sequence[str], setting: str = "initialise"
) -> None:
    """`BadInput` where the target has no layers for a draft to begin as, before any of its weights is read."""
    if target.model_type not in families or not layers_fit(draft, target):
        raise other_layers(target, families, setting)


def other_layers(target: "PretrainedConfig", families: Sequence[str], setting: str = "initialise") -> BadInput:
    """That none of the target's layers is of the kind or shape of a draft's, which are those of `families`."""
    return BadInput(
        f"config: {setting}=target copies layers of {' or '.join(families)} of the draft's own shape, and the target "
        f"({target.model_type}) has others or fewer; take {setting}=random"
    )


def layers_fit(draft: LayerSizes, target: "PretrainedConfig") -> bool:
    """Whether a dense target's last layers are of the shape of a `draft`'s, and as many, by both configs alone: its
    weights may take an hour to load.
    """
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    return (
        all(getattr(draft, name) == getattr(target, name) for name in sizes)
        and draft.head_dim == head_dim_of(target)
        and draft.num_hidden_layers <= target.num_hidden_layers
        and not any(getattr(target, name, False) for name in ("attention_bias", "mlp_bias"))
    )


def check_heads(draft: LayerSizes, target: "PretrainedConfig", cfg: Mapping[str, Any]) -> None:
    """`BadInput` for heads that a GPU's flash attention does not take; nothing but half precision is attended by it."""
    heads = {"target_dtype": ("target", head_dim_of(target)), "dtype": ("draft", draft.head_dim)}
    for setting, (name, head_dim) in heads.items():
        if cfg[setting] == "bf16" and (head_dim % 8 or head_dim > 256):
            raise BadInput(
                f"config: the {name} has a head_dim of {head_dim}: a GPU's flash attention takes multiples of 8, up "
                f"to 256; take {setting}=fp32" + " or another draft.head_dim" * (name == "draft")
            )


def head_dim_of(target: "PretrainedConfig") -> int:
    """Of a text model whose config need not write it out."""
    return getattr(target, "head_dim", None) or target.hidden_size // target.num_attention_heads
