"""A block draft's own config: what is kept beside its checkpoints, and what of it the settings decide.

Imports no torch: what cannot be trained is refused before a GPU is asked for.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from spec.errors import BadInput
from spec.methods.block.checks import check_family
from spec.methods.block.layout import feature_layers
from spec.methods.checks import check_depth
from spec.methods.config import OwnConfig, check_sizes, head_dim_of, layers_fit
from spec.methods.files import default_context

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_COUNTS = (
    *("intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "num_hidden_layers"),
    *("max_position_embeddings", "block_size"),
)


@dataclasses.dataclass(frozen=True)
class BlockDraftConfig(OwnConfig):
    hidden_size: int  # the target's: the draft reads its embedding and uses its head
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_parameters: dict[str, Any]  # transformers 5's form: rope_type, rope_theta, and what the type needs
    vocab_size: int  # the target's
    max_position_embeddings: int
    num_target_layers: int
    feature_layers: tuple[int, ...]  # 0-based layers whose OUTPUTS the draft reads, ascending
    block_size: int  # B, the rows of a block; DFlash drafts B - 1 tokens, DSpark B
    mask_token_id: int  # a row of the target's embedding that no text uses
    markov_rank: int = 0  # 0: DFlash; above: DSpark
    confidence_head: bool = False  # DSpark's; SGLang reads it outside its default verification only

    @classmethod
    def for_target(
        cls,
        target: "PretrainedConfig",
        *,
        layers: int,
        block_size: int,
        features: int,
        mask_token_id: int,
        markov_rank: int = 0,
        confidence_head: bool = False,
        **overrides: Any,
    ) -> "BlockDraftConfig":
        """A draft as wide as the target's text model, with its heads and RoPE, that reads `features` of its layers;
        `overrides` replace single fields. `BadInput` where these make no draft of this target.
        """
        check_family(target.model_type)
        fields = {
            "hidden_size": target.hidden_size,
            "intermediate_size": target.intermediate_size,
            "num_hidden_layers": layers,
            "num_attention_heads": target.num_attention_heads,
            "num_key_value_heads": target.num_key_value_heads,
            "head_dim": head_dim_of(target),
            "rms_norm_eps": target.rms_norm_eps,
            "rope_parameters": dict(target.rope_parameters),
            "vocab_size": target.vocab_size,
            "max_position_embeddings": default_context(target.max_position_embeddings),
            "num_target_layers": target.num_hidden_layers,
            "feature_layers": feature_layers(target.num_hidden_layers, features),
            "block_size": block_size,
            "mask_token_id": mask_token_id,
            "markov_rank": markov_rank,
            "confidence_head": confidence_head,
        }
        config = cls(**(fields | overrides))
        config._check(target)
        return config

    def _check(self, target: "PretrainedConfig") -> None:
        check_sizes(self, _COUNTS)
        check_depth("config: layers", self.num_hidden_layers)
        if self.hidden_size != target.hidden_size:
            raise BadInput(
                f"config: draft.hidden_size={self.hidden_size}; it must be the target's {target.hidden_size}, as the "
                "draft reads the target's embedding and uses its head"
            )
        if not 0 <= self.mask_token_id < target.vocab_size:
            raise BadInput(
                f"config: mask_token_id={self.mask_token_id}; it is one of the {target.vocab_size} rows of the "
                "target's embedding, one that no text uses"
            )
        if self.drafts < 1:
            raise BadInput(
                f"config: block_size={self.block_size} drafts no token: DFlash does not read a block's row 0"
            )
        if self.confidence_head and not self.markov_rank:
            raise BadInput("config: a confidence head belongs to DSpark; set markov_rank above 0 or leave it out")

    @property
    def first_row(self) -> int:
        """The row of a block that makes draft 0."""
        return 0 if self.markov_rank else 1

    @property
    def drafts(self) -> int:
        """Tokens that a block drafts."""
        return self.block_size - self.first_row


def draft_config(cfg: DictConfig, target: "PretrainedConfig") -> BlockDraftConfig:
    """Of the draft that complete settings train for a target's text model; `BadInput` if there can be none."""
    overrides: Any = OmegaConf.to_container(cfg.draft)  # plain: a checkpoint's JSON takes no other groups
    config = BlockDraftConfig.for_target(
        target,
        layers=cfg.layers,
        block_size=cfg.block_size,
        features=cfg.features,
        mask_token_id=cfg.mask_token_id,
        markov_rank=cfg.get("markov_rank", 0),
        confidence_head=cfg.get("confidence", 0.0) > 0,
        **overrides,
    )
    for setting in ("initialise", "initialise_else"):
        if cfg[setting] == "target":
            check_copied(config, target, setting)
    return config


def check_copied(config: BlockDraftConfig, target: "PretrainedConfig", setting: str = "initialise") -> None:
    """`BadInput` where the target has no layers for this draft to begin as, before any of its weights is read."""
    if target.model_type not in ("llama", "qwen3") or not layers_fit(config, target):
        raise other_layers(target, setting)


def other_layers(target: "PretrainedConfig", setting: str = "initialise") -> BadInput:
    """That none of the target's layers is of the draft's kind or shape."""
    return BadInput(
        f"config: {setting}=target copies dense Llama or Qwen3 layers of the draft's own shape, and the target "
        f"({target.model_type}) has others or fewer; take {setting}=random"
    )
