"""The target's forward and the draft's step of one batch, run on the meta device: the real code at the real sizes.

So what the activations take is not a second description of the step that must be kept true, but the step itself.
Assumed is the worst batch: rows full to the last token, in one document each, all of which bear loss.
"""

import copy
from dataclasses import dataclass

import torch
from omegaconf import DictConfig
from torch.utils.flop_counter import FlopCounterMode
from transformers import AttentionInterface, PretrainedConfig

from spec.attention.block0 import Queries
from spec.attention.documents import Documents
from spec.attention.to_device import tensors_of
from spec.methods.eagle3.draft import DraftConfig, EagleDraft
from spec.methods.eagle3.losses import Wanted, argmax_and_lse
from spec.methods.eagle3.step import Observation, decay_weights, step_loss
from spec.planning.live import LiveBytes
from spec.target.families import FAMILIES
from spec.target.frozen import FrozenTarget
from spec.target.loading import empty_model

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_LAYERS = 7  # as few as have three feature layers: a layer's activations are gone when the next one runs


@dataclass(frozen=True)
class Rehearsal:
    """Bytes and FLOPs of one batch on one rank, parameters not counted."""

    looking: int  # at most while the target runs, its features included
    observed: int  # what is kept of the batch between the two
    stepping: int  # at most in the draft's forward and backward, its whole gradient included, `observed` not
    draft_flops: int


def rehearse(cfg: DictConfig, target: PretrainedConfig, draft_config: DraftConfig) -> Rehearsal:
    """`cfg` complete, `target` the text model's config."""
    looking, observation = _look(cfg, target, draft_config)
    stepping, flops = _step(cfg, draft_config, observation)
    return Rehearsal(looking, _size(observation), stepping, flops)


def _look(cfg: DictConfig, config: PretrainedConfig, draft_config: DraftConfig) -> tuple[int, Observation]:
    shallow = copy.deepcopy(config)
    shallow.num_hidden_layers = _LAYERS
    model = empty_model(shallow, FAMILIES[config.model_type], DTYPES[cfg.target_dtype])
    model.config._attn_implementation = _ATTENTION
    target = FrozenTarget(model)
    rows, length, tokens = cfg.batch_size, cfg.max_length, cfg.batch_size * cfg.max_length
    with torch.device("meta"), torch.no_grad(), LiveBytes() as memory:
        documents = Documents.from_lengths([[length]] * rows, length, "meta")
        features = target.features(torch.zeros(rows, length, dtype=torch.int64), documents)
        hidden = features.last.flatten(0, 1)[torch.zeros(tokens, dtype=torch.int64)]
        choice, lse = argmax_and_lse(hidden, target.head_weight, with_lse=cfg.objective == "lk")
        wanted = Wanted(
            hidden=hidden,
            lse=lse,
            choice=choice,
            rows=torch.zeros(cfg.steps, tokens, dtype=torch.int64),
            bears=torch.ones(cfg.steps, tokens, dtype=torch.bool),
        )
        runs = tuple((at, at, at + length) for at in range(0, tokens, length))
        queries = Queries.of_runs(runs, torch.zeros(rows + 1, dtype=torch.int32), length)
        ids = torch.zeros(tokens, dtype=torch.int64)
        aux = features.aux.flatten(0, 1)
    return memory.peak, Observation(ids, torch.zeros_like(ids), aux, queries, wanted)


def _step(cfg: DictConfig, draft_config: DraftConfig, seen: Observation) -> tuple[int, int]:
    with torch.device("meta"):
        draft = EagleDraft(draft_config).to(DTYPES[cfg.dtype])
        of_target = torch.empty(draft_config.vocab_size, draft_config.hidden_size, dtype=seen.aux.dtype)
        draft.share_target(of_target, of_target)
        weights = decay_weights(cfg.steps, cfg.decay, "meta")
        with FlopCounterMode(display=False) as flops, LiveBytes() as memory:
            checkpoint = cfg.activation_checkpointing
            result = step_loss(draft, seen, weights, objective=cfg.objective, checkpoint_steps=checkpoint)
            result.loss.backward()
    return memory.peak, flops.get_total_flops()


def _size(seen: Observation) -> int:
    return sum(tensor.nbytes for tensor in tensors_of(seen))


def _attention(module, query, key, value, mask, **_):
    """No kernel runs on the meta device, and the fallback there would make scores that flash attention never makes."""
    return torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format), None


_ATTENTION = "sgl_spec_rehearsal"
AttentionInterface.register(_ATTENTION, _attention)
