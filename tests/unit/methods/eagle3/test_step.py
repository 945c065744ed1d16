"""The training step equals the plain reference in loss and in every gradient."""

import dataclasses
import functools

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from spec.attention import block0
from spec.methods import logits
from spec.methods.eagle3 import losses, step
from spec.methods.eagle3.step import decay_weights, draft_loss, observe, step_loss
from tests.tiny_steps import DRAFT_VOCAB, VOCAB, fake_target, judged, tiny_batch, tiny_config, tiny_draft

STEPS = 7
# Of a gradient, in shares of its largest entry. Rounding in fp32 comes to 2e-5 in the worst of a thousand drafts, other
# ones on other processors; whether the step is the same but for rounding is what double precision shows.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-11}
LAYOUTS = {
    "one document a row": ([[24], [24]], None),
    "padded": ([[30], [17], [9]], 33),
    "packed": ([[12, 9, 14], [20, 15]], None),
    "packed and padded": ([[11, 16], [5, 3, 18], [2, 1, 8, 10]], 40),
}


def assert_equals_reference(draft, batch, *, steps=STEPS, objective="ce", **options):
    tolerance = TOLERANCE[draft.fc.weight.dtype]
    target = fake_target(draft, batch)
    weights = decay_weights(steps)
    loss, loss_sum, correct, count, gradients = judged(
        draft, target, batch, steps=steps, weights=weights, objective=objective
    )
    result = draft_loss(draft, target, batch, steps=steps, objective=objective, **options)
    result.loss.backward()
    assert count.sum() > 20, "a batch that hardly bears loss judges nothing"
    assert torch.equal(result.count, count)
    assert torch.equal(result.correct, correct)
    torch.testing.assert_close(result.loss_sum.double(), loss_sum.double(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(result.loss.double(), loss.double(), rtol=tolerance, atol=tolerance)
    for name, parameter in draft.named_parameters():
        scale = gradients[name].abs().max()
        error = (parameter.grad - gradients[name]).abs().max() / scale
        assert scale > 1e-4 and error < tolerance, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (4, 2), (6, 1)], ids=["no GQA", "GQA", "one kv head"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_the_reference(layout, heads, kv_heads, dtype):
    lengths, width = LAYOUTS[layout]
    draft = tiny_draft(tiny_config(heads, kv_heads), dtype=dtype)
    assert_equals_reference(draft, tiny_batch(lengths, width=width))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rows", [1, 3, 10])
@pytest.mark.parametrize("width, block", [(16, 8), (20, 7), (61, 40)], ids=["tails", "both odd", "whole"])
@pytest.mark.parametrize("objective", ["ce", "lk", "hard"])
def test_chunks_of_any_size_equal_the_reference(objective, width, block, rows, dtype, monkeypatch):
    monkeypatch.setitem(losses.WIDTH, "cpu", width)
    monkeypatch.setattr(logits, "BLOCK", block)
    monkeypatch.setitem(losses.CHUNK, "cpu", rows * STEPS * DRAFT_VOCAB)
    draft = tiny_draft(tiny_config(), dtype=dtype)
    assert_equals_reference(draft, tiny_batch([[12, 9, 14], [20, 15]]), objective=objective)


SHAPES = {
    "whole vocabulary": {"draft_vocab_size": VOCAB},
    "fc_norm": {"fc_norm": True},
    "norm_output": {"norm_output": True},
    "both norms": {"fc_norm": True, "norm_output": True},
    "two layers": {"num_hidden_layers": 2},
    "three layers, both norms": {"num_hidden_layers": 3, "fc_norm": True, "norm_output": True},
}


@pytest.mark.parametrize("recomputed", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("objective", ["ce", "lk", "hard"])
@pytest.mark.parametrize("shape", SHAPES)
def test_other_shapes_equal_the_reference(shape, objective, recomputed):
    draft = tiny_draft(tiny_config(**SHAPES[shape]), dtype=torch.float64)
    batch = tiny_batch([[12, 9, 14], [20, 8]], width=36)
    assert_equals_reference(draft, batch, objective=objective, checkpoint_steps=recomputed)


@pytest.mark.parametrize("steps", [1, 2])
def test_few_steps_equal_the_reference(steps):
    draft = tiny_draft(tiny_config())
    assert_equals_reference(draft, tiny_batch([[12, 9, 14], [20, 15]]), steps=steps)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("objective", ["lk", "hard"])
def test_other_objectives_equal_their_references(objective, dtype):
    draft = tiny_draft(tiny_config(), dtype=dtype)
    assert_equals_reference(draft, tiny_batch([[12, 9, 14], [20, 8]], width=36), objective=objective)


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_reference_to_the_last_digits_in_double(seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = [torch.randint(1, 20, (3,), generator=generator).tolist() for _ in range(3)]
    draft = tiny_draft(tiny_config(), seed=seed, dtype=torch.float64)
    assert_equals_reference(draft, tiny_batch(lengths, width=60, seed=seed))


def test_recomputing_the_steps_changes_nothing():
    draft = tiny_draft(tiny_config())
    assert_equals_reference(draft, tiny_batch([[12, 9], [20]]), checkpoint_steps=True)


@pytest.mark.parametrize("objective", ["ce", "lk", "hard"])
def test_compiling_changes_nothing_and_breaks_no_graph(objective, monkeypatch):
    # fullgraph: a graph break is an error. aot_eager traces forward and backward as inductor does, without a compiler.
    graphs = CompileCounterWithBackend("aot_eager")
    whole = functools.cache(functools.partial(torch.compile, backend=graphs, dynamic=True, fullgraph=True))
    monkeypatch.setattr(step, "_compiled", whole)
    torch._dynamo.reset()
    draft = tiny_draft(tiny_config())
    for lengths in ([[12, 9], [20]], [[11, 25]], [[40, 3], [9, 13]]):
        assert_equals_reference(draft, tiny_batch(lengths, width=43), objective=objective, compiled=True)
        draft.zero_grad()
    assert 0 < graphs.frame_count <= 6, f"{graphs.frame_count} graphs: other sizes must not be compiled again"


def test_the_first_token_of_an_answer_is_drafted_at_every_step():
    # A loss mask that stays where it is while the targets shift never trains the first drafted token of an answer.
    draft = tiny_draft(tiny_config())
    batch = tiny_batch([[20]], bearing=0.0)
    batch.loss_mask[0, 12] = True
    draft.t2d.fill_(True)
    seen = observe(draft, fake_target(draft, batch), batch, steps=STEPS)
    assert seen.count.tolist() == [1] * STEPS


def test_a_token_too_near_its_documents_start_bears_no_loss_at_the_later_steps():
    draft = tiny_draft(tiny_config())
    batch = tiny_batch([[10, 10]], bearing=0.0)
    batch.loss_mask[0, 14] = True  # token 4 of the second document: positions 2, 1 and 0 predict it
    draft.t2d.fill_(True)
    seen = observe(draft, fake_target(draft, batch), batch, steps=STEPS)
    assert seen.count.tolist() == [1, 1, 1, 0, 0, 0, 0]


def test_a_batch_without_loss_gives_zero_gradients():
    draft = tiny_draft(tiny_config())
    batch = tiny_batch([[12, 9], [20]], bearing=0.0)
    result = draft_loss(draft, fake_target(draft, batch), batch, steps=STEPS)
    result.loss.backward()
    assert result.loss == 0 and result.count.sum() == 0
    assert all(p.grad is not None and not p.grad.any() for p in draft.parameters())


def test_weights_scale_each_step_alone():
    draft, batch = tiny_draft(tiny_config()), tiny_batch([[12, 9], [20]])
    seen = observe(draft, fake_target(draft, batch), batch, steps=STEPS)
    weights = torch.rand(STEPS)
    result = step_loss(draft, seen, weights)
    torch.testing.assert_close(result.loss, (weights * result.loss_sum).sum())


def test_the_gradient_follows_the_scale_of_the_loss():
    draft, batch = tiny_draft(tiny_config()), tiny_batch([[12, 9], [20]])
    seen = observe(draft, fake_target(draft, batch), batch, steps=STEPS)
    gradients = []
    for scale in (1.0, 0.25):
        draft.zero_grad()
        (step_loss(draft, seen, decay_weights(STEPS)).loss * scale).backward()
        gradients.append([p.grad.clone() for p in draft.parameters()])
    for whole, quarter in zip(*gradients, strict=True):
        torch.testing.assert_close(quarter, whole * 0.25)


@pytest.mark.parametrize("of_draft, of_target", [("float32", "bfloat16"), ("bfloat16", "bfloat16")])
def test_bf16_is_as_near_to_the_reference_as_its_precision_allows(of_draft, of_target):
    draft, batch = tiny_draft(tiny_config()).to(getattr(torch, of_draft)), tiny_batch([[12, 9, 14], [20]], width=36)
    target = fake_target(draft, batch)
    rounded = {name: x.to(getattr(torch, of_target)) for name, x in vars(target).items()}
    target = dataclasses.replace(target, **rounded)
    draft.share_target(target.embed_weight, target.head_weight)
    loss, _, _, _, gradients = judged(draft, target, batch, steps=STEPS, weights=decay_weights(STEPS))
    result = draft_loss(draft, target, batch, steps=STEPS)
    result.loss.backward()
    assert abs(result.loss.double() - loss) < 0.02 * loss
    for name, parameter in draft.named_parameters():
        assert parameter.grad.dtype == parameter.dtype
        assert (parameter.grad.double() - gradients[name]).norm() < 0.1 * gradients[name].norm(), name


def test_packing_changes_no_loss():
    draft = tiny_draft(tiny_config())
    packed = tiny_batch([[12, 9, 14], [20, 15]])
    alone = tiny_batch([[12], [9], [14], [20], [15]])  # the same documents: they are drawn one after another
    target = fake_target(draft, packed)

    def unpacked(x: torch.Tensor) -> torch.Tensor:
        rows = torch.zeros(5, 20, x.shape[-1])
        for to, (row, start, end) in enumerate(packed.documents.spans):
            rows[to, : end - start] = x[row, start:end]
        return rows

    targets = target, dataclasses.replace(target, aux=unpacked(target.aux), last=unpacked(target.last))
    a, b = (draft_loss(draft, its, batch, steps=STEPS) for its, batch in zip(targets, (packed, alone), strict=True))
    assert torch.equal(a.count, b.count) and a.count.sum() > 100
    torch.testing.assert_close(a.loss_sum, b.loss_sum)


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


@pytest.mark.parametrize("checkpoint_steps", [False, True])
def test_no_tensor_grows_with_the_square_of_the_length_or_with_length_and_vocabulary(checkpoint_steps, monkeypatch):
    monkeypatch.setitem(losses.CHUNK, "cpu", 1 << 16)
    monkeypatch.setattr(block0, "BLOCK", 16)
    length, vocab, draft_vocab = 4096, 4096, 2048
    draft = tiny_draft(tiny_config(vocab_size=vocab, draft_vocab_size=draft_vocab))
    batch = tiny_batch([[length]])
    target = fake_target(draft, batch)
    draft.share_target(target.embed_weight, target.head_weight)
    with Watch() as watch:
        draft_loss(draft, target, batch, steps=STEPS, checkpoint_steps=checkpoint_steps).loss.backward()
    hiddens = STEPS * length * draft.config.hidden_size  # of all steps' rows, the largest that has to be
    assert watch.largest <= hiddens < length * draft_vocab / 4 < length**2 / 4


def test_only_rows_that_bear_loss_reach_a_vocabulary():
    draft, batch = tiny_draft(tiny_config()), tiny_batch([[40]], bearing=0.3)
    with Watch() as watch:
        result = draft_loss(draft, fake_target(draft, batch), batch, steps=STEPS)
    seen, draftable = int(batch.loss_mask[0, 2:].sum()), int(result.count[0])
    assert draftable < seen < 20
    assert watch.rows[draft.config.vocab_size] == seen
    # Whether the target's choice can be drafted is known on the device alone: its rows stay, with weight 0.
    assert watch.rows[draft.config.draft_vocab_size] == (STEPS + 1) * seen


def test_a_second_backward_is_refused():
    """The gradients are scaled in place: another one would double what is there already."""
    draft, batch = tiny_draft(tiny_config()), tiny_batch([[24]])
    result = draft_loss(draft, fake_target(draft, batch), batch, steps=STEPS)
    result.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.loss.backward()
