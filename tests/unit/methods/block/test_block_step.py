"""The block draft's training step equals the plain reference in loss and in every gradient."""

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from spec.attention import blocks as attention
from spec.methods.block import losses
from spec.methods.block.losses import Objective, decay_weights
from spec.methods.block.step import observe, step_loss
from tests.tiny_blocks import fake_target, judged, some_blocks, tiny_config, tiny_draft
from tests.tiny_steps import VOCAB, tiny_batch

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


@pytest.mark.parametrize("rows", [1, 7, 40])
@pytest.mark.parametrize("method", ["DFlash by D-PACE", "DSpark with confidence"])
def test_chunks_and_groups_of_any_size_equal_the_reference(method, rows, monkeypatch):
    monkeypatch.setitem(losses.CHUNK, "cpu", rows * VOCAB)
    monkeypatch.setitem(losses.SLICE, "cpu", 3 * VOCAB)
    monkeypatch.setitem(attention.ROWS, "cpu", rows)
    rank, objective = METHODS[method]
    draft = draft_of(objective, rank, dtype=torch.float64)
    assert_equals_reference(draft, tiny_batch([[12, 9, 14], [20, 15]], bearing=0.85), objective)


@pytest.mark.parametrize("heads, kv_heads, layers", [(4, 4, 1), (6, 1, 3)])
@pytest.mark.parametrize("rank", [0, 6])
def test_other_shapes_and_few_anchors_equal_the_reference(rank, heads, kv_heads, layers):
    sizes = {"heads": heads, "kv_heads": kv_heads, "num_hidden_layers": layers, "block_size": 7}
    draft = draft_of(Objective(), rank, dtype=torch.float64, **sizes)
    assert_equals_reference(draft, tiny_batch([[30, 25], [40]], width=60, bearing=0.9), Objective(), most=8)


def test_recomputing_the_layers_changes_nothing():
    draft = draft_of(Objective(), 6)
    assert_equals_reference(draft, tiny_batch([[12, 9], [20]], bearing=0.85), Objective(), checkpoint_layers=True)


def test_a_batch_without_loss_gives_zero_gradients():
    rank, objective = METHODS["DSpark with confidence"]
    draft, batch = draft_of(objective, rank), tiny_batch([[12, 9], [20]], bearing=0.0)
    result = loss_of(draft, fake_target(draft, batch), batch, some_blocks(draft, batch), objective)
    result.loss.backward()
    assert result.loss == 0 and result.weight == 0 and result.count.sum() == 0
    assert all(p.grad is not None and not p.grad.any() for p in draft.parameters())


def test_a_second_backward_is_refused():
    draft, batch = draft_of(Objective(), 0), tiny_batch([[24]], bearing=0.9)
    result = loss_of(draft, fake_target(draft, batch), batch, some_blocks(draft, batch), Objective())
    result.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        result.loss.backward()


@pytest.mark.parametrize("method", ["DFlash", "DFlash by D-PACE", "DSpark"])
def test_batches_divided_by_the_sum_of_all_weights_give_the_gradient_of_one_batch(method):
    """Whatever ranks or accumulation do: sums of gradients over the sum of weights."""
    rank, objective = METHODS[method]
    draft = draft_of(objective, rank, dtype=torch.float64)
    whole = tiny_batch([[12, 9, 14], [20, 15]], bearing=0.85)
    target = fake_target(draft, whole)
    result = loss_of(draft, target, whole, some_blocks(draft, whole), objective)
    (result.loss / result.weight).backward()
    wanted = {name: p.grad.clone() for name, p in draft.named_parameters()}

    draft.zero_grad()
    weight, blocks = torch.zeros(()), some_blocks(draft, whole)
    seen = observe(draft, target, whole, keep_last=objective.l1 > 0)
    for first in set(blocks.firsts):  # a document a rank
        its = [index for index, of in enumerate(blocks.firsts) if of == first]
        chosen = torch.isin(blocks.block, torch.tensor(its))
        part = dataclasses.replace(
            blocks,
            **{name: tuple(getattr(blocks, name)[i] for i in its) for name in ("firsts", "places", "labels", "slots")},
            anchors=blocks.anchors[its],
            block=blocks.block[chosen] - its[0],
            draft=blocks.draft[chosen],
            slot=blocks.slot[chosen],
        )
        result = step_loss(draft, seen, part, decay_weights(draft.config.drafts, 4.0), objective=objective)
        result.loss.backward()
        weight = weight + result.weight
    for name, parameter in draft.named_parameters():
        torch.testing.assert_close(parameter.grad / weight, wanted[name])


class Watch(TorchDispatchMode):
    """The largest tensor that any operation returns, and the rows of each width that matrix products return."""

    def __init__(self):
        super().__init__()
        self.largest, self.rows = 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(out):
            self.largest = max(self.largest, x.numel()) if isinstance(x, torch.Tensor) else self.largest
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.mkldnn._linear_pointwise):
            self.rows[out.shape[1]] = self.rows.get(out.shape[1], 0) + out.shape[0]
        return out


@pytest.mark.parametrize("method", ["DFlash", "DSpark"])
def test_only_drafts_that_bear_loss_reach_the_vocabulary_and_a_place_of_the_target_once(method):
    rank, objective = METHODS[method]
    draft, batch = draft_of(objective, rank), tiny_batch([[60, 20]], bearing=0.7)
    target, blocks = fake_target(draft, batch), some_blocks(draft, batch)
    with Watch() as watch:
        loss_of(draft, target, batch, blocks, objective)
    drafts, places = int(blocks.count.sum()), len(blocks.chosen)
    assert drafts > places > 20
    assert watch.rows[VOCAB] == drafts + (places if rank else 0)


@pytest.mark.parametrize("method", ["DFlash", "DSpark"])
def test_no_tensor_is_rows_by_keys_or_rows_by_vocabulary(method, monkeypatch):
    monkeypatch.setitem(losses.CHUNK, "cpu", 1 << 14)
    monkeypatch.setitem(attention.ROWS, "cpu", 8)
    rank, objective = METHODS[method]
    length, vocab = 4096, 1024
    draft = draft_of(objective, rank, vocab_size=vocab, mask_token_id=0)
    batch = tiny_batch([[length]], bearing=0.97)
    target, blocks = fake_target(draft, batch), some_blocks(draft, batch)
    with Watch() as watch:
        loss_of(draft, target, batch, blocks, objective).loss.backward()
    rows = len(blocks.places) * draft.config.block_size
    assert rows == 512 * 5
    features = len(draft.config.feature_layers) * 32 * length  # the largest that has to be
    assert watch.largest <= features < rows * length / 32 and watch.largest < rows * vocab / 8


@pytest.mark.parametrize("own, targets", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_a_draft_of_another_precision_than_the_target_s_is_trained_as_one_of_the_same(own, targets):
    rank, objective = METHODS["DSpark with confidence"]
    batch = tiny_batch([[12, 9, 14], [20]], width=36, bearing=0.85)

    def trained(dtype, of_target):
        draft = draft_of(objective, rank).to(dtype)
        target = fake_target(draft, batch)
        draft.share_target(target.embed_weight.to(of_target), target.head_weight.to(of_target))
        target = dataclasses.replace(target, last=target.last.to(of_target), aux=target.aux.to(of_target))
        result = loss_of(draft, target, batch, some_blocks(draft, batch), objective)
        result.loss.backward()
        return result.loss.item(), {name: its.grad for name, its in draft.named_parameters()}

    (loss, gradients), (wanted, exact) = trained(own, targets), trained(torch.float32, torch.float32)
    assert abs(loss - wanted) < 0.02 * wanted
    for name, gradient in gradients.items():
        assert gradient.dtype == own and (gradient - exact[name]).norm() < 0.1 * exact[name].norm(), name


@pytest.mark.parametrize("rank", [0, 6])
def test_bf16_is_as_near_to_the_reference_as_its_precision_allows(rank):
    objective = Objective(ce=0.5, l1=0.5)
    draft, batch = draft_of(objective, rank).to(torch.bfloat16), tiny_batch([[12, 9, 14], [20]], width=36, bearing=0.85)
    target, blocks = fake_target(draft, batch), some_blocks(draft, batch)
    weights = decay_weights(draft.config.drafts, 4.0)
    shares = (objective.ce, objective.l1, 0.0)
    loss, *_, gradients = judged(draft, target, batch, blocks, weights=weights, shares=shares)
    result = loss_of(draft, target, batch, blocks, objective)
    result.loss.backward()
    assert abs(result.loss.double() - loss) < 0.02 * loss
    for name, parameter in draft.named_parameters():
        assert parameter.grad.dtype == parameter.dtype
        assert (parameter.grad.double() - gradients[name]).norm() < 0.1 * gradients[name].norm(), name
