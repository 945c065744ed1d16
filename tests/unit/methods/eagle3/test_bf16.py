"""A step in bf16 is about as good as bf16 can be: its error beside that of the plain reference in bf16."""

import statistics

import torch

from spec.methods.eagle3.step import decay_weights, draft_loss
from tests.reference import Document, reference_loss
from tests.tiny_steps import fake_target, judged, tiny_batch, tiny_config, tiny_draft

STEPS, SEEDS = 7, 10
WIDE = tiny_config(hidden_size=256, target_hidden_size=256, intermediate_size=384, head_dim=64)


def plain_gradients(draft, target, batch, weights):
    """The reference's own in bf16. It is told the target's logits in double: else other rows would bear loss."""
    parameters = {name: p.detach().clone().requires_grad_() for name, p in draft.named_parameters()}
    logits = target.last.double() @ target.head_weight.double().T
    documents = [
        Document(batch.input_ids[row, a:b], batch.loss_mask[row, a:b], target.aux[row, a:b], logits[row, a:b])
        for row, a, b in batch.documents.spans
    ]
    loss, *_ = reference_loss(
        parameters, draft.config, target.embed_weight, draft.t2d, documents, steps=STEPS, weights=weights
    )
    loss.backward()
    return {name: p.grad for name, p in parameters.items()}


def worst(gradients, wanted):
    return max(float((gradients[n].double() - wanted[n]).norm() / wanted[n].norm()) for n in wanted)


def errors(seed):
    draft, batch = (
        tiny_draft(WIDE, seed=seed, dtype=torch.bfloat16),
        tiny_batch([[31, 12, 57], [80]], seed=seed, width=104),
    )
    target = fake_target(draft, batch, seed=seed)
    weights = decay_weights(STEPS) / 20
    *_, wanted = judged(draft, target, batch, steps=STEPS, weights=weights)
    result = draft_loss(draft, target, batch, steps=STEPS)
    (result.loss / 20).backward()
    ours = {name: p.grad for name, p in draft.named_parameters()}
    return worst(ours, wanted), worst(plain_gradients(draft, target, batch, weights), wanted)


def test_errors_are_near_the_plain_references_own():
    """The worst seed too: where the target's logits are rounded, its choice changes in one of ten, and rows with it."""
    ours, plain = zip(*(errors(seed) for seed in range(SEEDS)), strict=True)
    for of in (statistics.median, max):
        assert of(ours) < 1.3 * of(plain), (ours, plain)
