"""Tiny random drafts, batches and a fake target for the tests of the training step, and their plain reference."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from spec.methods.eagle3.config import DraftConfig
from spec.methods.eagle3.draft import EagleDraft
from spec.target.frozen import Features
from spec.training.batch import Batch, collate
from tests.reference import Document, reference_loss

VOCAB, DRAFT_VOCAB = 61, 40


@dataclass
class FakeTarget:
    """Random features that do not depend on the tokens; peaked enough that argmaxes do not hang on rounding."""

    aux: torch.Tensor  # [B, T, 3 * H_target]
    last: torch.Tensor  # [B, T, H_target]
    embed_weight: torch.Tensor  # [V, H]
    head_weight: torch.Tensor  # [V, H_target]

    def features(self, input_ids: torch.Tensor, documents, layers) -> Features:
        assert input_ids.shape == self.aux.shape[:2] == documents.position_ids.shape
        return Features(self.aux, self.last)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "FakeTarget":
        return FakeTarget(*(x.to(device, dtype) for x in (self.aux, self.last, self.embed_weight, self.head_weight)))


def tiny_config(heads: int = 4, kv_heads: int = 2, **overrides) -> DraftConfig:
    return DraftConfig(
        **{
            "hidden_size": 32,
            "target_hidden_size": 32,
            "intermediate_size": 48,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": 8,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
            "vocab_size": VOCAB,
            "draft_vocab_size": DRAFT_VOCAB,
            "max_position_embeddings": 512,
            "feature_layers": (1, 3, 4),
        }
        | overrides
    )


def tiny_draft(config: DraftConfig, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> EagleDraft:
    """Every parameter random, the norms' too: weights of one would hide a swapped norm."""
    generator = torch.Generator().manual_seed(seed)
    draft = EagleDraft(config)
    with torch.no_grad():
        for name, parameter in draft.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if "norm" in name else noise * 1.5 / parameter.shape[-1] ** 0.5)
    known = torch.randperm(config.vocab_size, generator=generator)[: config.draft_vocab_size].sort().values
    t2d = torch.zeros(config.vocab_size, dtype=torch.bool)
    t2d[known] = True
    draft.set_vocabulary(known - torch.arange(config.draft_vocab_size), t2d)
    return draft.to(dtype)


def tiny_batch(lengths: Sequence[Sequence[int]], *, width: int | None = None, bearing: float = 0.6, seed: int = 0):
    """Random documents of these lengths in each row; each token bears loss with probability `bearing`."""
    generator = torch.Generator().manual_seed(seed)

    def document(length: int):
        ids = torch.randint(VOCAB, (length,), generator=generator)
        return ids.numpy(), (torch.rand(length, generator=generator) < bearing).numpy()

    return collate([[document(length) for length in row] for row in lengths], width)


def fake_target(draft: EagleDraft, batch: Batch, *, seed: int = 0) -> FakeTarget:
    """A fake target for this batch, its embedding shared with the draft."""
    generator = torch.Generator().manual_seed(seed + 1000)
    config, dtype = draft.config, draft.fc.weight.dtype
    shape, width = batch.input_ids.shape, config.target_hidden_size
    target = FakeTarget(
        aux=torch.randn(*shape, 3 * width, generator=generator).to(dtype),
        last=torch.randn(*shape, width, generator=generator).to(dtype),
        embed_weight=torch.randn(config.vocab_size, config.hidden_size, generator=generator).to(dtype),
        head_weight=(torch.randn(config.vocab_size, width, generator=generator) * 0.7).to(dtype),
    )
    draft.share_target(target.embed_weight, target.head_weight)
    return target


def judged(draft: EagleDraft, target: FakeTarget, batch: Batch, *, steps: int, weights: torch.Tensor, objective="ce"):
    """The reference's (loss, loss sums, correct, count) and its gradients by name, all in double: in fp32 its own
    rounding, through seven steps, is larger than that of what it judges."""
    parameters = {name: p.detach().double().requires_grad_() for name, p in draft.named_parameters()}
    logits = target.last.double() @ target.head_weight.double().T
    documents = [
        Document(
            batch.input_ids[row, start:end],
            batch.loss_mask[row, start:end],
            target.aux[row, start:end].double(),
            logits[row, start:end],
        )
        for row, start, end in batch.documents.spans
    ]
    loss, *rest = reference_loss(
        parameters,
        draft.config,
        target.embed_weight.double(),
        draft.t2d,
        documents,
        steps=steps,
        weights=weights.double(),
        objective=objective,
    )
    loss.backward()
    return loss.detach(), *rest, {name: p.grad for name, p in parameters.items()}
