"""The target's observations are made once for all ranks of a node, and read back as they were."""

import dataclasses

import pytest
import torch

from spec.methods.eagle3.step import observe
from spec.ranks import Ranks
from spec.training.feature_cache import FeatureCache
from tests.tiny_steps import fake_target, tiny_batch, tiny_config, tiny_draft


class Looks:
    """How often the target was really asked, and what it said."""

    def __init__(self):
        self.count = 0

    def __call__(self, draft, target, batch):
        self.count += 1
        return observe(draft, target, batch, steps=3, objective="lk")


@pytest.fixture
def look():
    return Looks()


def test_a_batch_is_observed_by_the_first_rank_that_meets_it(tmp_path, look):
    first, second = (FeatureCache(look, tmp_path, Ranks(rank, 2, rank, 2, torch.device("cpu"))) for rank in (0, 1))
    draft, batch = tiny_draft(tiny_config()), tiny_batch([[12, 9], [20]])
    target = fake_target(draft, batch)
    seen = first.look(draft, target, batch)
    read = second.look(draft, target, batch)
    assert look.count == 1
    for name in ("input_ids", "positions", "aux"):
        assert torch.equal(getattr(read, name), getattr(seen, name))
    for field in dataclasses.fields(seen.wanted):
        assert torch.equal(getattr(read.wanted, field.name), getattr(seen.wanted, field.name))
    assert torch.equal(read.queries.rows, seen.queries.rows)


def test_what_an_earlier_run_left_is_not_read(tmp_path, look):
    alone = Ranks(0, 1, 0, 1, torch.device("cpu"))
    draft, batch = tiny_draft(tiny_config()), tiny_batch([[12, 9], [20]])
    target = fake_target(draft, batch)
    killed = FeatureCache(look, tmp_path, alone)
    killed.look(draft, target, batch)
    FeatureCache(look, tmp_path, alone).look(draft, target, batch)
    assert look.count == 2


def test_nothing_is_left_at_the_end(tmp_path, look):
    cache = FeatureCache(look, tmp_path, Ranks(0, 1, 0, 1, torch.device("cpu")))
    draft, batch = tiny_draft(tiny_config()), tiny_batch([[12, 9], [20]])
    cache.look(draft, fake_target(draft, batch), batch)
    assert any((tmp_path / "features").iterdir())
    del cache
    assert not (tmp_path / "features").exists()
