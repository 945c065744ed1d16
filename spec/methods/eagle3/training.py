"""An EAGLE-3 training between the recipe's lines: see `spec.methods.method.Training`."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig

from spec.attention.block0 import Queries
from spec.attention.documents import Documents
from spec.errors import BadInput
from spec.methods import start
from spec.methods.checks import check_start
from spec.methods.eagle3 import initialise
from spec.methods.eagle3.config import draft_config
from spec.methods.eagle3.draft import EagleDraft
from spec.methods.eagle3.export import sglang_config
from spec.methods.eagle3.losses import Wanted, argmax_and_lse
from spec.methods.eagle3.rows import Rows, drafted_rows
from spec.methods.eagle3.step import Observation, decay_weights, observe, step_loss
from spec.methods.files import WEIGHTS
from spec.methods.layers import check_frequencies
from spec.samples.dataset import Samples
from spec.samples.vocabulary import count_tokens
from spec.target.frozen import Features, FrozenTarget
from spec.training.batch import Batch
from spec.training.result import StepResult

Json = dict[str, Any]

VOCABULARY = "vocab_map.safetensors"

# In what a draft to begin from must be as the one to be trained, and the setting that makes it so.
_SHAPE = {
    **dict.fromkeys(("target_hidden_size", "hidden_size", "vocab_size", "feature_layers"), ""),
    "draft_vocab_size": "draft_vocab_size",
    **{
        name: f"draft.{name}"
        for name in ("intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps")
    },
    **{name: f"draft.{name}" for name in ("rope_parameters", "num_hidden_layers", "fc_norm", "norm_output")},
}


class Eagle3Training:
    def __init__(self, cfg: DictConfig, target: PretrainedConfig):
        self.config = draft_config(cfg, target)
        check_frequencies(self.config)
        self.cfg, self.positions = cfg, cfg.steps
        self.head_rows = 0 if self.config.whole_vocabulary else self.config.draft_vocab_size
        config = self.config
        self.cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
        self.vocabulary: tuple[torch.Tensor, torch.Tensor] | None = None  # d2t [draft_vocab] int64, t2d [V] bool
        self.start: Path | str = cfg.initialise

    def check_start(self, config: Json) -> None:
        check_start(_shape(sglang_config(self.config, "float32", 1)), _shape(config), _SHAPE)

    def begin_from(self, folder: Path) -> str:
        """Its own vocabulary map is taken with it: under another one its head's rows would be other tokens'."""
        self.start, self.vocabulary = folder, _read_vocabulary(folder / WEIGHTS)
        return ""

    def read_samples(self, folder: Path, url: str) -> str:
        d2t, t2d = _read_vocabulary(folder / VOCABULARY)
        if len(t2d) != self.config.vocab_size:
            raise BadInput(
                f"{url}/{VOCABULARY} maps a vocabulary of {len(t2d)}, the target {self.cfg.target} has "
                f"{self.config.vocab_size}: these samples were prepared for another target"
            )
        if self.vocabulary is not None:  # with the draft that this one begins from
            return _coverage(folder, self.vocabulary[1], t2d)
        if self.config.whole_vocabulary:  # its map is no choice of the samples'
            return ""
        if len(d2t) != self.config.draft_vocab_size:
            raise BadInput(
                f"{url}/{VOCABULARY} has {len(d2t)} draft tokens, the config says "
                f"{self.config.draft_vocab_size}: set draft_vocab_size={len(d2t)}, or prepare the samples again"
            )
        self.vocabulary = d2t, t2d
        return ""

    def build(self, device: torch.device | str) -> EagleDraft:
        with torch.device(device):
            draft = EagleDraft(self.config)
        if self.vocabulary is not None:
            d2t, t2d = self.vocabulary
            draft.set_vocabulary(d2t.to(device), t2d.to(device))
        return draft

    def initialise(self, draft: EagleDraft, target: FrozenTarget) -> None:
        if isinstance(self.start, Path):
            start.load(draft, self.start)
        elif self.start == "target":
            initialise.from_target(draft, target)

    def share_target(self, draft: EagleDraft, target: FrozenTarget) -> None:
        draft.share_target(target.embed_weight, target.head_weight)

    def prepare(self, batch: Batch, epoch: int | None) -> Rows:
        return drafted_rows(batch, self.positions, self.config.num_hidden_layers)

    def look(self, draft: EagleDraft, target: FrozenTarget, batch: Batch) -> Observation:
        return observe(draft, target, batch, steps=self.positions, objective=self.cfg.objective)

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
        choice, lse = argmax_and_lse(hidden, head, with_lse=self.cfg.objective == "lk")
        wanted = Wanted(
            hidden=hidden,
            lse=lse,
            choice=choice,
            rows=torch.zeros(self.positions, tokens, dtype=torch.int64),
            bears=torch.ones(self.positions, tokens, dtype=torch.bool),
        )
        runs = tuple((at, at, at + length) for at in range(0, tokens, length))
        queries = Queries.of_runs(runs, torch.zeros(rows + 1, dtype=torch.int32), length)
        ids = torch.zeros(tokens, dtype=torch.int64)
        aux = features.aux.flatten(0, 1)
        every = queries if self.config.num_hidden_layers > 1 else None
        return Observation(ids, torch.zeros_like(ids), aux, queries, wanted, every)

    def full_observation(self, draft: EagleDraft, look: Observation, documents: Documents) -> Observation:
        return look

    def _decay(self, device: torch.device) -> torch.Tensor:
        return decay_weights(self.positions, self.cfg.decay, device)  # [K]


def _shape(config: Json) -> Json:
    norms = {name: config.get(name, False) for name in ("fc_norm", "norm_output")}
    return config | norms | {"feature_layers": config["eagle_config"]["eagle_aux_hidden_state_layer_ids"]}


def _coverage(samples: Path, t2d: torch.Tensor, chosen: torch.Tensor) -> str:
    """What share of the tokens that bear loss a draft can say with the map it comes with, and with the samples'."""
    train = Samples.open(samples / "train")
    counts = torch.from_numpy(count_tokens(train.input_ids, train.loss_mask, len(t2d)))
    own, samples_ = (float(counts[marked].sum() / counts.sum().clamp(min=1)) for marked in (t2d, chosen))
    return (
        f"the draft that training begins from keeps its own {int(t2d.sum())} tokens: they cover {own:.1%} of those "
        f"that bear loss here; the {int(chosen.sum())} chosen for these samples would cover {samples_:.1%}"
    )


def _read_vocabulary(path: Path) -> tuple[Any, Any]:
    try:
        with safe_open(path, "pt") as file:  # an export's other tensors are not read
            return file.get_tensor("d2t"), file.get_tensor("t2d")
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{path}: not a vocabulary map ({error}); prepare the samples again") from error
