"""Loading a target that no host can hold: each rank's memory peaks at its own share and two layers in passing."""

import ctypes
import gc
import multiprocessing
import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from spec.target.frozen import FrozenTarget
from tests.tiny_models import save_tiny_target

LAYERS = 12
M_MMAP_THRESHOLD = -3  # malloc.h
SLACK = 12 << 20  # what the allocator keeps, page tables, gloo's buffers
# Forked from a process that has only imported these: what earlier tests left in pytest's own, freed while a rank loads,
# would be taken from its peak.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["spec.target.frozen", "transformers"])
SHAPES = {
    "llama": {"intermediate_size": 2560},
    "llama4": {"intermediate_size": 640, "intermediate_size_mlp": 640},
    "qwen3_moe": {"num_experts": 8, "moe_intermediate_size": 320},
}


@pytest.fixture(scope="module", params=SHAPES)
def path(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    shape = {"hidden_size": 512, "num_hidden_layers": LAYERS} | SHAPES[request.param]
    # In a process of its own: memory that it has freed would be the ranks' to begin with, and count as nobody's.
    maker = CONTEXT.Process(target=save, args=(request.param, folder, shape))
    maker.start()
    maker.join()
    return folder


def save(family, folder, shape):
    save_tiny_target(family, folder / "measured", **shape)
    save_tiny_target(family, folder / "first")


def resident(what: str) -> int:
    """This process's memory in bytes: VmRSS now, VmHWM at most."""
    return int(re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10


def load(rank, world, path, meeting, results):
    torch.set_num_threads(1)
    # Tensors of a real target are too large for malloc to keep after use (32 MB and more); here they are not.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 18)
    dist.init_process_group("gloo", rank=rank, world_size=world, store=dist.FileStore(str(meeting), world))
    # Once before: what the libraries' code pages take at its first use is no part of a target.
    FrozenTarget.load(path / "first", dtype=torch.float32, shard="world")
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier tests freed would be taken first, and not be seen
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    target = FrozenTarget.load(path / "measured", dtype=torch.float32, shard="world")
    peak = resident("VmHWM") - before
    layers = sum(p.numel() for p in target.model.model.layers.parameters()) * 4
    outside = sum(p.numel() for p in target.model.parameters()) * 4 - layers
    results.put((peak, layers, outside))
    dist.barrier()


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_rank_never_holds_more_than_its_share_and_two_layers(path, tmp_path, world):
    results = CONTEXT.Queue()
    ranks = [
        CONTEXT.Process(target=load, args=(rank, world, path, tmp_path / "meet", results)) for rank in range(world)
    ]
    for rank in ranks:
        rank.start()
    for peak, layers, outside in [results.get(timeout=240) for _ in ranks]:
        share, layer = layers / world + outside, layers / LAYERS
        assert share * 0.9 < peak < share + 2 * layer + SLACK, (peak / 1e6, share / 1e6, layer / 1e6)
    for rank in ranks:
        rank.join()
