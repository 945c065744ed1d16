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
from spec.methods.config import OwnConfig, check_copied, check_sizes, check_width, fields_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

COPIED = ("llama", "qwen3")  # families whose dense layers a draft's can begin as
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
            "num_hidden_layers": layers,
            "num_target_layers": target.num_hidden_layers,
            "feature_layers": feature_layers(target.num_hidden_layers, features),
            "block_size": block_size,
            "mask_token_id": mask_token_id,
            "markov_rank": markov_rank,
            "confidence_head": confidence_head,
        }
        config = cls(**(fields_of(target) | fields | overrides))
        config._check(target)
        return config

    def _check(self, target: "PretrainedConfig") -> None:
        check_sizes(self, _COUNTS)
        check_depth("config: layers", self.num_hidden_layers)
        check_width(self, target)
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
            check_copied(config, target, COPIED, setting)
    return config
