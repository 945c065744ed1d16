"""A training step hands its work to the GPU and waits for none of it."""

import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from spec.attention import block0
from spec.attention.to_device import to_device
from spec.methods import logits
from spec.methods.block.draft import BlockDraft
from spec.methods.block.losses import DFLASH, _most
from spec.methods.eagle3 import losses
from spec.methods.eagle3.config import DraftConfig
from spec.methods.eagle3.draft import EagleDraft
from spec.methods.eagle3.rows import drafted_rows
from spec.methods.eagle3.step import decay_weights, draft_loss, observe, step_loss
from spec.target.frozen import FrozenTarget
from tests import tiny_blocks
from tests.forked import forked
from tests.no_waits import FAKE_SUMS, NoWaits, Waits
from tests.tiny_blocks import some_blocks
from tests.tiny_models import FAMILIES, save_tiny_target
from tests.tiny_steps import fake_target, tiny_batch, tiny_config, tiny_draft

LENGTHS, WIDTH = [[12, 9, 14], [20]], 36

# Autograd counts the devices once in a process: here, before there are fake ones. Threads for those would keep tests
# that fork after these from any backward at all.
torch.ones(1, requires_grad=True).sum().backward()


@pytest.mark.parametrize(
    "waiting",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.cpu(),
        lambda x: x + torch.ones(3).to("cuda"),
        lambda x: torch.tensor([1, 2], device="cuda"),
        lambda x: bool((x > 0).any()),
        lambda x: x.tolist(),
    ],
)
@forked
def test_the_mode_sees_what_waits(waiting):
    with FakeTensorMode(), NoWaits(), pytest.raises(Waits):
        waiting(torch.empty(3, device="cuda"))


@FAKE_SUMS
@pytest.mark.parametrize("objective", ["ce", "lk", "hard"])
@pytest.mark.parametrize("family", FAMILIES)
@forked
def test_the_targets_forward_and_the_drafts_wait_for_nothing_on_cuda(tmp_path, family, objective, monkeypatch):
    """Fake tensors of that device, which have shapes and no data: asked for some, they raise as well."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))  # of a mixture's grouped_mm
    target = FrozenTarget.load(save_tiny_target(family, tmp_path / "target"), dtype=torch.bfloat16)
    batch = tiny_batch(LENGTHS, width=WIDTH)
    if chunk := getattr(target.text_config, "attention_chunk_size", None):
        batch.documents.chunked(chunk)
    batch = dataclasses.replace(batch, rows=drafted_rows(batch, 7))
    config = DraftConfig.for_target(target.text_config, 40)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        for module in target.modules():
            for tensors in (module._parameters, module._buffers):
                tensors |= {
                    name: torch.empty_like(its, device="cuda") for name, its in tensors.items() if its is not None
                }
        batch = on_fake_cuda(batch, fake)
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("cuda"):
            draft = EagleDraft(config)
        torch.set_default_dtype(torch.float32)
        draft.share_target(target.embed_weight, target.head_weight)
        weights = torch.empty(7, device="cuda")
        with NoWaits():
            result = step_loss(draft, observe(draft, target, batch, objective=objective), weights, objective=objective)
    assert result.loss.device.type == "cuda" and result.loss.requires_grad


def on_fake_cuda(thing, fake):
    """`to_device`, whose pinned memory needs a driver."""
    if isinstance(thing, torch.Tensor):
        return fake.from_tensor(thing).to("cuda", non_blocking=True)
    if dataclasses.is_dataclass(thing):
        return type(thing)(
            **{field.name: on_fake_cuda(getattr(thing, field.name), fake) for field in dataclasses.fields(thing)}
        )
    return {name: on_fake_cuda(value, fake) for name, value in thing.items()} if isinstance(thing, dict) else thing


@pytest.mark.parametrize("objective", ["ce", "lk", "hard"])
@pytest.mark.parametrize("checkpoint_steps", [False, True])
def test_forward_and_backward_wait_for_nothing(objective, checkpoint_steps, monkeypatch):
    """By the kernels of CUDA, for which the explicit ones stand in: those of the CPU are told runs, not tensors."""
    monkeypatch.setattr(block0, "_cpu_forward", block0._explicit_forward)
    monkeypatch.setattr(block0, "_cpu_backward", block0._explicit_backward)
    draft, batch = tiny_draft(tiny_config()), tiny_batch(LENGTHS, width=WIDTH)
    target = fake_target(draft, batch)
    batch = dataclasses.replace(batch, rows=drafted_rows(batch, 7))
    with NoWaits():
        result = draft_loss(draft, target, batch, objective=objective, checkpoint_steps=checkpoint_steps)
        result.loss.backward()


def test_rows_made_ahead_are_those_made_on_the_way():
    draft, batch = tiny_draft(tiny_config()), tiny_batch(LENGTHS, width=WIDTH)
    target = fake_target(draft, batch)
    ahead = dataclasses.replace(batch, rows=drafted_rows(batch, 7))
    assert torch.equal(draft_loss(draft, target, ahead).loss_sum, draft_loss(draft, target, batch).loss_sum)
    assert to_device(ahead, torch.device("cpu")).rows.queries.runs == ahead.rows.queries.runs


def test_a_chunk_is_chosen_by_rows_and_by_what_is_free(monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr(logits, "_room", lambda device: 2**40)
    assert losses._chunk(2048, 128_256, cuda) == 2048  # all there are
    assert losses._chunk(20_000, 128_256, cuda) == 5000  # at least 4096
    assert losses._chunk(2048, 7 * 32_000, cuda, 7) == 683
    monkeypatch.setattr(logits, "_room", lambda device: 2**30)
    assert losses._chunk(2048, 128_256, cuda) * 128_256 * losses.LOGIT_BYTES <= 2**30
    assert losses._chunk(0, 128_256, cuda) == 1


def test_a_block_drafts_chunk_is_chosen_likewise_and_no_last_one_is_narrow(monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr(logits, "_room", lambda device: 2**40)
    assert _most(512 * 7, 128_256, 7, DFLASH, cuda) >= 512 * 7  # all there are
    blocks = some_blocks(BlockDraft(tiny_blocks.tiny_config()), tiny_batch([[1200]], bearing=1.0), most=1150)
    total = len(blocks.block)
    chunks = blocks.chunks(_most(total, 500, 4, DFLASH, cuda))
    assert len(chunks) == 1 and total > 4096
    monkeypatch.setattr(logits, "GPU_ROWS", 1000)
    sizes = [chunk.stop - chunk.begin for chunk in blocks.chunks(_most(total, 500, 4, DFLASH, cuda))]
    assert len(sizes) == total // 1000 and min(sizes) >= 1000
    monkeypatch.setattr(logits, "_room", lambda device: 2**20)
    assert _most(total, 500, 4, DFLASH, cuda) * 500 * 14 < 1.1 * 2**20


def test_later_steps_weigh_less():
    assert decay_weights(2).tolist() == pytest.approx([1.0, 0.8])
