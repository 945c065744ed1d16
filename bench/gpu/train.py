"""The recipe's own train step at Llama 3.1 8B's sizes with random weights, loader, target, FSDP2, optimizer and metrics
and all; and a stop and a resume of a real run."""

import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from bench.gpu.part import GIB, Part, Skipped, no_waits, processes, wait
from bench.gpu.speed import peak
from spec import components, launch, settings
from spec.eagle_full_finetune_distributed import EagleFullFinetuneRecipeDistributed, recipe_main
from spec.planning.plan import Machines, measure, plan
from spec.samples.dataset import SamplesWriter
from spec.samples.vocabulary import choose_vocabulary
from spec.storage import open_store
from spec.storage.markers import Marker, describe_files, write_marker
from spec.target.families import FAMILIES, read_config, text_config_of
from spec.target.frozen import FrozenTarget
from spec.target.loading import _refill_buffers, empty_model
from tests.prepared import prepared_run
from tests.tiny_models import save_tiny_target

ROOT = Path(__file__).parents[2]
SMALL = {
    **{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 8, "num_attention_heads": 4, "head_dim": 16},
    **{"num_key_value_heads": 2, "vocab_size": 1000},
}
RECIPE = "spec/eagle_full_finetune_distributed.py"
STEPS, STOP_AFTER = 24, 4  # of the run that is stopped
GRACE = 5  # seconds that launched ranks get to end


def train(its: Part) -> None:
    """Full rows, the plan's worst case, and packed chats: tokens/s, memory against the plan, no wait for the device."""
    its.need(40)
    folder = _target_folder(its)
    target = _random_target(its, folder)
    vocab, draft_vocab, length = (1000, 300, 128) if its.small else (128_256, 32_000, 2048)
    peaks: dict[str, dict[str, float]] = {}
    for name in ("full", "chats"):
        run = _samples(its.scratch / name, name == "full", vocab, draft_vocab, length)
        cfg = _settings(its, run, folder, draft_vocab, length)
        with _recipe(target, cfg) as recipe:
            batches = recipe.train_data.epoch(0)
            its.say(**{name: _measure(its, recipe, batches)})
            _without_waits(its, recipe, batches)
            peaks[name] = _peaks_by_part(its, recipe, next(batches))
            batches.close()
    sizes = measure(settings.complete(cfg), text_config_of(read_config(folder)))
    planned = plan(settings.complete(cfg), sizes, Machines(nodes=1, gpus=1, tflops=peak(its) / 1e12))
    its.say(planned={"gib": planned.peak / GIB, "tokens_per_s": planned.tokens_per_second, "phase": planned.fullest})
    expected = {phase: sum(parts.values()) / GIB for phase, parts in planned.phases.items()}
    backward = max(expected["draft's step"], expected["gradients' sum"])  # the sum begins inside the backward
    its.say(peak_gib_by_part=peaks)
    its.say(planned_gib_by_part={"target's forward": expected["target's forward"], "draft's step": backward})
    if its.cuda and not its.small:
        its.expect("peak against the plan", abs(its.figures["full"]["peak_gib"] * GIB / planned.peak - 1), 0.15)


def profile(its: Part) -> None:
    """The top kernels of two train steps, and the device's share of the time: to profile.txt."""
    its.need(40)
    folder = _target_folder(its)
    vocab, draft_vocab, length = (1000, 300, 128) if its.small else (128_256, 32_000, 2048)
    run = _samples(its.scratch / "chats", False, vocab, draft_vocab, length)
    with _recipe(_random_target(its, folder), _settings(its, run, folder, draft_vocab, length)) as recipe:
        batches = recipe.train_data.epoch(0)
        for _ in range(2):
            recipe.train_step(next(batches))
        wait(its.device)
        with torch_profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * its.cuda]) as seen:
            began = time.perf_counter()
            for _ in range(2):
                recipe.train_step(next(batches))
            wait(its.device)
            wall = 1e6 * (time.perf_counter() - began)
        batches.close()
    events = seen.key_averages()
    busy = sum(event.self_device_time_total for event in events)
    by = "self_device_time_total" if its.cuda else "self_cpu_time_total"
    (its.out / "profile.txt").write_text(events.table(sort_by=by, row_limit=45, max_name_column_width=90))
    top = sorted(events, key=lambda event: getattr(event, by), reverse=True)[:8]
    its.say(busy_share=round(busy / wall, 3), top={event.key[:60]: round(getattr(event, by) / 2e3, 2) for event in top})


def resume(its: Part) -> None:
    """A run on a tiny target, stopped by SIGTERM and resumed: 143, 0, 0; losses as in an unbroken one."""
    target = _tiny_runs(its, "broken", "unbroken")
    beside, stopped = (_fork(its, target, name) for name in ("unbroken", "broken"))
    while stopped.is_alive() and len(_losses(its.scratch / "broken")) < STOP_AFTER:
        time.sleep(0.01)
    stopped.terminate()
    codes = [_end(stopped)] + [_end(_fork(its, target, "broken")) for _ in range(2)] + [_end(beside)]
    its.expect(f"exit codes {codes}", float(codes != [143, 0, 0, 0]), 0)
    broken, unbroken = (_losses(its.scratch / name) for name in ("broken", "unbroken"))
    its.expect("steps logged twice or never", float(sorted(broken) != list(range(1, STEPS + 1))), 0)
    difference = max(abs(broken[step] - unbroken[step]) for step in broken)
    its.expect("losses of the resumed and the unbroken run", difference, 0)


def many(its: Part) -> None:
    """All GPUs of the machine, the target and the draft split over them, against one with the same global batch."""
    gpus = torch.cuda.device_count() if its.cuda else 2
    if gpus < 2:
        raise Skipped("one GPU")
    target = _tiny_runs(its, "one", "many")
    exact = {"dtype": "fp32", "target_dtype": "fp32", "max_steps": 8}
    alone = _fork(its, target, "one", batch_size=gpus, **exact)
    words = _words(its, target, "many", target_shard="node", **exact)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}"]
    codes = [_launched([sys.executable, *launcher, RECIPE, *words], its.left - 3 * GRACE), _end(alone)]
    its.expect(f"exit codes {codes}", float(codes != [0, 0]), 0)
    one, several = (_losses(its.scratch / name) for name in ("one", "many"))
    its.expect("steps", float(len(one) != 8 or one.keys() != several.keys()), 0)
    difference = max((abs(several[step] / one[step] - 1) for step in one.keys() & several.keys()), default=1.0)
    its.expect(f"losses of {gpus} against one", difference, 1e-3)


def _launched(command: list[str], seconds: float) -> int:
    """Its exit code. What takes too long is ended before this part is: its ranks are in sessions of their own, and
    would go on beside the parts that follow."""
    environment = os.environ | {"PET_SHUTDOWN_TIMEOUT": str(GRACE)}
    with subprocess.Popen(command, cwd=ROOT, env=environment) as launcher:
        try:
            return launcher.wait(seconds)
        except subprocess.TimeoutExpired:
            launcher.terminate()
            return launcher.wait()


def _tiny_runs(its: Part, *names: str) -> Path:
    """A tiny target, and prepared runs for it."""
    torch.set_num_threads(1)  # a fork has not the threads of what it was forked from, and would wait for them
    prepared = prepared_run(its.scratch / "prepared", documents=96)
    for name in names:
        shutil.copytree(prepared, its.scratch / name)
    return save_tiny_target("llama", its.scratch / "target")


def _words(its: Part, target: Path, run: str, **others: Any) -> list[str]:
    """The recipe's command line."""
    folder = its.scratch / run
    given = {
        **{"run_dir": folder, "target": target, "draft_vocab_size": 128, "max_length": 64, "steps": 3},
        **{"epochs": "null", "max_steps": STEPS, "device": its.device.type, "target_shard": "none", "log_every": 1},
        **{"evaluate_every": 10, "save_every": 100, "optimizer.lr": 3e-3, "lr_scheduler.num_warmup_steps": 2},
        **{"timeout_minutes": 1, "scratch": folder / "scratch", "metric_logger": "null"},
        **others,
    }
    return ["--config", "spec/configs/llama3/8B_eagle.yaml", *(f"{name}={value}" for name, value in given.items())]


def _fork(its: Part, target: Path, run: str, **others: Any) -> Any:
    """The recipe in a process of its own, without the seconds that its imports take."""
    process = processes().Process(target=_run, args=(_words(its, target, run, **others),))
    process.start()
    return process


def _run(words: list[str]) -> None:
    os.chdir(ROOT)
    torch.set_num_threads(1)  # torch makes a fork's pool anew when first asked, and not by several threads at once
    sys.argv = [RECIPE, *words]
    launch.run(lambda: recipe_main(components.from_command_line()))


def _end(process: Any) -> int:
    process.join()
    return process.exitcode


def _losses(run: Path) -> dict[int, float]:
    """By step, of what the run's metrics hold."""
    file = run / "checkpoints/metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def _settings(its: Part, run: Path, target: Path, draft_vocab: int, length: int) -> Any:
    return OmegaConf.create(
        {
            **{"run_dir": str(run), "target": str(target), "device": its.device.type, "max_length": length},
            **{"draft_vocab_size": draft_vocab, "epochs": None, "max_steps": 1000, "target_shard": "none"},
            **{"evaluate_every": None, "save_every": 10_000, "metric_logger": None, "scratch": str(run / "scratch")},
            "lr_scheduler": {"num_warmup_steps": 10},
        }
    )


def _target_folder(its: Part) -> Path:
    """A folder with a config.json alone: Llama 3.1 8B's, or a tiny one."""
    folder = its.scratch / "target"
    folder.mkdir(exist_ok=True)
    sizes = json.loads((ROOT / "spec/configs/llama3/8B.json").read_text()) | (SMALL if its.small else {})
    (folder / "config.json").write_text(json.dumps(sizes))
    return folder


def _random_target(its: Part, folder: Path) -> FrozenTarget:
    config = text_config_of(read_config(folder))
    model = empty_model(config, FAMILIES[config.model_type], torch.bfloat16)
    model.to_empty(device=its.device)
    _refill_buffers(model, its.device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1) if "norm" in name else parameter.normal_(0, 0.02)
    return FrozenTarget(model.requires_grad_(False))


def _samples(run: Path, full: bool, vocab: int, draft_vocab: int, length: int) -> Path:
    """Rows of one document all of which bears loss, or chats of many lengths half of which does."""
    folder, rng = run / "samples", np.random.default_rng(0)
    for part, rows in (("train", 100), ("held_out", 2)):
        with SamplesWriter(folder / part) as writer:
            for row in range(rows if full else 8 * rows):
                size = length if full else int(np.clip(rng.lognormal(np.log(length / 5), 0.7), 16, length))
                mask = np.ones(size, np.uint8) if full else (np.arange(size) >= size // 2).astype(np.uint8)
                writer.append(rng.integers(0, vocab, size, dtype=np.int32), mask, np.array([size]), np.array([row]))
    counts = np.zeros(vocab, np.int64)
    counts[rng.permutation(vocab)[:draft_vocab]] = 10
    choose_vocabulary(counts, draft_vocab).save(folder / "vocab_map.safetensors")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    marker = Marker(step="prepare", digest="", settings={}, inputs={}, files=describe_files(folder, names))
    write_marker(open_store(folder), "samples.json", marker)
    return run


@contextmanager
def _recipe(target: FrozenTarget, cfg: Any) -> Iterator[Any]:
    """The recipe, set up with a target that is there already."""
    loaded, FrozenTarget.load = FrozenTarget.load, classmethod(lambda *_, **__: target)
    recipe = EagleFullFinetuneRecipeDistributed(cfg)
    try:
        recipe.setup()
        # The target's choice should be a draft token, as with a counted vocabulary: the others are made unlikely.
        head = target.model.lm_head.weight
        head.normal_(0, 0.02).mul_(torch.where(recipe.draft.t2d, 1, 0.3)[:, None].to(head.dtype))
        recipe.draft.share_target(target.embed_weight, head)
        yield recipe
    finally:
        FrozenTarget.load = loaded
        recipe.cleanup()
        recipe.__dict__.clear()
        gc.collect()  # FSDP2's modules hold each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _measure(its: Part, recipe: Any, batches: Iterator[Any]) -> dict[str, Any]:
    """Milliseconds of a step over windows of ten, each of which ends as the recipe's logging does."""
    steps, windows = (2, 1) if its.small else (10, 2)
    for _ in range(1 if its.small else 4):
        recipe.train_step(next(batches))
    recipe.window.flush(recipe.method.mean_loss)  # resets the peak of memory
    rows, began, spent = [], time.perf_counter(), []
    for _ in range(windows):
        for _ in range(steps):
            recipe.train_step(next(batches))
        rows.append(recipe.window.flush(recipe.method.mean_loss))
        spent.append(1e3 * (time.perf_counter() - began) / steps)
        began = time.perf_counter()
    return {
        "ms": round(statistics.median(spent), 2),
        "tokens_per_s": round(statistics.median(row["tokens_per_s"] for row in rows)),
        "peak_gib": round(max(row["peak_memory_gib"] for row in rows), 2),
        "data_wait_share": round(max(row["data_wait_share"] for row in rows), 4),
        "loss": round(rows[-1]["loss"], 4),
    }


def _peaks_by_part(its: Part, recipe: Any, batch: Any) -> dict[str, float]:
    """GiB at most allocated while the target looks, and from there to the gradients' clipping, in one step."""
    peaks: dict[str, float] = {}
    if not its.cuda:
        recipe.train_step(batch)
        return peaks
    observe, clip = recipe._observe, recipe.gradients.clip

    def looking(*given: Any) -> Any:
        torch.cuda.reset_peak_memory_stats(its.device)
        seen = observe(*given)
        peaks["target's forward"] = torch.cuda.max_memory_allocated(its.device) / GIB
        torch.cuda.reset_peak_memory_stats(its.device)
        return seen

    def clipping(*given: Any) -> Any:
        peaks["draft's step"] = torch.cuda.max_memory_allocated(its.device) / GIB
        return clip(*given)

    recipe._observe, recipe.gradients.clip = looking, clipping
    try:
        recipe.train_step(batch)
    finally:
        del recipe._observe, recipe.gradients.clip  # the class's own again
    return peaks


def _without_waits(its: Part, recipe: Any, batches: Iterator[Any]) -> None:
    """A step in which PyTorch raises where the host would wait for the GPU."""
    ready = next(batches)
    with no_waits(its.device):
        recipe.train_step(ready)
    its.say(waits=0)
