"""DFlash and DSpark as the house knows them: one draft, without a Markov head and with one."""

import math
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spec.errors import BadInput
from spec.methods.block import checks, layout, published
from spec.methods.block.config import BlockDraftConfig, draft_config
from spec.methods.checks import check_initialise, check_names
from spec.methods.method import Drafter, Drafts, Json, Method, Rows, Training
from spec.methods.tensors import StoredTensor

if TYPE_CHECKING:
    import torch
    from omegaconf import DictConfig
    from transformers import PretrainedConfig

_COUNTS = ("block_size", "layers", "features", "anchors")
_CHOICES = {"weighting": ("decay", "dpace")}
_SHARES = ("ce", "l1", "confidence")
# The target's, or settings with a name of their own.
_NOT_TO_CHOOSE = {
    *("hidden_size", "vocab_size", "num_target_layers", "feature_layers", "num_hidden_layers", "block_size"),
    *("mask_token_id", "markov_rank", "confidence_head"),
}


class Block(Method):
    no_weights: frozenset[str] = frozenset()
    markov: bool

    def check_settings(self, cfg: "DictConfig") -> None:
        check_initialise(cfg.initialise, cfg.initialise_else)
        for name, choices in _CHOICES.items():
            if cfg[name] not in choices:
                raise BadInput(f"config: {name}={cfg[name]!r}; it is one of {', '.join(choices)}")
        for name in (*_COUNTS, *(("markov_rank",) if self.markov else ())):
            if not isinstance(cfg[name], int) or isinstance(cfg[name], bool) or cfg[name] < 1:
                raise BadInput(f"config: {name}={cfg[name]!r}; it is a whole number of at least 1")
        if not isinstance(cfg.mask_token_id, int) or isinstance(cfg.mask_token_id, bool) or cfg.mask_token_id < 0:
            raise BadInput(f"config: mask_token_id={cfg.mask_token_id!r}; it is a row of the target's embedding")
        decay = 1 if cfg.decay is None else cfg.decay
        if not isinstance(decay, int | float) or isinstance(decay, bool) or not 0 < decay < math.inf:
            raise BadInput(f"config: decay={cfg.decay!r}; it is above 0, or null for the published one")
        shares = {name: cfg.get(name, 0) for name in _SHARES}
        for name, share in shares.items():
            if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share < math.inf:
                raise BadInput(f"config: {name}={share!r}; it is a share of the loss, from 0 on")
        if not shares["ce"] + shares["l1"]:
            raise BadInput("config: ce and l1 are both 0, so nothing would be learnt")
        if cfg.compile:
            raise BadInput(f"config: compile=true: nothing of a {self.title} step is compiled; set compile=false")
        check_names("draft", cfg.draft, {field.name for field in fields(BlockDraftConfig)} - _NOT_TO_CHOOSE)

    def draft_config(self, cfg: "DictConfig", target: "PretrainedConfig") -> BlockDraftConfig:
        return draft_config(cfg, target)

    def check_server(self, info: Json, drafts: Drafts, url: str) -> None:
        checks.check_server(info, self.algorithm, checks.number_of(drafts), url)

    def target_facts(self, target: "PretrainedConfig") -> Json:
        return {}

    def check_config(self, path: Path, config: Json) -> None:
        checks.check_config(path, config, self.markov)

    def check_target(self, path: Path, config: Json, target: Json) -> None:
        checks.check_target(path, config, target)

    def tensor_shapes(self, config: Json) -> dict[str, tuple[int, ...]]:
        return layout.weight_shapes(config)

    def check_tensors(self, path: Path, config: Json, tensors: dict[str, StoredTensor]) -> None:
        checks.check_tensors(path, config, tensors)

    def norms(self, config: Json) -> tuple[str, ...]:
        return layout.norms(config)

    def describe(self, config: Json) -> Rows:
        rows: Rows = [
            ("layers", config["num_hidden_layers"]),
            ("block", f"{config['block_size']} rows, {self.most_drafts(config)} drafts a round"),
            ("features", "outputs of the target's layers "
             + ", ".join(map(str, config["dflash_config"]["target_layer_ids"]))),
            ("mask token", config["dflash_config"]["mask_token_id"]),
        ]  # fmt: skip
        return [*rows, ("Markov rank", config["markov_rank"])] if self.markov else rows

    def most_drafts(self, config: Json) -> int | None:
        return config["block_size"] if self.markov else config["block_size"] - 1

    def mask_token(self, config: Json) -> int | None:
        return config["dflash_config"]["mask_token_id"]

    def as_served(self, config: Json, target: Json) -> Json:
        return published.as_served(config, self.architecture, target, self.markov)

    def adopt(self, config: Json, tensors: "dict[str, torch.Tensor]") -> tuple[Json, "dict[str, torch.Tensor]"]:
        return published.adopt(config, tensors)

    def training(self, cfg: "DictConfig", target: "PretrainedConfig") -> Training:
        from spec.methods.block.training import BlockTraining

        return BlockTraining(cfg, target)

    def read_draft(self, config: str) -> Any:
        from spec.methods.block.draft import BlockDraft

        return BlockDraft(BlockDraftConfig.from_json(config))

    def server_config(self, draft: Any, dtype: str, context_length: int) -> Json:
        from spec.methods.block.export import server_config

        return server_config(draft.config, self.architecture, dtype, context_length)

    def trained_answer(self, draft: Any, dtype: "torch.dtype") -> "torch.Tensor":
        from spec.methods.block.export import trained_answer

        return trained_answer(draft, dtype)

    def load(self, folder: Path, *, dtype: "torch.dtype", device: "torch.device | str" = "cpu") -> Drafter:
        from spec.methods.block.inference import BlockDrafter

        return BlockDrafter.load(folder, dtype=dtype, device=device)


class DFlash(Block):
    name = "dflash"
    title = "DFlash"
    paper = "2602.06036"
    tags = ("dflash",)
    algorithm = "DFLASH"
    architecture = "DFlashDraftModel"
    begins_from = ("dflash",)  # a DSpark draft's rows draft another token each, and its Markov head would be lost
    about = "A few layers that draft a whole block of tokens in one forward, reading the target's hidden states"
    serving_note = "A block of other than the trained size is another input, not a part of it: fewer drafts are worth\n\
measuring, more are not to be asked for."
    taken_on_trust = (
        "feature ids (dflash_config.target_layer_ids), mask token, block_size, RoPE, q/k norms, and the values of all "
        "weights"
    )
    defaults = Path(__file__).with_name("dflash.yaml")
    markov = False

    def flags(self, drafts: Drafts) -> dict[str, str]:
        """The block has a row more than it drafts."""
        return {
            "--speculative-algorithm": self.algorithm,
            "--speculative-num-draft-tokens": str(checks.number_of(drafts) + 1),
        }


class DSpark(Block):
    name = "dspark"
    title = "DSpark"
    paper = "2607.05147"
    tags = ("dspark",)
    algorithm = "DSPARK"
    architecture = "DSparkDraftModel"
    also_called = ("Qwen3DSparkModel",)
    begins_from = ("dspark", "dflash")
    about = (
        "A few layers that draft a whole block of tokens in one forward, reading the target's hidden states, and a "
        "Markov\nhead that lets each draft follow from the one before"
    )
    serving_note = DFlash.serving_note
    taken_on_trust = f"{DFlash.taken_on_trust}, the Markov tables W1 and W2 being known by shape alone"
    defaults = Path(__file__).with_name("dspark.yaml")
    markov = True

    def flags(self, drafts: Drafts) -> dict[str, str]:
        return {
            "--speculative-algorithm": self.algorithm,
            "--speculative-dspark-block-size": str(checks.number_of(drafts)),
        }
