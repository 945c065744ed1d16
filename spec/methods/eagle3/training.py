"""An EAGLE-3 training between the recipe's lines: see `spec.methods.method.Training`."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from safetensors import SafetensorError
from transformers import PretrainedConfig

from spec.attention.block0 import Queries
from spec.attention.documents import Documents
from spec.errors import BadInput
from spec.methods.eagle3 import initialise
from spec.methods.eagle3.draft import DraftConfig, EagleDraft
from spec.methods.eagle3.losses import Wanted, argmax_and_lse
from spec.methods.eagle3.step import Observation, decay_weights, observe, step_loss
from spec.samples.vocabulary import DraftVocabulary
from spec.target.frozen import Features, FrozenTarget
from spec.training.batch import Batch
from spec.training.result import StepResult

VOCABULARY = "vocab_map.safetensors"


class Eagle3Training:
    def __init__(self, cfg: DictConfig, target: PretrainedConfig):
        overrides = {str(name): value for name, value in cfg.draft.items()}
        self.config = DraftConfig.for_target(target, cfg.draft_vocab_size, **overrides)
        self.cfg, self.positions = cfg, cfg.steps
        self.head_rows = cfg.draft_vocab_size
        self.cache = 2 * self.config.num_key_value_heads * self.config.head_dim
        self.vocabulary: tuple[torch.Tensor, torch.Tensor] | None = None  # d2t [draft_vocab] int64, t2d [V] bool

    def read_samples(self, folder: Path, url: str) -> None:
        d2t, t2d = _read_vocabulary(folder / VOCABULARY)
        if len(t2d) != self.config.vocab_size:
            raise BadInput(
                f"{url}/{VOCABULARY} maps a vocabulary of {len(t2d)}, the target {self.cfg.target} has "
                f"{self.config.vocab_size}: these samples were prepared for another target"
            )
        if len(d2t) != self.config.draft_vocab_size:
            raise BadInput(
                f"{url}/{VOCABULARY} has {len(d2t)} draft tokens, the config says "
                f"{self.config.draft_vocab_size}: set draft_vocab_size={len(d2t)}, or prepare the samples again"
            )
        self.vocabulary = d2t, t2d

    def build(self, device: torch.device | str) -> EagleDraft:
        with torch.device(device):
            draft = EagleDraft(self.config)
        if self.vocabulary is not None:
            d2t, t2d = self.vocabulary
            draft.set_vocabulary(d2t.to(device), t2d.to(device))
        return draft

    def initialise(self, draft: EagleDraft, target: FrozenTarget) -> None:
        if self.cfg.initialise == "target":
            initialise.from_target(draft, target)

    def share_target(self, draft: EagleDraft, target: FrozenTarget) -> None:
        draft.share_target(target.embed_weight, target.head_weight)

    def look(self, draft: EagleDraft, target: FrozenTarget, batch: Batch) -> Observation:
        return observe(draft, target, batch, steps=self.positions)

    def observe(self, draft: EagleDraft, look: Observation, batch: Batch, epoch: int | None) -> Observation:
        return look  # every epoch trains on all of it

    def weights(self, count: torch.Tensor) -> torch.Tensor:
        """The mean over each step's rows, times `decay ** k`."""
        return self._decay(count.device) / count.clamp(min=1)

    def loss(self, draft: EagleDraft, observation: Observation, weights: torch.Tensor) -> StepResult:
        cfg = self.cfg
        return step_loss(
            draft,
            observation,
            weights,
            objective=cfg.objective,
            checkpoint_steps=cfg.activation_checkpointing,
            compiled=cfg.compile,
        )

    def mean_loss(self, loss_sum: torch.Tensor, count: torch.Tensor) -> float:
        return float((self._decay(loss_sum.device).double() * (loss_sum / count.clamp(min=1))).sum())

    def full_look(self, features: Features, documents: Documents, head: torch.Tensor) -> Observation:
        rows, length = documents.position_ids.shape
        tokens = rows * length
        hidden = features.last.flatten(0, 1)[torch.zeros(tokens, dtype=torch.int64)]
        choice, lse = argmax_and_lse(hidden, head)
        wanted = Wanted(
            hidden=hidden,
            lse=lse,
            choice=choice,
            rows=torch.zeros(self.positions, tokens, dtype=torch.int64),
            bears=torch.ones(self.positions, tokens, dtype=torch.bool),
        )
        runs = tuple((at, at, at + length) for at in range(0, tokens, length))
        queries = Queries(runs, torch.zeros(rows + 1, dtype=torch.int32), length)
        ids = torch.zeros(tokens, dtype=torch.int64)
        aux = features.aux.flatten(0, 1)[ids]
        return Observation(ids, torch.zeros_like(ids), aux, queries, wanted)

    def full_observation(self, draft: EagleDraft, look: Observation, documents: Documents) -> Observation:
        return look

    def _decay(self, device: torch.device) -> torch.Tensor:
        return decay_weights(self.positions, self.cfg.decay, device)  # [K]


def _read_vocabulary(path: Path) -> tuple[Any, Any]:
    try:
        d2t, t2d = DraftVocabulary.load(path)
        return torch.from_numpy(d2t), torch.from_numpy(t2d)
    except (OSError, SafetensorError, TypeError) as error:
        raise BadInput(f"{path}: not a vocabulary map ({error}); prepare the samples again") from error
