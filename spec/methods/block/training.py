"""A block draft's training between the recipe's lines: see `spec.methods.method.Training`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from transformers import PretrainedConfig

from spec.attention.documents import Documents
from spec.errors import BadInput
from spec.methods import start
from spec.methods.block import initialise, layout
from spec.methods.block.anchors import Blocks, draw
from spec.methods.block.config import draft_config
from spec.methods.block.draft import BlockDraft
from spec.methods.block.export import server_config
from spec.methods.block.losses import Objective, decay_of, decay_weights
from spec.methods.block.step import Observation, observe, step_loss
from spec.methods.checks import check_mask, check_start
from spec.methods.layers import check_frequencies
from spec.samples.dataset import Samples
from spec.target.frozen import Features, FrozenTarget
from spec.training.batch import Batch
from spec.training.result import StepResult

Json = dict[str, Any]

# In what a draft to begin from must be as the one to be trained, and the setting that makes it so. Not the size of its
# block, on which no weight depends.
_SHAPE = {
    **dict.fromkeys(("hidden_size", "vocab_size", "num_target_layers"), ""),
    "features": "features",
    "feature_layers": "",
    "mask_token_id": "mask_token_id",
    "num_hidden_layers": "layers",
    "markov_rank": "markov_rank",
    **{
        name: f"draft.{name}"
        for name in ("intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps")
    },
    "rope_parameters": "draft.rope_parameters",
}
_HEADS = ("markov_head.", "confidence_head.")  # what one block draft has and another has not

_AT_ONCE = 1 << 24  # tokens of the samples looked through together


class Drawn:
    """What an epoch trains on: the target's look at a batch, and the blocks drawn from it."""

    def __init__(self, look: Observation, blocks: Blocks):
        self.look, self.blocks, self.count = look, blocks, blocks.count


class BlockTraining:
    def __init__(self, cfg: DictConfig, target: PretrainedConfig):
        self.config = draft_config(cfg, target)
        check_frequencies(self.config)
        self.cfg, self.positions = cfg, self.config.drafts
        self.head_rows = 0  # the target's own serves
        self.cache = 2 * self.config.num_hidden_layers * self.config.num_key_value_heads * self.config.head_dim
        self.objective = Objective(ce=cfg.ce, l1=cfg.l1, confidence=cfg.get("confidence", 0.0), weighting=cfg.weighting)
        self.decay = cfg.decay or decay_of(self.config.block_size, self.config.markov_rank)
        self.start: Path | str = cfg.initialise

    def check_start(self, config: Json) -> None:
        """A DFlash draft, which has no Markov head, may become a DSpark one with a fresh one."""
        ours, theirs = _shape(server_config(self.config, "", "float32", 1)), _shape(config)
        if not theirs.get("markov_rank"):
            theirs["markov_rank"] = ours.get("markov_rank")
        check_start(ours, theirs, _SHAPE)

    def begin_from(self, folder: Path) -> str:
        self.start = folder
        written = server_config(self.config, "", "float32", 1)
        return start.told(folder, set(layout.weight_shapes(written)), _HEADS)

    def read_samples(self, folder: Path, url: str) -> str:
        """Nothing is kept; refused are samples in which the mask token is a word, or no answer fills a block."""
        mask, longest = self.config.mask_token_id, 0
        for split in ("train", "held_out"):
            samples = Samples.open(folder / split)
            check_mask(mask, samples.input_ids, f"{url}/{split}")
            longest = max(longest, _longest_answer(samples))
        if longest <= self.positions:
            most = longest - 1 + self.config.first_row  # the anchor is a token of the answer as well
            advice = f"set block_size to {most} at most" if longest > 1 else "no block can be learnt from them"
            raise BadInput(
                f"config: a block of {self.positions} drafts, and the longest answer in {url} has {longest} tokens; "
                f"{advice}"
            )
        return ""

    def build(self, device: torch.device | str) -> BlockDraft:
        with torch.device(device):
            return BlockDraft(self.config)

    def initialise(self, draft: BlockDraft, target: FrozenTarget) -> None:
        if isinstance(self.start, Path):
            start.load(draft, self.start, _HEADS)
        elif self.start == "target":
            initialise.from_target(draft, target)

    def share_target(self, draft: BlockDraft, target: FrozenTarget) -> None:
        draft.share_target(target.embed_weight, target.head_weight)

    def prepare(self, batch: Batch, epoch: int | None) -> Blocks:
        return self._draw(batch.documents, batch.loss_mask, batch.row_ids, epoch)

    def look(self, draft: BlockDraft, target: FrozenTarget, batch: Batch) -> Observation:
        return observe(draft, target, batch, keep_last=self._compares)

    def observe(self, draft: BlockDraft, look: Observation, batch: Batch, epoch: int | None) -> Drawn:
        blocks = batch.rows or self.prepare(batch.to("cpu"), epoch)
        return Drawn(look, blocks.to(look.input_ids.device))

    def weights(self, count: torch.Tensor) -> torch.Tensor:
        """By place in the block alone; the sum of what they weigh is divided out when it is known."""
        if self.objective.weighting == "dpace":  # instead of the decay
            return torch.ones(self.positions, device=count.device)
        return decay_weights(self.positions, self.decay, count.device)

    def loss(self, draft: BlockDraft, observation: Drawn, weights: torch.Tensor) -> StepResult:
        return step_loss(
            draft,
            observation.look,
            observation.blocks,
            weights,
            objective=self.objective,
            checkpoint_layers=self.cfg.activation_checkpointing,
        )

    def mean_loss(self, loss_sum: torch.Tensor, count: torch.Tensor) -> float:
        weights = self.weights(count.cpu()).double()
        return float((weights * loss_sum).sum() / (weights * count).sum().clamp(min=1))

    def full_look(self, features: Features, documents: Documents, head: torch.Tensor) -> Observation:
        ids = torch.zeros(documents.position_ids.numel(), dtype=torch.int64)
        last = features.last.flatten(0, 1)[ids] if self._compares else None
        return Observation(ids, torch.zeros_like(ids), features.aux.flatten(0, 1)[ids], last)

    def full_observation(self, draft: BlockDraft, look: Observation, documents: Documents) -> Drawn:
        rows, length = documents.position_ids.shape
        every = torch.ones(rows, length, dtype=torch.bool, device="cpu")
        blocks = self._draw(documents, every, range(rows), None)
        return Drawn(look, blocks.to("meta"))

    @property
    def _compares(self) -> bool:
        """Whether the loss asks for the target's distribution, and not its tokens alone."""
        return self.objective.l1 > 0 or self.objective.confidence > 0

    def _draw(self, documents: Documents, loss_mask: torch.Tensor, row_ids: Sequence[int], epoch: int | None) -> Blocks:
        most, seed = self.cfg.anchors, self.cfg.seed
        return draw(documents, loss_mask, row_ids, drafts=self.positions, most=most, seed=seed, epoch=epoch)


def _shape(config: Json) -> Json:
    block = config["dflash_config"]
    layers = block["target_layer_ids"]
    return config | {"features": len(layers), "feature_layers": layers, "mask_token_id": block["mask_token_id"]}


def _longest_answer(samples: Samples) -> int:
    """The most tokens in a row that bear loss. A row's first token bears none, so no run reaches into the next row."""
    longest = 0
    for at in range(0, len(samples.loss_mask), _AT_ONCE):
        edges = np.flatnonzero(
            np.diff((samples.loss_mask[at : at + _AT_ONCE] != 0).astype(np.int8), prepend=0, append=0)
        )
        longest = max(longest, int((edges[1::2] - edges[::2]).max(initial=0)))
    return longest
