"""The step's path on CUDA, seen without a GPU: fake tensors of that device have shapes and dtypes, and no data."""

import dataclasses

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from spec.attention import block0
from spec.methods.eagle3.draft import EagleDraft
from spec.methods.eagle3.step import observe, step_loss
from tests.no_waits import FAKE_SUMS
from tests.tiny_steps import fake_target, tiny_batch, tiny_config, tiny_draft


def on_fake_cuda(thing, half: torch.dtype = torch.bfloat16):
    """Tensors as empty ones of their shape on CUDA, floats in `half`; dataclasses by their fields."""
    if isinstance(thing, torch.Tensor):
        return torch.empty(thing.shape, dtype=half if thing.is_floating_point() else thing.dtype, device="cuda")
    if dataclasses.is_dataclass(thing):
        names = [field.name for field in dataclasses.fields(thing)]
        return type(thing)(**{name: on_fake_cuda(getattr(thing, name), half) for name in names})
    return thing


def some_observation(config):
    draft, batch = tiny_draft(config), tiny_batch([[12, 9, 14], [20]], width=36)
    return observe(draft, fake_target(draft, batch), batch, steps=7)


@FAKE_SUMS
def test_the_step_runs_in_bf16():
    config = tiny_config()
    seen = some_observation(config)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with FakeTensorMode(), torch.device("cuda"):
            draft = EagleDraft(config)
            draft.share_target(*torch.empty(2, config.vocab_size, config.hidden_size))
            result = step_loss(draft, on_fake_cuda(seen), torch.ones(7, dtype=torch.float32))
    finally:
        torch.set_default_dtype(torch.float32)
    assert result.loss.device.type == "cuda" and result.loss.dtype == torch.float32 and result.loss.requires_grad
    assert result.loss_sum.shape == result.correct.shape == result.count.shape == (7,)


def test_flash_gives_what_the_cpu_kernel_gives():
    config = tiny_config()
    queries = some_observation(config).queries
    tokens, rows = int(queries.cu_seqlens[-1]), len(queries.rows)
    query, key = torch.randn(rows, 4, 8), torch.randn(tokens, 2, 8)
    out, lse = block0.forward(query, key, key, queries)
    wanted = [out, lse, *block0.backward(out, query, key, key, out, lse, queries)]
    with FakeTensorMode():
        query, key, queries = (on_fake_cuda(thing) for thing in (query, key, queries))
        out, lse = block0.forward(query, key, key, queries)
        assert lse.dtype == torch.float32
        got = [out, lse, *block0.backward(out, query, key, key, out, lse, queries)]
    for cuda, cpu in zip(got, wanted, strict=True):
        assert cuda.device.type == "cuda" and cuda.shape == cpu.shape
