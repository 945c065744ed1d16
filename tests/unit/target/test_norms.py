"""The target's norms on a GPU: one kernel, the same numbers."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.llama4.modeling_llama4 import Llama4TextRMSNorm

from spec.target.norms import fuse_norms
from tests.forked import forked


class Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.seen.append(str(operator))
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Llama4TextRMSNorm])
@forked
def test_on_cuda_a_norm_is_one_kernel(kind):
    norm = torch.nn.Sequential(kind(16))
    fuse_norms(norm)
    with FakeTensorMode(allow_non_fake_inputs=True):
        norm[0].weight = torch.nn.Parameter(torch.empty(16, dtype=torch.bfloat16, device="cuda"), requires_grad=False)
        x = torch.empty(3, 16, dtype=torch.bfloat16, device="cuda")
        with Operators() as operators:
            norm(x)
    assert [name for name in operators.seen if name.startswith("aten")] == ["aten._fused_rms_norm.default"]


def test_the_kernel_has_the_numbers_of_transformers():
    norm, x = LlamaRMSNorm(16, eps=1e-3).double(), torch.randn(5, 16, dtype=torch.double)
    torch.nn.init.normal_(norm.weight)
    got = F.rms_norm(x, norm.weight.shape, norm.weight.data, norm.variance_epsilon)
    torch.testing.assert_close(got, norm(x).detach(), rtol=1e-5, atol=1e-6)  # its own sums are in fp32


def test_elsewhere_they_stay_what_they_were():
    norm, x = torch.nn.Sequential(LlamaRMSNorm(16)), torch.randn(3, 16)
    wanted = norm(x)
    fuse_norms(norm)
    assert torch.equal(norm(x), wanted)
