"""Block drafts on the device: the step against the plain reference in double, and its speed at Llama 3.1 8B's sizes
beside the known trainers' way (a dense mask, all logits)."""

from dataclasses import replace
from functools import partial

import torch

from bench.blocks import BlockWork, prepare_step
from bench.gpu.part import Part, compare, no_waits, relative
from spec.methods.block.losses import Objective, decay_weights
from spec.methods.block.step import observe, step_loss
from tests.tiny_blocks import fake_target, judged, some_blocks, tiny_config, tiny_draft
from tests.tiny_steps import tiny_batch

METHODS = {  # with every term of the loss between them
    "dflash": (0, Objective(weighting="dpace")),
    "dspark": (6, Objective(ce=0.1, l1=0.9, confidence=1.0)),
}
SMALL = {"length": 256, "anchors": 8, "hidden": 64, "heads": 4, "kv_heads": 2, "intermediate": 96, "vocab": 500}
LLAMA_8B = {"length": 2048, "anchors": 512, "layers": 5, "hidden": 4096, "heads": 32, "kv_heads": 8}
LLAMA_8B |= {"intermediate": 14_336, "vocab": 128_256}
SIZES = {"dflash": {"block_size": 16}, "dspark": {"block_size": 7, "markov_rank": 256}}  # as published


def blocks(its: Part) -> None:
    """Loss, choices and every gradient, packed and padded documents, with and without recomputation, and no wait."""
    sizes = {} if its.small else {"hidden_size": 256, "intermediate_size": 384, "head_dim": 64}
    for dtype in (torch.float32, torch.bfloat16):
        for name, (rank, objective) in METHODS.items():
            config = tiny_config(markov_rank=rank, confidence_head=objective.confidence > 0, **sizes)
            draft, batch = tiny_draft(config, dtype=dtype), tiny_batch([[31, 12, 57], [80]], width=104, bearing=0.85)
            target, drawn = fake_target(draft, batch), some_blocks(draft, batch, most=8)
            weights = decay_weights(config.drafts, 4.0)
            asked = {"weights": weights, "shares": (objective.ce, objective.l1, objective.confidence)}
            asked["dpace"] = objective.smoothing if objective.weighting == "dpace" else None
            loss, _, _, correct, _, wanted = judged(draft, target, batch, drawn, **asked)
            limit = 1e-4
            if dtype != torch.float32:  # what the reference itself loses by rounding; one seed
                plain = judged(draft, target, batch, drawn, **asked, dtype=dtype)[-1]
                limit = 1.5 * max(relative(plain[key], wanted[key]) for key in wanted)
            draft.to(its.device)
            target = target.to(its.device)
            draft.share_target(target.embed_weight, target.head_weight)
            for recompute in (False, True):
                draft.zero_grad()
                ready = batch.to(its.device), drawn.to(its.device), weights.to(its.device)
                with no_waits(its.device):
                    seen = observe(draft, target, ready[0], keep_last=objective.l1 > 0)
                    how = {"objective": objective, "checkpoint_layers": recompute}
                    result = step_loss(draft, seen, *ready[1:], **how)
                    result.loss.backward()
                label = f"{name} {str(dtype)[6:]}{' recomputed' * recompute}"
                worst = max(relative(p.grad, wanted[key]) for key, p in draft.named_parameters())
                its.expect(label, max(worst, abs(float(result.loss) / float(loss) - 1)), limit)
                if dtype == torch.float32:
                    its.expect(f"{label}: choices", float((result.correct.cpu() != correct).sum()), 0)


def block_speed(its: Part) -> None:
    """DFlash and DSpark as published, ours with and without recomputation, and the plain step."""
    its.need(40)
    for name, sizes in SIZES.items():
        work = replace(BlockWork(), **{**(SMALL if its.small else LLAMA_8B), **sizes})
        ways = {
            f"{name} {way}": partial(prepare_step, way, work, its.device, its.half)
            for way in ("fast", "recompute", "plain")
        }
        compare(its, ways, tokens=work.length)
