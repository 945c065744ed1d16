"""Products of half precision keep their sums in fp32, and a torch that lacks an operator is told in one line."""

import pytest
import torch

from spec.attention import kernels
from spec.errors import BadInput


@pytest.mark.parametrize("shape", [(5, 8, 1200), (7, 1200, 8), (3, 4, 4)])
def test_products_of_bf16_are_not_rounded(shape, monkeypatch):
    monkeypatch.setattr(kernels, "_AT_ONCE", 100)
    m, k, n = shape
    a, b = torch.randn(m, k).bfloat16(), torch.randn(k, n).bfloat16()
    wanted = a.double() @ b.double()
    got, total = kernels.product(a, b), torch.ones(m, n)
    kernels.add_product(total, a, b)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(total.double(), wanted + 1, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kernels.linear(a, b.T.contiguous()).double(), wanted, rtol=1e-5, atol=1e-5)


def test_this_torch_has_all_that_is_called():
    kernels.check()


def test_a_torch_that_lacks_an_operator_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(kernels, "_NEEDED", (("aten", "_no_such_operator", "default"),))
    with pytest.raises(BadInput, match="has no aten::_no_such_operator.default; install torch 2.11 to 2.13"):
        kernels.check()


@pytest.mark.parametrize("name", list(kernels._FLASH_ARGUMENTS))
def test_a_torch_that_calls_an_operator_otherwise_is_told_in_one_line(monkeypatch, name):
    monkeypatch.setitem(kernels._FLASH_ARGUMENTS, name, ("query", "another"))
    with pytest.raises(BadInput, match=f"has another aten::{name}; install torch 2.11 to 2.13"):
        kernels.check()
