"""Speed and memory of the draft's step at Llama 3.1 8B's sizes with random weights, beside the known trainers' ways."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention

from bench.flops import flops_of_step, matmul_rate
from bench.gpu.part import Part, compare, timed
from bench.plain import plain_loss
from bench.work import FixedTarget, Work
from spec.attention import kernels
from spec.methods.eagle3.draft import rotate
from spec.methods.eagle3.step import decay_weights, observe, step_loss

LossOf = Callable[..., torch.Tensor]  # (draft, target, batch, steps)


def machine(its: Part) -> None:
    """What the machine is, and its two ceilings."""
    kernels.check()
    its.say(torch=torch.__version__, tflops=round(peak(its) / 1e12, 1))
    if its.cuda:
        x = torch.empty(1 << 31, dtype=torch.uint8, device=its.device)
        y = torch.empty_like(x)
        copy = timed(lambda: y.copy_(x), its.device, repeats=5)
        its.say(gpus=torch.cuda.device_count(), copy_tb_per_s=round(2 * x.numel() / copy["ms_least"] / 1e9, 2))


def peak(its: Part) -> float:
    return matmul_rate(its.device, its.half)


def draft(its: Part) -> None:
    """Ours, with recomputation, and the plain step of bench/plain.py."""
    its.need(40)
    ways = {
        "fast": _ours(),
        "recompute": _ours(checkpoint_steps=True),
        "plain": _plain,
    }
    _compare(its, ways)


def long(its: Part) -> None:
    """Ours at 8192 tokens."""
    its.need(40)
    _compare(its, {"fast": _ours(), "recompute": _ours(checkpoint_steps=True)}, length=8192)


def compiled(its: Part) -> None:
    """`compile: true` beside ours: what torch.compile's kernels are worth."""
    its.need(40)
    _compare(its, {"fast": _ours(), "compiled": _ours(compiled=its.cuda)})


def flex(its: Part) -> None:
    """The plain step as it is written today: flex_attention, the target's distribution once for all steps, compiled."""
    its.need(60)
    attend, soft = flex_attention if its.cuda else _masked_attention, _soft_loss
    if its.cuda:
        attend, soft = torch.compile(attend, dynamic=True), torch.compile(soft)
    masks: dict[tuple[int, int], Any] = {}
    _compare(its, {"fast": _ours(), "flex": lambda *given: _flex_loss(*given, masks, attend, soft)})


def _plain(draft, target, batch, steps):
    return plain_loss(draft, target, batch, steps=steps)[0]


def _ours(**how: bool) -> LossOf:
    def loss_of(draft, target, batch, steps):
        weights = decay_weights(steps, device=batch.input_ids.device)
        return step_loss(draft, observe(draft, target, batch, steps=steps), weights, **how).loss

    return loss_of


def work_of(its: Part, length: int = 2048) -> Work:
    if its.small:
        sizes = {"hidden": 64, "heads": 4, "kv_heads": 2, "intermediate": 96, "target_vocab": 500, "draft_vocab": 200}
        return Work(length=length // 8, batch=1, **sizes)
    sizes = {"hidden": 4096, "heads": 32, "kv_heads": 8, "intermediate": 14_336}
    return Work(length=length, batch=1, target_vocab=128_256, draft_vocab=32_000, **sizes)


def _compare(its: Part, ways: dict[str, LossOf], length: int = 2048) -> None:
    """`compare` of steps of one draft, with the share of the peak."""
    work = work_of(its, length)
    draft = work.draft().to(its.device, its.half)
    target = FixedTarget(work, draft.t2d, its.device, its.half)
    draft.share_target(target.embed_weight, target.head_weight)
    batch = work.chats().to(its.device)
    seen = observe(draft, target, batch, steps=work.steps)
    flops, rate = flops_of_step(draft.config, seen), peak(its)

    def run(loss_of: LossOf) -> tuple[torch.Tensor, torch.Tensor]:
        draft.zero_grad()
        loss = loss_of(draft, target, batch, work.steps)
        loss.backward()
        return loss.detach(), torch.nn.utils.get_total_norm([p.grad for p in draft.parameters() if p.grad is not None])

    steps = {name: (lambda loss_of=loss_of: partial(run, loss_of)) for name, loss_of in ways.items()}
    compare(its, steps, tokens=work.length * work.batch, full_speed_ms=1e3 * flops / rate)


def _masked_attention(query, key, value, *, block_mask, enable_gqa):
    """Where flex_attention has no backward: the same mask, dense."""
    mask = create_mask(block_mask.mask_mod, None, None, query.shape[2], key.shape[2], device=str(query.device))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=enable_gqa)


def _soft_loss(logits: torch.Tensor, p: torch.Tensor, bears: torch.Tensor) -> torch.Tensor:
    return -((p * logits.float().log_softmax(-1)).sum(-1) * bears).sum()


def _flex_loss(draft, target, batch, steps: int, masks: dict, attend, soft, decay: float = 0.8) -> torch.Tensor:
    layer, own, length = draft.midlayer, draft.midlayer.self_attn, batch.input_ids.shape[1]

    def later(x: torch.Tensor, by: int) -> torch.Tensor:
        return F.pad(x[:, by:], (0, 0) * (x.ndim - 2) + (0, by))

    with torch.no_grad():
        features = target.features(batch.input_ids, batch.documents, draft.config.feature_layers)
        logits = features.last @ target.head_weight.T
        known = draft.t2d[logits.argmax(-1)]
        p = F.pad(logits[..., draft.t2d].float().softmax(-1), (0, 0, 0, steps))  # [B, T + steps, draft_vocab]
        del logits
    hidden, keys, values, loss = draft.project_features(features.aux), [], [], 0.0
    for k in range(steps):
        embeds = draft.embed(later(batch.input_ids, 1 + k))
        x = torch.cat((layer.input_layernorm(embeds), layer.hidden_norm(hidden)), dim=-1)
        tables = layer.rope.tables(batch.documents.position_ids + k, x.dtype)
        q, key, value = (
            project(x).unflatten(-1, (-1, layer.head_dim)) for project in (own.q_proj, own.k_proj, own.v_proj)
        )
        keys.append(rotate(key, *tables).transpose(1, 2))
        values.append(value.transpose(1, 2))
        if (length, k) not in masks:

            def seen(b, h, i, j):
                return ((j < length) & (j <= i)) | ((j >= length) & ((j - i) % length == 0))

            masks[length, k] = create_block_mask(seen, None, None, length, length * (k + 1), device=str(q.device))
        attended = attend(
            rotate(q, *tables).transpose(1, 2),
            torch.cat(keys, 2),
            torch.cat(values, 2),
            block_mask=masks[length, k],
            enable_gqa=True,
        )
        hidden = layer.after_attention(hidden, attended.transpose(1, 2))
        bears = later(known, 1 + k) & later(batch.loss_mask, 2 + k)
        loss = loss + decay**k * soft(draft.head(hidden), p[:, 1 + k : 1 + k + length], bears)
    return loss
