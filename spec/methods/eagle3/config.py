"""An EAGLE-3 draft's own config: what is kept beside its checkpoints, and what of it the settings decide.

Imports no torch: what cannot be trained is refused before a GPU is asked for.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from spec.errors import BadInput
from spec.methods.checks import check_depth
from spec.methods.config import OwnConfig, check_copied, check_sizes, check_width, fields_of
from spec.methods.eagle3.layout import feature_layers

if TYPE_CHECKING:
    from transformers import PretrainedConfig

COPIED = ("llama",)  # families whose dense layers a draft's can begin as
_SIZES = (
    *("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("max_position_embeddings", "num_hidden_layers"),
)


@dataclasses.dataclass(frozen=True)
class DraftConfig(OwnConfig):
    hidden_size: int
    target_hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_parameters: dict[str, Any]  # transformers 5's form: rope_type, rope_theta, and what the type needs
    vocab_size: int  # the target's
    draft_vocab_size: int
    max_position_embeddings: int
    feature_layers: tuple[int, int, int]  # 0-based layers whose OUTPUTS the draft reads, ascending
    num_hidden_layers: int = 1
    fc_norm: bool = False  # each feature has a norm of its own before fc
    norm_output: bool = False  # the next step reads the hidden after the last norm, not before it
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    @classmethod
    def for_target(cls, target: "PretrainedConfig", draft_vocab_size: int | None, **overrides: Any) -> "DraftConfig":
        """A draft as wide as the target's text model, with its heads and RoPE; `overrides` replace single fields.
        `draft_vocab_size` None is the target's whole vocabulary.

        `BadInput` if the target is too shallow for three feature layers, the draft vocabulary exceeds the target's, or
        the overrides make no layer.
        """
        draft_vocab_size = target.vocab_size if draft_vocab_size is None else draft_vocab_size
        if not 0 < draft_vocab_size <= target.vocab_size:
            raise BadInput(f"a draft vocabulary of {draft_vocab_size} does not fit the target's of {target.vocab_size}")
        fields = {
            "target_hidden_size": target.hidden_size,
            "draft_vocab_size": draft_vocab_size,
            "feature_layers": feature_layers(target.num_hidden_layers),
            "bos_token_id": target.bos_token_id,
            "eos_token_id": target.eos_token_id,
        }
        config = cls(**(fields_of(target) | fields | overrides))
        config._check(target)
        return config

    def _check(self, target: "PretrainedConfig") -> None:
        check_sizes(self, _SIZES)
        check_depth("config: draft.num_hidden_layers", self.num_hidden_layers)
        for name in ("fc_norm", "norm_output"):
            if not isinstance(getattr(self, name), bool):
                raise BadInput(f"config: draft.{name}={getattr(self, name)!r}; it is true or false")
        check_width(self, target)

    @property
    def whole_vocabulary(self) -> bool:
        """Whether the draft can say every token of the target's: then its map is the identity, in a draft's buffers
        from the start.
        """
        return self.draft_vocab_size == self.vocab_size


def draft_config(cfg: DictConfig, target: "PretrainedConfig") -> DraftConfig:
    """Of the draft that complete settings train for a target's text model; `BadInput` if there can be none."""
    overrides: Any = OmegaConf.to_container(cfg.draft)  # plain: a checkpoint's JSON takes no other groups
    config = DraftConfig.for_target(target, cfg.draft_vocab_size, **overrides)
    for setting in ("initialise", "initialise_else"):
        if cfg[setting] == "target":
            check_start(config, target, setting)
    return config


def check_start(config: DraftConfig, target: "PretrainedConfig", setting: str = "initialise") -> None:
    """`BadInput` where this draft cannot begin as the target's layers, before any of its weights is read."""
    if config.fc_norm:
        raise BadInput(
            f"config: {setting}=target has a feature pass fc as it is; take draft.fc_norm=false or another start"
        )
    check_copied(config, target, COPIED, setting)
