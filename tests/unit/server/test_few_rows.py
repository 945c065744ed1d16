"""The CPU server's products of few rows: `F.linear`'s results, by the way that took less time."""

import pytest
import torch
from torch.nn import functional as F


@pytest.fixture
def few_rows(of_shim):
    return of_shim("sglang_on_cpu/few_rows.py")


@pytest.mark.parametrize("bias", [None, torch.randn(40)], ids=["no bias", "bias"])
@pytest.mark.parametrize("shape", [(1, 24), (2, 24), (4, 24), (64, 24), (65, 24), (2, 3, 24), (0, 24)], ids=str)
def test_products_are_those_of_linear_by_every_way(few_rows, shape, bias):
    weight, x = torch.nn.Parameter(torch.randn(40, 24), requires_grad=False), torch.randn(shape)
    for _ in range(40):  # both ways are tried, then one is taken
        torch.testing.assert_close(few_rows.linear(x, weight, bias), F.linear(x, weight, bias))


def test_the_way_that_takes_less_is_taken_for_each_shape_and_number_of_rows(few_rows, monkeypatch):
    times = iter(range(10_000))
    slow = few_rows._product

    def costly(*arguments):
        next(times)
        return slow(*arguments)

    monkeypatch.setattr(few_rows, "_product", costly)
    monkeypatch.setattr(few_rows.time, "thread_time", lambda: next(times))  # a product costs one more than F.linear
    weights = [torch.nn.Parameter(torch.randn(40, 24), requires_grad=False) for _ in range(3)]
    for weight in weights * 20:
        few_rows.linear(torch.randn(4, 24), weight)
    assert few_rows._chosen == {((40, 24), 4): F.linear}
    few_rows.linear(torch.randn(5, 24), weights[0])
    assert list(few_rows._chosen) == [((40, 24), 4)]
