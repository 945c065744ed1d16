"""Tiny random block drafts, their batches and fake target, for the tests of their step, and its plain reference."""

import torch

from spec.methods.block.anchors import Blocks, draw
from spec.methods.block.config import BlockDraftConfig
from spec.methods.block.draft import BlockDraft
from spec.training.batch import Batch
from tests.block_reference import Document, reference_loss
from tests.tiny_steps import VOCAB, FakeTarget

FEATURES = 2


def tiny_config(heads: int = 4, kv_heads: int = 2, **overrides) -> BlockDraftConfig:
    return BlockDraftConfig(
        **{
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": 8,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
            "vocab_size": VOCAB,
            "max_position_embeddings": 512,
            "num_target_layers": 8,
            "feature_layers": tuple(range(1, FEATURES + 1)),
            "block_size": 5,
            "mask_token_id": VOCAB - 1,
        }
        | overrides
    )


def tiny_draft(config: BlockDraftConfig, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> BlockDraft:
    """Every parameter random, the norms' too: weights of one would hide a swapped norm."""
    generator = torch.Generator().manual_seed(seed)
    draft = BlockDraft(config)
    with torch.no_grad():
        for name, parameter in draft.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if "norm" in name else noise * 1.5 / parameter.shape[-1] ** 0.5)
    return draft.to(dtype)


def fake_target(draft: BlockDraft, batch: Batch, *, seed: int = 0) -> FakeTarget:
    """A fake target for this batch, its embedding and head shared with the draft."""
    generator = torch.Generator().manual_seed(seed + 1000)
    config, dtype = draft.config, draft.fc.weight.dtype
    shape, width = batch.input_ids.shape, config.hidden_size
    target = FakeTarget(
        aux=torch.randn(*shape, len(config.feature_layers) * width, generator=generator).to(dtype),
        last=torch.randn(*shape, width, generator=generator).to(dtype),
        embed_weight=torch.randn(config.vocab_size, width, generator=generator).to(dtype),
        head_weight=(torch.randn(config.vocab_size, width, generator=generator) * 0.7).to(dtype),
    )
    draft.share_target(target.embed_weight, target.head_weight)
    return target


def some_blocks(draft: BlockDraft, batch: Batch, *, most: int = 512, seed: int = 0, epoch: int | None = 0) -> Blocks:
    ids = range(len(batch.documents.spans))
    drafts = draft.config.drafts
    return draw(batch.documents, batch.loss_mask, ids, drafts=drafts, most=most, seed=seed, epoch=epoch)


def judged(
    draft: BlockDraft,
    target: FakeTarget,
    batch: Batch,
    blocks: Blocks,
    *,
    weights,
    shares,
    dpace=None,
    dtype=torch.float64,
):
    """The reference's results and its gradients by name, all in double: in fp32 its own rounding is larger than that
    of what it judges. In another `dtype`, what that rounding is."""
    parameters = {name: p.detach().clone().to(dtype).requires_grad_() for name, p in draft.named_parameters()}
    documents, first = [], 0
    for row, start, end in batch.documents.spans:
        anchors = [at - first for its, at in zip(blocks.firsts, blocks.places, strict=True) if its == first]
        part = (row, slice(start, end))
        states = target.aux[part].to(dtype), target.last[part].to(dtype)
        documents.append(Document(batch.input_ids[part], batch.loss_mask[part], *states, anchors))
        first += end - start
    loss, *rest = reference_loss(
        parameters,
        draft.config,
        target.embed_weight.to(dtype),
        target.head_weight.to(dtype),
        documents,
        weights=weights.to(dtype),
        shares=shares,
        dpace=dpace,
    )
    loss.backward()
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in parameters.items()}
    return loss.detach(), *(x.detach() for x in rest), gradients
