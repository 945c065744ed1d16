"""The target's forward and the draft's step of one batch, run on the meta device: the real code at the real sizes.

So what the activations take is not a second description of the step that must be kept true, but the step itself.
Assumed is the worst batch: rows full to the last token, in one document each, all of which bear loss.
"""

import copy
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from transformers import AttentionInterface, PretrainedConfig

from spec.attention.documents import Documents
from spec.methods.method import Training
from spec.planning.live import LiveBytes
from spec.planning.roofline import Watch, Work
from spec.target.families import FAMILIES
from spec.target.frozen import FrozenTarget
from spec.target.loading import empty_model

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
LAYERS = 7  # more than have feature layers: a layer's activations are gone when the next one runs


@dataclass(frozen=True)
class Rehearsal:
    """Bytes and FLOPs of one batch on one rank, parameters not counted."""

    looking: int  # at most while the target runs, its features included
    observed: int  # what is kept of the batch between the two
    stepping: int  # at most in the draft's forward and backward, its whole gradient included, `observed` not
    passes: Work  # the target's operators of `LAYERS` layers that are no products: norms, rotary positions, activations
    draft: Work  # the draft's forward and backward
    loss: Work  # what is computed along a vocabulary, the target's choices among it


def rehearse(cfg: DictConfig, target: PretrainedConfig, method: Training) -> Rehearsal:
    """`cfg` complete, `target` the text model's config."""
    with torch.device("meta"):
        documents = Documents.from_lengths([[cfg.max_length]] * cfg.batch_size, cfg.max_length, "meta")
    seen = Watch(target.vocab_size, method.head_rows or target.vocab_size)
    looking, look = _look(cfg, target, method, documents, seen)
    passes, seen.rest = seen.rest.without_products(), Work()
    stepping = _step(cfg, target, method, look, documents, seen)
    return Rehearsal(looking, _size(look), stepping, passes, seen.rest, seen.along_vocabulary)


def _look(
    cfg: DictConfig, config: PretrainedConfig, method: Training, documents: Documents, seen: Watch
) -> tuple[int, Any]:
    shallow = copy.deepcopy(config)
    shallow.num_hidden_layers = LAYERS
    model = empty_model(shallow, FAMILIES[config.model_type], DTYPES[cfg.target_dtype])
    model.config._attn_implementation = _ATTENTION
    target = FrozenTarget(model)
    rows, length = cfg.batch_size, cfg.max_length
    layers = range(len(method.config.feature_layers))
    with torch.device("meta"), torch.no_grad(), seen, LiveBytes() as memory:
        features = target.features(torch.zeros(rows, length, dtype=torch.int64), documents, layers)
        look = method.full_look(features, documents, target.head_weight)
    return memory.peak, look


def _step(
    cfg: DictConfig, config: PretrainedConfig, method: Training, look: Any, documents: Documents, watch: Watch
) -> int:
    with torch.device("meta"):
        draft = method.build("meta").to(DTYPES[cfg.dtype])
        of_target = torch.empty(config.vocab_size, config.hidden_size, dtype=DTYPES[cfg.target_dtype])
        draft.share_target(of_target, of_target)
        with watch, LiveBytes() as memory:
            seen = method.full_observation(draft, look, documents)
            result = method.loss(draft, seen, method.weights(seen.count))
            result.loss.backward()
    return memory.peak


def _size(look: Any) -> int:
    """Bytes of the tensors in nested dataclasses."""
    if isinstance(look, torch.Tensor):
        return look.nbytes
    return sum(_size(getattr(look, field.name)) for field in fields(look)) if is_dataclass(look) else 0


def _attention(module, query, key, value, mask, **_):
    """No kernel runs on the meta device, and the fallback there would make scores that flash attention never makes."""
    return torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format), None


_ATTENTION = "sgl_spec_rehearsal"
AttentionInterface.register(_ATTENTION, _attention)
