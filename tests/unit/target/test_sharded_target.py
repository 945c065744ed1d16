"""One target on several ranks: features as on one, each rank with its part, and an end together on an error."""

import multiprocessing
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from spec.attention.documents import Documents
from spec.errors import BadInput
from spec.target.frozen import FrozenTarget
from spec.target.sharding import target_mesh
from tests.tiny_models import FAMILIES, VOCAB_SIZE, save_tiny_target


def run_ranks(work, world, per_node, *args):
    """Run `work(*args)` on `world` ranks of a gloo group, `per_node` of them on each pretended node.

    They are forks, without the seconds of imports; what fails on one stands on stderr.
    """
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_rank, args=(rank, world, per_node, work, args)) for rank in range(world)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(200)
        rank.kill()  # nothing, where it has ended
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0] * world


def _rank(rank, world, per_node, work, args):
    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank % per_node), LOCAL_WORLD_SIZE=str(per_node))
    store = dist.FileStore(str(args[0] / f"rendezvous-{work.__name__}-{world}-{per_node}"), world)
    dist.init_process_group("gloo", rank=rank, world_size=world, store=store)
    work(*args)
    dist.barrier()  # a fork ends at once, and one that has gone would break the others' last words


LAYERS = (1, 3, 4)


LAYERS = (1, 3, 4)


def batch_of(rank):
    """Another batch, of another length, on every rank."""
    length = 20 + rank
    ids = torch.randint(VOCAB_SIZE, (1, length), generator=torch.Generator().manual_seed(rank))
    return ids, Documents.from_lengths([[length - 8, 5]], length)


def features_are_those_of_one_rank(folder, shards):
    rank = dist.get_rank()
    for family in FAMILIES:
        whole = FrozenTarget.load(folder / family, dtype=torch.float32)
        wanted = whole.features(*batch_of(rank), LAYERS)
        for shard in shards:
            target = FrozenTarget.load(folder / family, dtype=torch.float32, shard=shard)
            for _ in range(2):  # the second time, everything that is gathered has been let go once
                features = target.features(*batch_of(rank), LAYERS)
                torch.testing.assert_close(features.aux, wanted.aux, rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(features.last, wanted.last, rtol=1e-5, atol=1e-5)
            sharers = int(os.environ["LOCAL_WORLD_SIZE"]) if shard == "node" else dist.get_world_size()
            held = sum(p.to_local().numel() for p in target.model.model.layers.parameters())
            all_of_it = sum(p.numel() for p in whole.model.model.layers.parameters())
            assert held <= all_of_it / sharers * 1.05 + 8 * 64, (family, shard, held, all_of_it)
            assert torch.equal(target.head_weight, whole.head_weight)
            assert torch.equal(target.embed_weight, whole.embed_weight)


@pytest.mark.parametrize(
    ("world", "per_node", "shards"), [(2, 2, ["world"]), (4, 2, ["node", "world"])], ids=["2 ranks", "2 nodes x 2"]
)
def test_a_split_target_gives_the_features_of_a_whole_one(tmp_path, world, per_node, shards):
    for family in FAMILIES:
        save_tiny_target(family, tmp_path / family, num_hidden_layers=7)
    run_ranks(features_are_those_of_one_rank, world, per_node, tmp_path, shards)


def more_ranks_than_experts(folder):
    wanted = FrozenTarget.load(folder / "t", dtype=torch.float32).features(*batch_of(0), LAYERS)
    features = FrozenTarget.load(folder / "t", dtype=torch.float32, shard="world").features(*batch_of(0), LAYERS)
    torch.testing.assert_close(features.aux, wanted.aux, rtol=1e-5, atol=1e-5)


def test_there_may_be_more_ranks_than_experts(tmp_path):
    save_tiny_target("qwen3_moe", tmp_path / "t", num_hidden_layers=7, num_experts=2)
    run_ranks(more_ranks_than_experts, 3, 3, tmp_path)


def every_rank_hears_of_it(folder):
    # Rank 1 alone sees a damaged file, as with a bad disk on one node.
    path = folder / ("damaged" if dist.get_rank() == 1 else "whole")
    with pytest.raises(BadInput, match="model.safetensors: cut short") as error:
        FrozenTarget.load(path, shard="world")
    assert str(error.value).startswith("rank 1: ")
    (folder / f"heard-{dist.get_rank()}").touch()


def test_a_damaged_file_on_one_rank_ends_all(tmp_path):
    for name in ("whole", "damaged"):
        save_tiny_target("llama", tmp_path / name, num_hidden_layers=7)
    file = tmp_path / "damaged" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    run_ranks(every_rank_hears_of_it, 2, 2, tmp_path)
    assert len(list(tmp_path.glob("heard-*"))) == 2


def uneven_nodes(folder):
    with pytest.raises(BadInput, match="2 ranks do not divide into nodes of 3"):
        target_mesh("node", "cpu")
    with pytest.raises(BadInput, match="'rack'; it is one of none, node, world"):
        target_mesh("rack", "cpu")
    assert target_mesh("none", "cpu") is None
    Path(folder / f"refused-{dist.get_rank()}").touch()


def test_uneven_nodes_and_unknown_words_are_refused(tmp_path):
    run_ranks(uneven_nodes, 2, 3, tmp_path)
    assert len(list(tmp_path.glob("refused-*"))) == 2


def test_one_process_needs_no_mesh():
    assert target_mesh("world", "cpu") is None
