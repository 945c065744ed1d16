"""The attention of training-time test against a dense softmax: values, gradients, precision, documents, memory."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from spec.attention import block0, diagonals, kernels
from spec.attention.block0 import Queries
from spec.attention.documents import Documents
from spec.attention.merged import ttt_attention
from spec.attention.to_device import to_device
from tests import dense_flash


def some_queries(lengths, runs) -> Queries:
    documents = Documents.from_lengths([lengths], sum(lengths))
    return Queries.of_runs(runs, documents.cu_seqlens, max(lengths))


# Two documents of 9 and 14 tokens; queries in the middle, to the end, and in two runs of one document.
LENGTHS, RUNS = [9, 14], [(0, 2, 9), (9, 9, 12), (9, 15, 22)]


def random_inputs(queries, *, steps, heads=4, kv_heads=2, width=8, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens, rows = int(queries.cu_seqlens[-1]), len(queries.rows)
    shapes = [(rows, heads, width)]
    shapes += 2 * [(tokens, kv_heads, width), *[(rows, kv_heads, width)] * (steps - 1)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def attend(queries, query, *keys_values):
    middle = len(keys_values) // 2
    return ttt_attention(query, keys_values[:middle], keys_values[middle:], queries)


def dense(queries, query, *keys_values):
    """The same with one softmax over all keys of a query, one query and head at a time."""
    middle = len(keys_values) // 2
    keys, values = keys_values[:middle], keys_values[middle:]
    groups = query.shape[1] // keys[0].shape[1]
    out, at = [], 0
    for first, start, end in queries.runs:
        for position in range(start, end):
            heads = []
            for head in range(query.shape[1]):
                pick = head // groups
                k = torch.cat([keys[0][first : position + 1, pick], *(key[at, None, pick] for key in keys[1:])])
                v = torch.cat([values[0][first : position + 1, pick], *(value[at, None, pick] for value in values[1:])])
                heads.append((k @ query[at, head] / math.sqrt(query.shape[2])).softmax(0) @ v)
            out.append(torch.stack(heads))
            at += 1
    return torch.stack(out)


@pytest.fixture(params=["cpu kernel", "explicit", "cuda"])
def kernel(request, monkeypatch):
    """Each pair of functions: of PyTorch's CPU kernel, for devices that have none, and of CUDA's kernel, for which a
    dense one of the same arguments stands in.
    """
    if request.param != "cpu kernel":
        monkeypatch.setattr(diagonals, "_one_by_one", lambda x: False)
    if request.param == "explicit":
        monkeypatch.setattr(block0, "_cpu_forward", block0._explicit_forward)
        monkeypatch.setattr(block0, "_cpu_backward", block0._explicit_backward)
        monkeypatch.setattr(block0, "BLOCK", 3)
    elif request.param == "cuda":
        monkeypatch.setattr(block0, "_cpu_forward", block0._flash_forward)
        monkeypatch.setattr(block0, "_cpu_backward", block0._flash_backward)
        monkeypatch.setattr(kernels, "aten", dense_flash)


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (4, 2), (6, 1)])
def test_equals_a_dense_softmax(kernel, steps, heads, kv_heads):
    queries = some_queries(LENGTHS, RUNS)
    inputs = random_inputs(queries, steps=steps, heads=heads, kv_heads=kv_heads)
    out, wanted = attend(queries, *inputs), dense(queries, *inputs)
    torch.testing.assert_close(out, wanted, rtol=1e-11, atol=1e-11)
    weight = torch.randn_like(out)
    for got, want in zip(
        torch.autograd.grad((out * weight).sum(), inputs),
        torch.autograd.grad((wanted * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("steps", [1, 3])
def test_gradcheck(kernel, steps):
    queries = some_queries([3, 4], [(0, 1, 3), (3, 3, 4), (3, 5, 7)])
    inputs = random_inputs(queries, steps=steps, heads=2, kv_heads=1, width=4)
    assert torch.autograd.gradcheck(lambda *x: attend(queries, *x), inputs)


def test_bf16_is_as_near_to_double_as_its_precision_allows(kernel):
    queries = some_queries(LENGTHS, RUNS)
    exact, rounded = (random_inputs(queries, steps=7, dtype=dtype) for dtype in (torch.float64, torch.bfloat16))
    out, wanted = attend(queries, *rounded), attend(queries, *exact)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), wanted, rtol=0.03, atol=0.03)
    got = torch.autograd.grad(out.double().square().sum(), rounded)
    want = torch.autograd.grad(wanted.square().sum(), exact)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a.double() - b).norm() < 0.03 * b.norm()


def test_a_document_does_not_see_another():
    queries = some_queries(LENGTHS, RUNS)
    query, *keys_values = random_inputs(queries, steps=3)
    out = attend(queries, query, *keys_values)
    with torch.no_grad():
        keys_values[0][:9] += 100  # the first document's keys of block 0
    changed = attend(queries, query, *keys_values)
    assert torch.equal(out[7:], changed[7:]) and not torch.equal(out[:7], changed[:7])


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(out):
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.numel())
        return out


@pytest.mark.parametrize("kernel", ["cpu kernel", "explicit"], indirect=True)  # CUDA's stand-in is dense
def test_nothing_grows_with_the_square_of_the_length(kernel, monkeypatch):
    monkeypatch.setattr(block0, "BLOCK", 16)
    length, heads, width = 2048, 2, 4
    queries = some_queries([length], [(0, 256, 2048)])
    inputs = random_inputs(queries, steps=3, heads=heads, kv_heads=1, width=width, dtype=torch.float32)
    with LargestTensor() as largest:
        attend(queries, *inputs).sum().backward()
    assert 0 < largest.numel <= 16 * heads * length < length**2 / 32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (4, 2), (6, 1)])
def test_cuda_is_as_near_to_double_as_bf16_allows(heads, kv_heads):
    queries = some_queries(LENGTHS, RUNS)
    exact = random_inputs(queries, steps=7, heads=heads, kv_heads=kv_heads)
    rounded = [x.detach().to("cuda", torch.bfloat16).requires_grad_() for x in exact]
    there = to_device(queries, torch.device("cuda"))
    out, wanted = attend(there, *rounded), dense(queries, *exact)
    torch.testing.assert_close(out.double().cpu(), wanted, rtol=0.03, atol=0.03)
    got = torch.autograd.grad(out.double().square().sum(), rounded)
    for a, b in zip(got, torch.autograd.grad(wanted.square().sum(), exact), strict=True):
        assert (a.double().cpu() - b).norm() < 0.03 * b.norm()
