"""What the fused losses of all methods do to a chunk of logits."""

import math
from functools import cache

import torch

BLOCK = 256  # logits whose largest is found at once

# Products of so many rows keep a GPU's matrix units busy, and what a chunk of them takes is this share of what was free
# when the first step began.
GPU_ROWS, GPU_SHARE = 4096, 1 / 4


def gpu_chunks(total: int, logits: int, device: torch.device, *, size: int, rows: int = 1) -> int:
    """Into how many chunks `total` positions are cut on a GPU, each of `logits` numbers in `rows` rows of a product.

    `size`: bytes that a chunk takes for each of its logits.
    """
    fewest = math.ceil(total * logits * size / _room(device))
    return max(1, min(total, max(total * rows // GPU_ROWS, fewest)))


@cache
def _room(device: torch.device) -> float:
    """Bytes that a chunk may take. Asked once: chunks of other sizes in a later step would round otherwise."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return math.inf  # tensors without data, on which a step is planned
    reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return GPU_SHARE * (torch.cuda.mem_get_info(device)[0] + reserved)


def softmax(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The softmax along the last dimension, in place of `logits`, and their log-sum-exp and argmax.

    A fresh tensor of a chunk's size costs more, in page faults, than all that is computed in it.
    """
    top, choice = largest(logits)
    q = torch.softmax(logits, -1, out=logits)
    of_choice = q.gather(-1, choice[..., None]).squeeze(-1)  # exp(top - lse)
    return q, top - of_choice.log(), choice


def largest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest of the last dimension and its index, the first where several are: what `logits.max(-1)` gives.

    That one compares numbers one by one on a CPU and costs as much as a softmax. Here it only searches one block.
    """
    if logits.device.type != "cpu":
        return logits.max(-1)  # type: ignore[return-value]
    whole = logits.shape[-1] // BLOCK
    blocks = logits[..., : whole * BLOCK].unflatten(-1, (whole, BLOCK)).amax(-1)  # [.., whole]
    if left := logits.shape[-1] % BLOCK:
        blocks = torch.cat((blocks, logits[..., -left:].amax(-1, keepdim=True)), -1)
    value, block = blocks.max(-1)
    at = block[..., None] * BLOCK + torch.arange(BLOCK, device=logits.device)
    inside = logits.gather(-1, at.clamp_max(logits.shape[-1] - 1))  # [.., BLOCK]; the last may stand there twice
    return value, block * BLOCK + inside.argmax(-1)


def wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(wide_type(x))


def wide_type(x: torch.Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
