"""The attention of drafted blocks against a dense softmax: values, gradients, precision, documents, memory."""

import math

import pytest
import torch

from spec.attention import blocks, kernels, rectangle
from spec.attention.blocks import Group, block_attention, group
from tests import dense_flash
from tests.unit.attention.test_attention import LargestTensor

# Two documents of 30 and 12 tokens; blocks at the second token, side by side, far apart, and at the last one.
FIRSTS, ANCHORS, TOKENS = (0, 0, 0, 0, 0, 30, 30), (1, 2, 3, 17, 29, 33, 41), 42
CPU = torch.device("cpu")


def random_inputs(*, rows=3, heads=4, kv_heads=2, width=8, dtype=torch.float64, anchors=ANCHORS, tokens=TOKENS):
    generator = torch.Generator().manual_seed(0)
    of_blocks = [(len(anchors), rows, count, width) for count in (heads, kv_heads, kv_heads)]
    shapes = [*of_blocks, (tokens, kv_heads, width), (tokens, kv_heads, width)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def attend(*inputs, firsts=FIRSTS, anchors=ANCHORS):
    groups = group(firsts, anchors, inputs[0].shape[1], inputs[0].device)
    return block_attention(*inputs, torch.tensor(anchors, device=inputs[0].device), groups)


def dense(query, key, value, context_key, context_value):
    """The same by one softmax over all keys of a row, one block, row and head at a time."""
    out = torch.empty_like(query)
    for block, (first, at) in enumerate(zip(FIRSTS, ANCHORS, strict=True)):
        for row in range(query.shape[1]):
            for head in range(query.shape[2]):
                pick = head // (query.shape[2] // key.shape[2])
                k = torch.cat((context_key[first:at, pick], key[block, :, pick]))  # strictly before the anchor
                v = torch.cat((context_value[first:at, pick], value[block, :, pick]))
                out[block, row, head] = (k @ query[block, row, head] / math.sqrt(query.shape[3])).softmax(0) @ v
    return out


@pytest.fixture(params=["cpu kernel", "explicit", "cuda"])
def kernel(request, monkeypatch):
    """Each pair of functions: of PyTorch's CPU kernel, for devices that have none, and of CUDA's kernel, for which a
    dense one of the same arguments stands in.
    """
    if request.param != "cpu kernel":
        its = {"explicit": ("_explicit_forward", "_explicit_backward"), "cuda": ("_flash_forward", "_flash_backward")}
        forward, backward = its[request.param]
        monkeypatch.setattr(rectangle, "_cpu_forward", getattr(rectangle, forward))
        monkeypatch.setattr(rectangle, "_cpu_backward", getattr(rectangle, backward))
        monkeypatch.setattr(kernels, "aten", dense_flash)


@pytest.mark.parametrize("together", [1, 2, 100], ids="{} blocks".format)
@pytest.mark.parametrize("heads, kv_heads, rows", [(4, 4, 3), (4, 2, 1), (6, 1, 4)])
def test_equals_a_dense_softmax(kernel, heads, kv_heads, rows, together, monkeypatch):
    monkeypatch.setitem(blocks.ROWS, "cpu", together * rows)
    inputs = random_inputs(rows=rows, heads=heads, kv_heads=kv_heads)
    out, wanted = attend(*inputs), dense(*inputs)
    torch.testing.assert_close(out, wanted, rtol=1e-11, atol=1e-11)
    weight = torch.randn_like(out)
    for got, want in zip(
        torch.autograd.grad((out * weight).sum(), inputs),
        torch.autograd.grad((wanted * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_bf16_is_as_near_to_double_as_its_precision_allows(kernel):
    exact, rounded = (random_inputs(dtype=dtype) for dtype in (torch.float64, torch.bfloat16))
    out, wanted = attend(*rounded), dense(*exact)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), wanted, rtol=0.03, atol=0.03)
    got = torch.autograd.grad(out.double().square().sum(), rounded)
    for a, b in zip(got, torch.autograd.grad(wanted.square().sum(), exact), strict=True):
        assert a.dtype == torch.bfloat16 and (a.double() - b).norm() < 0.03 * b.norm()


def test_a_block_sees_neither_its_anchors_feature_nor_what_follows_nor_another_document_nor_another_block():
    inputs = random_inputs()
    out = attend(*inputs)
    for block, (first, at) in enumerate(zip(FIRSTS, ANCHORS, strict=True)):
        hidden = [x.detach().clone() for x in inputs]
        for context in hidden[3:]:
            context[:first] += 100
            context[at:] += 100
        for own in hidden[:3]:
            own[torch.arange(len(ANCHORS)) != block] += 100
        assert torch.equal(attend(*hidden)[block], out[block])
        hidden[3][at - 1] += 100
        assert not torch.equal(attend(*hidden)[block], out[block])


def test_every_row_of_a_block_sees_all_of_them():
    inputs = random_inputs()
    out = attend(*inputs)
    for row in range(3):
        changed = [x.detach().clone() for x in inputs]
        changed[2][:, row] += 1  # the values of this row
        assert (attend(*changed) != out).any(-1).all()


def test_blocks_far_apart_or_of_two_documents_share_no_call(monkeypatch):
    monkeypatch.setitem(blocks.ROWS, "cpu", 12)  # four blocks of three rows
    monkeypatch.setattr(blocks, "SPAN", 10)
    assert group(FIRSTS, ANCHORS, 3, CPU) == (
        Group(0, 3, 0, 1, 3),
        Group(3, 4, 0, 17, 17),
        Group(4, 5, 0, 29, 29),
        Group(5, 7, 30, 33, 41),
    )
    assert [its.stop - its.begin for its in group((0,) * 9, range(1, 10), 3, CPU)] == [4, 4, 1]


def test_no_blocks_give_gradients_of_zero():
    inputs = random_inputs(anchors=())
    out = attend(*inputs, firsts=(), anchors=())
    assert out.shape == (0, 3, 4, 8)
    assert not any(grad.any() for grad in torch.autograd.grad(out.sum(), inputs))


@pytest.mark.parametrize("kernel", ["cpu kernel", "explicit"], indirect=True)  # CUDA's stand-in is dense
def test_no_tensor_is_as_large_as_rows_by_keys(kernel):
    tokens, rows, heads, anchors = 4096, 8, 2, tuple(range(1, 4096, 16))
    inputs = random_inputs(
        rows=rows, heads=heads, kv_heads=1, width=4, dtype=torch.float32, anchors=anchors, tokens=tokens
    )
    with LargestTensor() as largest:
        attend(*inputs, firsts=(0,) * len(anchors), anchors=anchors).sum().backward()
    assert 0 < largest.numel <= blocks.ROWS["cpu"] * heads * tokens < len(anchors) * rows * tokens * heads / 10


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_cuda_is_as_near_to_double_as_bf16_allows():
    exact = random_inputs()
    rounded = [x.detach().to("cuda", torch.bfloat16).requires_grad_() for x in exact]
    out, wanted = attend(*rounded), dense(*exact)
    torch.testing.assert_close(out.double().cpu(), wanted, rtol=0.03, atol=0.03)
    got = torch.autograd.grad(out.double().square().sum(), rounded)
    for a, b in zip(got, torch.autograd.grad(wanted.square().sum(), exact), strict=True):
        assert (a.double().cpu() - b).norm() < 0.03 * b.norm()
