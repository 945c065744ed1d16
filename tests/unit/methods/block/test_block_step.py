"""The block draft's training step equals the plain reference in loss and in every gradient."""

import pytest
import torch

from spec.methods.block.losses import Objective, decay_weights
from spec.methods.block.step import observe, step_loss
from tests.tiny_blocks import fake_target, judged, some_blocks, tiny_config, tiny_draft
from tests.tiny_steps import tiny_batch

# Of a gradient, in shares of its largest entry: rounding in fp32, on its way through two layers and two norms each.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}
LAYOUTS = {
    "one document a row": ([[24], [24]], None),
    "padded": ([[30], [17], [9]], 33),
    "packed": ([[12, 9, 14], [20, 15]], None),
    "packed and padded": ([[11, 16], [5, 3, 18], [2, 1, 8, 10]], 40),
}
METHODS = {
    "DFlash": (0, Objective()),
    "DFlash by D-PACE": (0, Objective(weighting="dpace")),
    "DFlash by distributions": (0, Objective(ce=0.3, l1=0.7)),
    "DSpark": (6, Objective(ce=0.1, l1=0.9)),
    "DSpark by cross-entropy": (6, Objective()),
    "DSpark with confidence": (6, Objective(ce=0.1, l1=0.9, confidence=1.0)),
    "DSpark with all by D-PACE": (6, Objective(ce=0.2, l1=0.8, confidence=0.5, weighting="dpace", smoothing=0.3)),
}


def draft_of(objective, rank, *, dtype=torch.float32, seed=0, **sizes):
    config = tiny_config(markov_rank=rank, confidence_head=objective.confidence > 0, **sizes)
    return tiny_draft(config, seed=seed, dtype=dtype)


def loss_of(draft, target, batch, blocks, objective, **how):
    seen = observe(draft, target, batch, keep_last=objective.l1 > 0)
    return step_loss(draft, seen, blocks, decay_weights(draft.config.drafts, 4.0), objective=objective, **how)


def assert_equals_reference(draft, batch, objective, *, most=512, **how):
    tolerance = TOLERANCE[draft.fc.weight.dtype]
    target, blocks = fake_target(draft, batch), some_blocks(draft, batch, most=most)
    loss, weight, terms, correct, count, gradients = judged(
        draft,
        target,
        batch,
        blocks,
        weights=decay_weights(draft.config.drafts, 4.0),
        shares=(objective.ce, objective.l1, objective.confidence),
        dpace=objective.smoothing if objective.weighting == "dpace" else None,
    )
    result = loss_of(draft, target, batch, blocks, objective, **how)
    result.loss.backward()
    assert count.sum() > 20, "a batch that hardly bears loss judges nothing"
    assert torch.equal(result.count, count) and torch.equal(result.correct, correct)
    torch.testing.assert_close(result.loss.double(), loss, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(result.weight.double(), weight, rtol=tolerance, atol=tolerance)
    for name, wanted in zip(("ce", "l1", "confidence"), terms, strict=True):
        assert (name in result.terms) == (getattr(objective, name) > 0)
        if name in result.terms:
            torch.testing.assert_close(result.terms[name].double(), wanted, rtol=tolerance, atol=tolerance)
    for name, parameter in draft.named_parameters():
        scale = gradients[name].abs().max()
        error = (parameter.grad - gradients[name]).abs().max() / scale
        assert scale > 1e-4 and error < tolerance, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_the_reference(layout, method, dtype):
    lengths, width = LAYOUTS[layout]
    rank, objective = METHODS[method]
    draft = draft_of(objective, rank, dtype=dtype)
    assert_equals_reference(draft, tiny_batch(lengths, width=width, bearing=0.85), objective)
