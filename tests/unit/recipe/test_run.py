"""A training run as its user sees it: begun, stopped, resumed, done."""

import json
import time
from dataclasses import replace

import pytest
import torch
import torch.distributed.checkpoint as dcp

from spec import ranks
from spec.costs.budget import Cap
from spec.costs.records import read_all
from spec.export.extract import extract, find_checkpoint, read_draft
from spec.export.verify import verify
from spec.methods import METHODS
from spec.storage import open_store
from spec.training.checkpoints import list_complete
from tests.prepared import prepared_run
from tests.tiny_models import save_tiny_target
from tests.training_runs import Interruption, losses, rows, train


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return save_tiny_target("llama", tmp_path_factory.mktemp("target"))


@pytest.fixture
def run(tmp_path):
    return prepared_run(tmp_path / "run")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, target):
    """One rank, from the first step to the last."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    run = prepared_run(folder / "run")
    outcome = train(run, target, logs=folder)
    assert outcome.codes == [0], outcome.said
    return run


def numbers(run):
    """Everything of metrics.jsonl that does not depend on the clock or the machine."""
    clock = {"seconds", "cpu_seconds", "tokens_per_s", "loss_tokens_per_s", "peak_memory_gib", "data_wait_share"}
    return [{key: row[key] for key in row.keys() - clock} for row in rows(run)]


def newest(run):
    return sorted((run / "checkpoints").glob("step-*/checkpoint.json"))[-1].parent


def test_a_run_logs_every_step_evaluates_and_keeps_the_last_checkpoints(uninterrupted):
    logged = rows(uninterrupted)
    steps = [row["step"] for row in logged if "loss" in row]
    assert steps == list(range(1, len(steps) + 1))
    first = logged[0]
    for key in ("loss_by_position", "accuracy_by_position"):
        assert len(first[key]) == 3
    for key in (
        "lr",
        "grad_norm",
        "seconds",
        "cpu_seconds",
        "tokens_per_s",
        "loss_tokens_per_s",
        "peak_memory_gib",
        "data_wait_share",
    ):
        assert isinstance(first[key], float), key
    assert [row["step"] for row in logged if "held_out" in row] == [5, 10, 15, 20, len(steps)]
    kept = sorted(path.name for path in (uninterrupted / "checkpoints").glob("step-*"))
    assert kept == ["step-000020", f"step-{len(steps):06d}"]
    marker = json.loads((newest(uninterrupted) / "checkpoint.json").read_text())
    assert marker["step"] == "train" and marker["facts"]["finished"] is True
    assert logged[-1]["held_out"]["loss"] < next(row for row in logged if "held_out" in row)["held_out"]["loss"]


def test_a_finished_run_says_so_and_trains_no_more(uninterrupted, target, tmp_path):
    before = numbers(uninterrupted)
    outcome = train(uninterrupted, target, logs=tmp_path)
    assert outcome.codes == [0]
    assert "already done" in outcome.said[0]
    assert numbers(uninterrupted) == before


def test_stopped_and_resumed_gives_the_uninterrupted_run_bit_for_bit(uninterrupted, target, run, tmp_path):
    for step in (3, 8, 14):  # in the first epoch, between two checkpoints, in the second epoch
        outcome = train(run, target, logs=tmp_path, interruption=Interruption(step))
        assert outcome.codes == [143], outcome.said
        assert f"saved step {step} of" in outcome.said[0]
    assert train(run, target, logs=tmp_path).codes == [0]
    assert numbers(run) == numbers(uninterrupted)
    ended, wanted = read_draft(METHODS["eagle3"], newest(run)), read_draft(METHODS["eagle3"], newest(uninterrupted))
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(ended.state_dict()[name], tensor), name


def test_killed_it_goes_on_from_the_newest_complete_checkpoint(uninterrupted, target, run, tmp_path):
    outcome = train(run, target, logs=tmp_path, interruption=Interruption(8, number=9))
    assert outcome.codes == [-9]
    half = run / "checkpoints/step-000007"  # as if it had been killed while it saved
    half.mkdir()
    (half / "__0_0.distcp").write_bytes(b"half")
    outcome = train(run, target, logs=tmp_path)
    assert outcome.codes == [0] and "going on from step-000005" in outcome.said[0]
    assert numbers(run) == numbers(uninterrupted)


def test_the_draft_of_a_checkpoint_reads_back_without_a_process_group(uninterrupted):
    draft = read_draft(METHODS["eagle3"], newest(uninterrupted))
    state = {"draft": {"fc.weight": torch.empty_like(draft.fc.weight)}}
    dcp.load(state, checkpoint_id=newest(uninterrupted), no_dist=True)
    assert torch.equal(state["draft"]["fc.weight"], draft.fc.weight)
    assert draft.t2d.sum() == 128 and draft.lm_head.weight.dtype == torch.float32
    assert losses(uninterrupted)


SHAPES = {
    "whole vocabulary": {"draft_vocab_size": None},
    "two layers": {"draft": {"num_hidden_layers": 2}},
    "EAGLE-3.1": {"draft": {"fc_norm": True, "norm_output": True}},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_draft_of_another_shape_learns_goes_on_bit_for_bit_and_is_exported(shape, target, run, tmp_path):
    whole = prepared_run(tmp_path / "whole")
    assert train(whole, target, logs=tmp_path, **SHAPES[shape]).codes == [0]
    assert losses(whole)[-1][0] < losses(whole)[0][0]
    assert train(run, target, logs=tmp_path, interruption=Interruption(7), **SHAPES[shape]).codes == [143]
    assert train(run, target, logs=tmp_path, **SHAPES[shape]).codes == [0]
    assert losses(run) == losses(whole)
    store, name, checkpoint = find_checkpoint(f"{run}/checkpoints")
    extract(store, name, checkpoint, store.at("draft"), target=target)
    verify(run / "draft", target)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"draft": {"num_hidden_layers": 0}}, "draft.num_hidden_layers=0"),
        ({"draft": {"fc_norm": "yes"}}, "draft.fc_norm='yes'"),
        ({"draft_vocab_size": 0}, "draft_vocab_size=0"),
    ],
)
def test_a_shape_that_cannot_be_meant_is_refused(settings, told, target, run, tmp_path):
    outcome = train(run, target, logs=tmp_path, **settings)
    assert outcome.codes == [2] and told in outcome.said[0]


def test_heads_that_a_gpu_s_kernel_does_not_take_are_refused_before_anything_is_read(
    target, run, tmp_path, monkeypatch
):
    """No GPU is asked before: the ranks only believe that they have one."""
    begun = ranks.start
    monkeypatch.setattr(ranks, "start", lambda *given: replace(begun(*given), device=torch.device("cuda", 0)))
    outcome = train(run, target, logs=tmp_path, dtype="bf16", draft={"head_dim": 12})
    assert outcome.codes == [2] and "the draft has a head_dim of 12" in outcome.said[0], outcome.said


def test_a_run_past_its_cap_saves_says_so_once_and_goes_on_with_a_higher_one(target, run, tmp_path, monkeypatch):
    """A CPU holds no GPU: the ranks are told that they hold many, and that the cap is near."""
    monkeypatch.setattr(Cap, "of", classmethod(lambda cls, store, gpus: cls(10, 3600 * 9.9, 3600, time.time())))
    first = train(run, target, logs=tmp_path / "first", ranks=2, ranks_a_node=1)
    assert first.codes == [2, 2]
    said = [line for text in first.said for line in text.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "GPU-hours are used of 10; saved step" in said[0]
    assert "submit the same run again with a higher max-gpu-hours" in said[0]
    name = list_complete(open_store(run / "checkpoints"))[-1]
    assert f"saved step {int(name.removeprefix('step-'))} of" in said[0]

    monkeypatch.setattr(Cap, "of", classmethod(lambda cls, store, gpus: cls(10, 3600 * 10, 8, time.time())))
    again = train(run, target, logs=tmp_path / "again")
    assert again.codes == [2] and "training begins no further step" in again.said[0]

    monkeypatch.undo()
    last = train(run, target, logs=tmp_path / "last", ranks=2)
    assert last.codes == [0, 0] and f"going on from {name}" in last.said[0]


def test_a_run_keeps_what_each_node_cost_and_nothing_more_once_it_is_finished(target, run, tmp_path):
    assert train(run, target, logs=tmp_path / "two", ranks=2, ranks_a_node=1).codes == [0, 0]
    records = read_all(open_store(run))
    assert len(records) == 2 and {(its.step, its.gpus, its.over) for its in records} == {("train", 0, True)}
    assert train(run, target, logs=tmp_path / "again").codes == [0]
    assert read_all(open_store(run)) == records
