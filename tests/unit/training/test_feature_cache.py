"""The target's observations are made once for all ranks of a node, and read back as they were."""

import dataclasses

import pytest
import torch

from spec.ranks import Ranks
from spec.training import feature_cache
from spec.training.feature_cache import FeatureCache
from tests.tiny_steps import fake_target, tiny_batch, tiny_config, tiny_draft


@pytest.fixture
def observed(monkeypatch):
    """How often the target was really asked."""
    calls = []

    def counted(*args, **kwargs):
        calls.append(args)
        return observe(*args, **kwargs)

    observe = feature_cache.observe
    monkeypatch.setattr(feature_cache, "observe", counted)
    return calls


def test_a_batch_is_observed_by_the_first_rank_that_meets_it(tmp_path, observed):
    first, second = (FeatureCache(tmp_path, Ranks(rank, 2, rank, 2, torch.device("cpu"))) for rank in (0, 1))
    draft, batch = tiny_draft(tiny_config()), tiny_batch([[12, 9], [20]])
    target = fake_target(draft, batch)
    seen = first.observe(draft, target, batch, steps=3, objective="lk")
    read = second.observe(draft, target, batch, steps=3, objective="lk")
    assert len(observed) == 1
    for name in ("input_ids", "positions", "aux"):
        assert torch.equal(getattr(read, name), getattr(seen, name))
    for field in dataclasses.fields(seen.wanted):
        assert torch.equal(getattr(read.wanted, field.name), getattr(seen.wanted, field.name))
    assert torch.equal(read.queries.rows, seen.queries.rows)


def test_what_an_earlier_run_left_is_not_read(tmp_path, observed):
    alone = Ranks(0, 1, 0, 1, torch.device("cpu"))
    draft, batch = tiny_draft(tiny_config()), tiny_batch([[12, 9], [20]])
    target = fake_target(draft, batch)
    killed = FeatureCache(tmp_path, alone)
    killed.observe(draft, target, batch, steps=3)
    FeatureCache(tmp_path, alone).observe(draft, target, batch, steps=3)
    assert len(observed) == 2


def test_nothing_is_left_at_the_end(tmp_path):
    cache = FeatureCache(tmp_path, Ranks(0, 1, 0, 1, torch.device("cpu")))
    draft, batch = tiny_draft(tiny_config()), tiny_batch([[12, 9], [20]])
    cache.observe(draft, fake_target(draft, batch), batch, steps=3)
    assert any((tmp_path / "features").iterdir())
    del cache
    assert not (tmp_path / "features").exists()
