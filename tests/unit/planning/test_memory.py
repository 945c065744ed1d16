"""The plan's memory against what runs of one and two ranks on CPU really allocate, as torch's profiler counts it."""

import multiprocessing
import os

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch.profiler import ProfilerActivity, profile

import tests.training_runs as training_runs
from spec import settings
from spec.attention import blocks
from spec.attention.documents import Documents
from spec.eagle_full_finetune_distributed import EagleFullFinetuneRecipeDistributed
from spec.methods.block import losses
from spec.planning.plan import Machines, measure, plan
from spec.planning.rehearsal import DTYPES
from spec.samples.dataset import SamplesWriter
from spec.samples.vocabulary import choose_vocabulary
from spec.storage import open_store
from spec.storage.markers import Marker, describe_files, write_marker
from spec.target.families import read_config, text_config_of
from spec.target.frozen import FrozenTarget
from tests.tiny_models import save_tiny_target

VOCAB, LENGTH = 2048, 256
MASK = VOCAB - 1  # a block draft's mask token, which no sample has
SHAPE = {
    "vocab_size": VOCAB, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 10, "head_dim": 16,
    "num_attention_heads": 8, "num_key_value_heads": 4, "tie_word_embeddings": False,
}  # fmt: skip


def full_rows(run):
    """Samples of the plan's worst batch: full rows, one document each, every token bears loss and is draftable."""
    folder, rng = run / "samples", np.random.default_rng(0)
    for name, rows in (("train", 8), ("held_out", 1)):
        with SamplesWriter(folder / name) as writer:
            for row in range(rows):
                ids = rng.integers(0, MASK, LENGTH, dtype=np.int32)
                writer.append(ids, np.ones(LENGTH, np.uint8), np.array([LENGTH]), np.array([row], np.uint64))
    choose_vocabulary(np.ones(VOCAB, np.int64), VOCAB).save(folder / "vocab_map.safetensors")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    marker = Marker(step="prepare", digest="", settings={}, inputs={}, files=describe_files(folder, names))
    write_marker(open_store(folder), "samples.json", marker)
    return run


def peak_of(prof):
    """Bytes at most alive of what was allocated under a profile, by this thread."""
    live = peak = 0
    for event in prof.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def profiled(cfg):
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # threads of its own would read the target unseen
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        recipe = EagleFullFinetuneRecipeDistributed(cfg)
        recipe.setup()
        recipe.train()
    print(f"peak {peak_of(prof)}", flush=True)


EAGLE3 = {"draft_vocab_size": VOCAB, "steps": 3}
DFLASH = {"method": "dflash", "mask_token_id": MASK, "block_size": 8, "layers": 2, "features": 3, "anchors": 32}
DSPARK = DFLASH | {"method": "dspark", "markov_rank": 64, "confidence": 0.5}
SPLIT = {"target_shard": "world", "activation_checkpointing": True}


@pytest.mark.parametrize(
    ("family", "ranks", "given"),
    [
        ("llama", 1, EAGLE3 | {"dtype": "fp32"}),
        ("qwen3_moe", 2, EAGLE3 | SPLIT),
        ("qwen3", 1, DFLASH | {"dtype": "fp32"}),
        ("llama", 2, DSPARK | SPLIT),
    ],
    ids=lambda its: its.get("method", "eagle3") if isinstance(its, dict) else str(its),
)
def test_the_planned_peak_is_the_measured_one(tmp_path, monkeypatch, family, ranks, given):
    for sizes in (losses.SLICE, blocks.ROWS):  # planned is what a GPU takes at once
        monkeypatch.setitem(sizes, "cpu", sizes["cuda"])
    monkeypatch.delitem(losses.CHUNK, "cpu")
    target = save_tiny_target(family, tmp_path / "target", **SHAPE)
    cfg = training_runs.TINY | {"run_dir": "RUN", "target": str(target), "max_length": LENGTH, "epochs": None}
    for name in EAGLE3:
        del cfg[name]
    cfg |= {"max_steps": 2, "evaluate_every": None, "save_every": 100}
    # The target's files hold fp32: what is not converted is read into memory that is not torch's, and not counted.
    cfg |= {"dtype": "bf16", "target_dtype": "bf16"} | given
    complete = settings.complete(OmegaConf.create(cfg))
    planned = plan(complete, measure(complete, text_config_of(read_config(target))), Machines(1, ranks))

    monkeypatch.setattr(training_runs, "recipe_main", profiled)
    del cfg["run_dir"], cfg["target"]
    asked = {"logs": tmp_path / "logs", "ranks": ranks, "without": tuple(EAGLE3.keys() - cfg.keys())}
    outcome = training_runs.train(full_rows(tmp_path / "run"), target, **asked, **cfg)
    assert set(outcome.codes) == {0}, outcome.said
    # The least of the ranks': what gloo's own threads free is counted as never freed.
    measured = min(int(line.split()[1]) for said in outcome.said for line in said.splitlines() if "peak" in line)
    assert planned.peak == pytest.approx(measured, rel=0.15), planned.phases


def look(rank, folder, peaks):
    torch.set_num_threads(1)
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
    torch.distributed.init_process_group(
        "gloo", rank=rank, world_size=2, store=torch.distributed.FileStore(str(folder / "meet"), 2)
    )
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        target = FrozenTarget.load(folder / "target", dtype=DTYPES["bf16"], shard="world")
        for _ in range(2):
            target.features(torch.zeros(1, 8, dtype=torch.int64), Documents.from_lengths([[8]], 8), (1, 2, 3))
    peaks.put(peak_of(prof))
    torch.distributed.destroy_process_group()


def test_a_split_target_takes_its_share_and_the_layers_that_are_gathered(tmp_path):
    """At a length where nothing else matters."""
    wide = SHAPE | {"intermediate_size": 2048, "num_hidden_layers": 8}
    target = save_tiny_target("llama", tmp_path / "target", **wide)
    cfg = training_runs.TINY | {"run_dir": "RUN", "target": str(target), "target_shard": "world", "max_length": 8}
    complete = settings.complete(OmegaConf.create(cfg | {"target_dtype": "bf16"}))
    phases = plan(complete, measure(complete, text_config_of(read_config(target))), Machines(1, 2)).phases
    parts = phases["target's forward"]
    planned = parts["target"] + parts["layers gathered"] + parts["activations"]

    context = multiprocessing.get_context("fork")
    peaks = context.Queue()
    ranks = [context.Process(target=look, args=(rank, tmp_path, peaks)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    measured = min(peaks.get(timeout=240) for _ in ranks)
    assert planned == pytest.approx(measured, rel=0.15), parts
