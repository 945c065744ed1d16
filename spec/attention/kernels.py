"""PyTorch's operators that have no public function, or another one in each of torch 2.11 to 2.13: called here alone.

`varlen_attn` takes grouped heads from 2.12 on, the operator behind it in all three, with the same first arguments.
FSDP2 lets a rank without a gradient take part from 2.13 on. `check` says in one line what a torch lacks.
"""

from typing import Any, NamedTuple

import torch
from torch.distributed.fsdp import FSDPModule

from spec.errors import BadInput

aten = torch.ops.aten

_NEEDED = (  # (namespace, operator, overload)
    ("aten", "_flash_attention_forward", "default"),
    ("aten", "_flash_attention_backward", "default"),
    ("aten", "_scaled_dot_product_flash_attention_for_cpu", "default"),
    ("aten", "_scaled_dot_product_flash_attention_for_cpu_backward", "default"),
    ("aten", "mm", "dtype"),
    ("aten", "addmm", "dtype_out"),
)
_LENGTHS = ("cum_seq_q", "cum_seq_k", "max_q", "max_k", "dropout_p", "is_causal")
_FLASH_ARGUMENTS = {
    "_flash_attention_forward": ("query", "key", "value", *_LENGTHS, "return_debug_mask"),
    "_flash_attention_backward": (
        *("grad_out", "query", "key", "value", "out", "logsumexp", *_LENGTHS),
        *("rng_state", "unused"),
    ),
}


def check() -> None:
    """`BadInput` with what this torch lacks or calls otherwise, before a target is loaded."""
    for namespace, name, overload in _NEEDED:
        operator = getattr(getattr(torch.ops, namespace), name, None)
        if operator is None or overload not in operator.overloads():
            raise BadInput(
                f"torch {torch.__version__} has no {namespace}::{name}.{overload}; install torch 2.11 to 2.13"
            )
    for name, wanted in _FLASH_ARGUMENTS.items():
        arguments = getattr(aten, name).default._schema.arguments
        if tuple(argument.name for argument in arguments[: len(wanted)]) != wanted:
            raise BadInput(f"torch {torch.__version__} has another aten::{name}; install torch 2.11 to 2.13")


class Lengths(NamedTuple):
    """Where the sequences of one flash call end among the queries and among the keys, and the longest of each."""

    queries: torch.Tensor  # [sequences + 1] int32, on the device
    keys: torch.Tensor
    longest_query: int
    longest_key: int


def flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: Lengths,
    *,
    causal: bool = True,
    scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """CUDA's flash kernel, in half precision: attention inside each of the sequences.

    `query [R, heads, D]`, `key` and `value [L, kv_heads, D]`. Gives `[R, heads, D]` and the log-sum-exps `[heads, R]`
    fp32. `causal` is for as many queries as keys; `scale`: of the scores, by default `D ** -0.5`.
    """
    scaled = {} if scale is None else {"scale": scale}
    out, lse, *_ = aten._flash_attention_forward(query, key, value, *lengths, 0.0, causal, False, **scaled)
    return out, lse


def flash_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    lengths: Lengths,
    *,
    causal: bool = True,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of query, key and value, given those of `out [R, heads, D]` and any contiguous `lse [heads, R]`."""
    no_dropout = torch.zeros(2, dtype=torch.uint64, device=query.device), torch.empty(0, device=query.device)
    return aten._flash_attention_backward(grad, query, key, value, out, lse, *lengths, 0.0, causal, *no_dropout)


def cpu_flash(query, key, value, causal: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The CPU's flash kernel: `[1, heads, T, D]`, a mask aligned to the first key -> out, lse `[1, heads, T]`."""
    return aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal)


def cpu_flash_backward(grad, query, key, value, out, lse, causal: bool):
    return aten._scaled_dot_product_flash_attention_for_cpu_backward(grad, query, key, value, out, lse, 0.0, causal)


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`x [M, K] @ weight.T [K, N]` in fp32 or wider, without a gradient; nothing of it is rounded to half precision.

    In fp32 on a CPU by oneDNN. Where one side is a vocabulary it is faster than the BLAS behind `@` on AMD's processors
    (4% of a step), and a tenth slower on Intel's (`python -m bench.products`). PyTorch reaches it only through the
    operator that torch.compile uses.
    """
    if x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return product(x, weight.T)


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`a [M, K] @ b [K, N]` in fp32 or wider, without a gradient.

    Half precision: the device's matrix units sum in fp32 anyway, and `out_dtype` keeps their sums. A CPU has no such
    product; there the longer of K and N, a vocabulary, is made wide a part at a time.
    """
    if not _is_half(a):
        return a @ b
    if a.device.type != "cpu":
        return torch.mm(a, b, out_dtype=torch.float32)
    out = torch.zeros(len(a), b.shape[1])
    if len(b) > b.shape[1]:
        for left, right in zip(a.split(_AT_ONCE, 1), b.split(_AT_ONCE), strict=True):
            out.addmm_(left.float(), right.float())
    else:
        wide = a.float()
        for some, right in zip(out.split(_AT_ONCE, 1), b.split(_AT_ONCE, 1), strict=True):
            some.copy_(wide @ right.float())
    return out


def add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Adds `a [M, K] @ b [K, N]` to `total [M, N]`, which is fp32 or wider, without a tensor of its size in between."""
    if not _is_half(a):
        total.addmm_(a, b)
    elif a.device.type == "cpu":
        for rows, some in zip(total.split(_AT_ONCE), a.split(_AT_ONCE), strict=True):
            rows.addmm_(some.float(), b.float())
    elif a.is_meta:  # where a step is planned: before 2.13 tensors without data are not added so
        total += a @ b
    else:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)


_AT_ONCE = 512  # tokens of a vocabulary that a CPU makes wide


def _is_half(x: torch.Tensor) -> bool:
    return x.dtype in (torch.bfloat16, torch.float16)


def sum_gradients(module: Any) -> None:
    """Have FSDP2 add up the gradients of `module` over its ranks, undivided.

    Every parameter has a gradient in every batch, though it be zero (`tests/unit/methods/eagle3/test_step.py`): so the
    ranks' collectives match on a torch that leaves out parameters without one.
    """
    assert isinstance(module, FSDPModule)
    module.set_gradient_divide_factor(1.0)
    module.set_force_sum_reduction_for_comms(True)
    if hasattr(module, "set_reduce_scatter_unused_params"):
        module.set_reduce_scatter_unused_params(True)
