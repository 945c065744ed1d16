"""The CPU server's norms and rotations: SGLang's own in fewer operations; what they do not know is left to it."""

from types import SimpleNamespace

import pytest
import torch

WIDTH, DIM, HEADS, KV_HEADS, TOKENS = 48, 8, 6, 2, 5


@pytest.fixture
def few_operations(of_shim):
    return of_shim("sglang_on_cpu/few_operations.py")


def a_norm(**its):
    weight = torch.randn(WIDTH)
    return SimpleNamespace(
        **{"weight": weight, "hidden_size": WIDTH, "variance_epsilon": 1e-5, "variance_size_override": None, **its}
    )


def a_rotation(**its):
    angles = torch.outer(torch.arange(32.0), 100.0 ** -torch.arange(0, 1, 2 / DIM))
    cache = torch.cat((angles.cos(), angles.sin()), dim=-1)
    return SimpleNamespace(
        **{"is_neox_style": True, "rotary_dim": DIM, "head_size": DIM, "cos_sin_cache": cache, **its}
    )


@pytest.mark.parametrize("residual", [None, torch.randn(TOKENS, WIDTH)], ids=["alone", "residual"])
def test_a_norm_is_root_mean_square_of_the_sum(few_operations, residual):
    norm, x = a_norm(), torch.randn(TOKENS, WIDTH)
    out = few_operations.norm(norm, x, residual)
    total = x if residual is None else x + residual
    expected = total / (total.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight
    torch.testing.assert_close(out if residual is None else out[0], expected)
    if residual is not None:
        assert torch.equal(out[1], total)


def test_both_halves_of_every_head_are_turned(few_operations):
    rotation, positions = a_rotation(), torch.tensor([3, 9, 4, 31, 0])
    query, key, _ = torch.randn(TOKENS, (HEADS + 2 * KV_HEADS) * DIM).split(
        [HEADS * DIM, KV_HEADS * DIM, KV_HEADS * DIM], dim=-1
    )
    for got, x in zip(few_operations.rotate(rotation, positions, query, key), (query, key), strict=True):
        pairs = x.reshape(TOKENS, -1, 2, DIM // 2)
        numbers = torch.complex(pairs[:, :, 0], pairs[:, :, 1])
        cos, sin = rotation.cos_sin_cache[positions].unsqueeze(1).chunk(2, dim=-1)
        turned = numbers * torch.complex(cos, sin)
        torch.testing.assert_close(got, torch.cat((turned.real, turned.imag), dim=-1).view(TOKENS, -1))


def test_a_table_that_grew_is_read_anew(few_operations):
    rotation, last = a_rotation(), torch.tensor([31])
    x = torch.randn(1, DIM)
    before, _ = few_operations.rotate(rotation, last, x, x)
    rotation.cos_sin_cache = rotation.cos_sin_cache.flip(0)
    after, _ = few_operations.rotate(rotation, last, x, x)
    torch.testing.assert_close(after, x)  # at what is position 0 now nothing turns
    assert not torch.equal(before, after)


@pytest.mark.parametrize(
    "its", [{"variance_size_override": 8}, {"weight": torch.randn(WIDTH).bfloat16()}], ids=lambda its: next(iter(its))
)
def test_other_norms_are_left_to_sglang(few_operations, its):
    assert few_operations.norm(a_norm(**its), torch.randn(TOKENS, WIDTH)) is None


@pytest.mark.parametrize("its", [{"is_neox_style": False}, {"rotary_dim": 4}], ids=lambda its: next(iter(its)))
def test_other_rotations_are_left_to_sglang(few_operations, its):
    x = torch.randn(TOKENS, DIM)
    assert few_operations.rotate(a_rotation(**its), torch.arange(TOKENS), x, x) is None
