"""One contender doing one step's work in a process of its own; `bench.rounds` starts it. Prints one line of JSON.

python3 -m bench.contender '{"contender": "fast", "timed": 2, "work": {"length": 1024}}'
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from bench.flops import flops_of_step, matmul_rate
from bench.memory import Peak
from bench.plain import plain_loss
from bench.work import FixedTarget, Work, device_and_dtype
from spec.methods.eagle3.draft import EagleDraft
from spec.methods.eagle3.step import draft_loss, observe
from spec.training.batch import Batch

# (draft, target, batch, steps) -> (loss, the draft's right choices [steps])
Contender = Callable[[EagleDraft, FixedTarget, Batch, int], tuple[torch.Tensor, torch.Tensor]]


def _ours(**how: bool) -> Contender:
    def contender(draft, target, batch, steps):
        result = draft_loss(draft, target, batch, steps=steps, **how)
        return result.loss, result.correct

    return contender


CONTENDERS: dict[str, Contender] = {
    "plain": lambda draft, target, batch, steps: plain_loss(draft, target, batch, steps=steps),
    "fast": _ours(),
    "recompute": _ours(checkpoint_steps=True),
    "compiled": _ours(compiled=True),
}


def measure(contender: str, work: Work, timed: int) -> dict[str, Any]:
    """What `timed_steps` says of `contender`'s step, and of ours the operations it needs."""
    device, dtype = device_and_dtype()
    prepare_step(contender, replace(work, length=256, batch=1, target_vocab=512, draft_vocab=256), device, dtype)()
    return {
        **timed_steps(prepare_step(contender, work, device, dtype), timed, device),
        **(_share_of_peak(work, device, dtype) if contender == "fast" else {}),
    }


def timed_steps(step: Callable[[], tuple[float, float, list[int]]], timed: int, device: torch.device) -> dict[str, Any]:
    """Seconds of `timed` steps after a first one, the peak of memory over all of them, and what they computed.

    Without timed steps the first one counts, which finds no memory that a step before it has left.
    """
    peak = Peak(device)
    seconds, cpu_seconds = [], []
    for _ in range(timed + 1):
        started = time.perf_counter(), time.process_time()
        loss, grad_norm, correct = step()
        seconds.append(time.perf_counter() - started[0])
        cpu_seconds.append(time.process_time() - started[1])
    return {
        "seconds": seconds[1:] or seconds,
        "cpu_seconds": cpu_seconds[1:]
        or cpu_seconds,  # of all threads: steadier than seconds where others use the machine too
        "memory": peak.above(),
        "loss": loss,
        "grad_norm": grad_norm,
        "correct": correct,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
    }


def prepare_step(
    contender: str, work: Work, device: torch.device, dtype: torch.dtype
) -> Callable[[], tuple[float, float, list[int]]]:
    """A forward and a backward, ready to run; gives the loss, the gradient's norm and the right choices by step."""
    draft = work.draft().to(device, dtype)
    target = FixedTarget(work, draft.t2d, device, dtype)
    draft.share_target(target.embed_weight, target.head_weight)
    batch = work.chats().to(device)

    def step() -> tuple[float, float, list[int]]:
        draft.zero_grad()
        loss, correct = CONTENDERS[contender](draft, target, batch, work.steps)
        loss.backward()
        gradients = [p.grad for p in draft.parameters() if p.grad is not None]
        return loss.item(), torch.nn.utils.get_total_norm(gradients).item(), correct.tolist()  # waits for the device

    return step


def _share_of_peak(work: Work, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    draft, batch = work.draft().to(device, dtype), work.chats().to(device)
    target = FixedTarget(work, draft.t2d, device, dtype)
    seen = observe(draft, target, batch, steps=work.steps)
    return {
        "flops": flops_of_step(draft.config, seen),
        "peak_flops_per_s": matmul_rate(device, dtype),
        "loss_rows": int(seen.count.sum()),
    }


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps(measure(asked["contender"], Work(**asked["work"]), asked["timed"])))
