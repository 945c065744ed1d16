"""What the fused losses of all methods do to a chunk of logits."""

import torch

BLOCK = 256  # logits whose largest is found at once


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
