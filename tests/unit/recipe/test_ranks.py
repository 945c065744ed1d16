"""Runs of several ranks: the numbers of one, an end together, and a life after other ranks."""

import numpy as np
import pytest
import torch

from spec.export.extract import read_draft
from spec.methods import METHODS
from spec.storage import open_store
from spec.storage.markers import describe_files, read_marker, write_marker
from tests.prepared import prepared_run
from tests.tiny_models import save_tiny_target
from tests.training_runs import Interruption, losses, rows, train


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return save_tiny_target("llama", tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory, target):
    """Two bins a step, on one rank. An odd number of bins, so that the last step of an epoch has one."""
    folder = tmp_path_factory.mktemp("one")
    run = prepared_run(folder / "run", documents=30)
    outcome = train(run, target, logs=folder, batch_size=2)
    assert outcome.codes == [0], outcome.said
    return run


def fresh_run(tmp_path):
    return prepared_run(tmp_path / "run", documents=30)


def draft_of(run):
    return read_draft(METHODS["eagle3"], sorted((run / "checkpoints").glob("step-*"))[-1]).state_dict()


def test_two_ranks_give_the_losses_and_the_draft_of_one(one_rank, target, tmp_path):
    run = fresh_run(tmp_path)
    outcome = train(run, target, logs=tmp_path, ranks=2)
    assert outcome.codes == [0, 0], outcome.said
    assert len(losses(run)) % 2 == 0 and rows(one_rank)[-1]["step"] == rows(run)[-1]["step"]
    np.testing.assert_allclose(losses(run), losses(one_rank), atol=1e-4)
    wanted = draft_of(one_rank)
    for name, tensor in draft_of(run).items():
        torch.testing.assert_close(tensor, wanted[name], atol=1e-4, rtol=1e-3)


def test_accumulated_batches_give_the_losses_of_one_batch(one_rank, target, tmp_path):
    run = fresh_run(tmp_path)
    assert train(run, target, logs=tmp_path, gradient_accumulation_steps=2).codes == [0]
    np.testing.assert_allclose(losses(run), losses(one_rank), atol=1e-4)


def test_a_rank_without_a_loss_bearing_token_neither_hangs_nor_biases(target, tmp_path):
    """Most documents bear no loss at all, so that in many steps one rank has none, and in some both."""
    runs = {ranks: prepared_run(tmp_path / f"run-{ranks}", documents=14) for ranks in (1, 2)}
    for ranks, run in runs.items():
        samples = run / "samples"
        mask = np.load(samples / "train/loss_mask.npy")
        offsets = np.load(samples / "train/offsets.npy")
        for row in set(range(14)) - {1, 6, 7}:
            mask[offsets[row] : offsets[row + 1]] = 0
        np.save(samples / "train/loss_mask.npy", mask)
        marker = read_marker(open_store(samples), "samples.json")
        write_marker(
            open_store(samples),
            "samples.json",
            marker.model_copy(update={"files": describe_files(samples, list(marker.files))}),
        )
        settings = {"batch_size": 2 // ranks, "packed": False, "evaluate_every": None}
        outcome = train(run, target, logs=tmp_path / str(ranks), ranks=ranks, **settings)
        assert set(outcome.codes) == {0}, outcome.said
    assert any(loss == 0 for loss, *_ in losses(runs[1]))
    assert [loss == 0 for loss, *_ in losses(runs[1])] == [loss == 0 for loss, *_ in losses(runs[2])]
    np.testing.assert_allclose(losses(runs[2]), losses(runs[1]), atol=1e-4)


def test_sigterm_on_any_rank_stops_all_at_the_same_step_and_other_ranks_go_on(one_rank, target, tmp_path):
    run = fresh_run(tmp_path)
    outcome = train(run, target, logs=tmp_path, ranks=2, interruption=Interruption(3, rank=1))
    assert outcome.codes == [143, 143], outcome.said
    assert "saved step 3 of" in outcome.said[0] and "error" not in outcome.said[1]
    outcome = train(run, target, logs=tmp_path, batch_size=2, interruption=Interruption(9))
    assert outcome.codes == [143], outcome.said
    outcome = train(run, target, logs=tmp_path, ranks=2)
    assert outcome.codes == [0, 0] and "going on from step-000009" in outcome.said[0]
    np.testing.assert_allclose(losses(run), losses(one_rank), atol=1e-4)


def test_a_killed_rank_ends_the_others_with_a_clear_line_and_the_run_goes_on(one_rank, target, tmp_path):
    run = fresh_run(tmp_path)
    outcome = train(run, target, logs=tmp_path, ranks=2, interruption=Interruption(8, rank=1, number=9))
    assert outcome.codes == [75, -9], outcome.said
    assert "another rank is gone" in outcome.said[0] and "Traceback" not in outcome.said[0]
    outcome = train(run, target, logs=tmp_path, ranks=2)
    assert outcome.codes == [0, 0] and "going on from step-000005" in outcome.said[0]
    np.testing.assert_allclose(losses(run), losses(one_rank), atol=1e-4)


def test_the_target_split_over_ranks_gives_the_same_losses(one_rank, target, tmp_path):
    run = fresh_run(tmp_path)
    outcome = train(run, target, logs=tmp_path, ranks=2, target_shard="world", max_steps=6)
    assert outcome.codes == [0, 0], outcome.said
    cold = [row["loss"] for row in rows(run) if "loss" in row][:2]
    np.testing.assert_allclose(cold, np.array(losses(one_rank))[:2, 0], atol=1e-4)


def test_two_nodes_of_two_ranks_give_the_losses_and_the_draft_of_one_rank(target, tmp_path):
    """The target split inside each node and whole on each, as on a cluster; the draft split over all four."""
    runs = {ranks: prepared_run(tmp_path / f"run-{ranks}", documents=48) for ranks in (1, 4)}
    for ranks, run in runs.items():
        settings = {"batch_size": 4 // ranks, "target_shard": "node", "max_steps": 4, "evaluate_every": None}
        outcome = train(run, target, logs=tmp_path / str(ranks), ranks=ranks, ranks_a_node=min(ranks, 2), **settings)
        assert set(outcome.codes) == {0}, outcome.said
    np.testing.assert_allclose(losses(runs[4]), losses(runs[1]), atol=1e-4)
    wanted = draft_of(runs[1])
    for name, tensor in draft_of(runs[4]).items():
        torch.testing.assert_close(tensor, wanted[name], atol=1e-4, rtol=1e-3)


def test_sixteen_ranks_give_the_losses_and_the_draft_of_one(target, tmp_path):
    """Two nodes of eight, the same sixteen rows a step."""
    runs = {ranks: prepared_run(tmp_path / f"run-{ranks}", documents=160) for ranks in (1, 16)}
    for ranks, run in runs.items():
        settings = {"batch_size": 16 // ranks, "target_shard": "node", "max_steps": 3, "evaluate_every": None}
        outcome = train(run, target, logs=tmp_path / str(ranks), ranks=ranks, ranks_a_node=min(ranks, 8), **settings)
        assert set(outcome.codes) == {0}, outcome.said
    np.testing.assert_allclose(losses(runs[16]), losses(runs[1]), atol=1e-5)
    wanted = draft_of(runs[1])
    for name, tensor in draft_of(runs[16]).items():
        torch.testing.assert_close(tensor, wanted[name], atol=1e-5, rtol=1e-5)
