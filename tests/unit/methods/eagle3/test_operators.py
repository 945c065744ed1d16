"""How many operators a step hands to a GPU at Llama 3.1 8B's sizes: each is a launch, and launches were the bound."""

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from spec.attention import block0
from spec.attention.block0 import Queries
from spec.methods.eagle3.draft import EagleDraft
from spec.methods.eagle3.losses import Wanted, argmax_and_lse
from spec.methods.eagle3.step import Observation, step_loss
from tests.tiny_steps import tiny_config

BEFORE = 1986  # operators of the same work when each step made its tables and went through the diagonals one by one
VOCAB, TOKENS, ANSWERS, ROWS, STEPS = 128_256, 2048, 1024, 1030, 7
SIZES = {
    **{"heads": 32, "kv_heads": 8, "hidden_size": 4096, "target_hidden_size": 4096, "head_dim": 128},
    **{"intermediate_size": 14336, "vocab_size": VOCAB, "draft_vocab_size": 32_000, "max_position_embeddings": 131_072},
}
NO_KERNEL = ("detach", "alias", "view", "empty", "promote_types")


class Count(TorchDispatchMode):
    number = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if not operator.is_view and not any(word in str(operator) for word in NO_KERNEL):
            self.number += 1
        return operator(*args, **(kwargs or {}))


class FusedNorm(torch.autograd.Function):
    """What CUDA has as a kernel each way, and the meta device as a dozen."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return torch.zeros_like(x)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return torch.zeros_like(x), torch.empty_like(weight)


def observation():
    cu_seqlens = torch.zeros(3, dtype=torch.int32)
    queries = Queries(((0, 0, ROWS),), torch.zeros(ROWS, dtype=torch.int64), cu_seqlens, TOKENS // 2)
    wanted = Wanted(
        hidden=torch.zeros(ANSWERS, 4096),
        lse=None,
        choice=torch.zeros(ANSWERS, dtype=torch.int64),
        rows=torch.zeros(STEPS, ANSWERS, dtype=torch.int64),
        bears=torch.ones(STEPS, ANSWERS, dtype=torch.bool),
    )
    ids = torch.zeros(TOKENS, dtype=torch.int64)
    return Observation(ids, torch.zeros_like(ids), torch.zeros(TOKENS, 3 * 4096), queries, wanted)


def test_a_step_takes_half_the_operators_that_it_took(monkeypatch):
    """On the meta device, with the operators of CUDA."""
    monkeypatch.setattr(block0, "_explicit_forward", block0._flash_forward)
    monkeypatch.setattr(block0, "_explicit_backward", block0._flash_backward)
    monkeypatch.setattr(F, "rms_norm", lambda x, shape, weight, eps: FusedNorm.apply(x, weight))
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            draft, head, seen = EagleDraft(tiny_config(**SIZES)), torch.zeros(VOCAB, 4096), observation()
            draft.share_target(head, head)
            weights = torch.ones(STEPS, dtype=torch.float32)
            with Count() as count:
                argmax_and_lse(seen.wanted.hidden, head, with_lse=False)
                step_loss(draft, seen, weights).loss.backward()
    finally:
        torch.set_default_dtype(torch.float32)
    assert count.number <= BEFORE / 2
