"""The accept length that held-out accuracy makes likely, and the checkpoint that is kept and exported for it."""

import json
from types import SimpleNamespace

import pytest

from spec.export.extract import find_checkpoint, why_this
from spec.report import page
from spec.report.evidence import gather
from spec.storage import open_store
from spec.training import checkpoints, estimate
from spec.training.checkpoints import Checkpoints, Progress
from tests.runs import make_run


def test_a_draft_is_kept_with_all_before_it():
    assert estimate.accept_length([0.5, 0.5, 0.5]) == pytest.approx(1 + 0.5 + 0.25 + 0.125)
    assert estimate.accept_length([0.5] * 7) == estimate.accept_length([0.5] * 3)  # as many as are asked by default
    assert estimate.accept_length([1.0, 1.0], 5) == 3.0 and estimate.accept_length([]) == 1.0
    assert estimate.accept_length([0.0, 1.0]) == 1.0  # what follows a wrong one is never kept


def test_calibration_makes_the_estimate_what_was_measured():
    assert 1 + estimate.calibration(1.5, 1.6) * (1.5 - 1) == pytest.approx(1.6)
    assert estimate.calibration(1.0, 1.2) is None


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Saves one checkpoint a step, with these estimates, on one rank and without tensors."""
    monkeypatch.setattr(checkpoints, "first_decides", lambda work: work())
    monkeypatch.setattr(checkpoints, "together", lambda work: work())
    monkeypatch.setattr(checkpoints.dcp, "save", lambda state, checkpoint_id: None)
    monkeypatch.setattr(
        checkpoints.dist, "all_gather_object", lambda parts, own: parts.__setitem__(slice(None), [own] * len(parts))
    )
    monkeypatch.setattr(checkpoints, "describe_files", lambda folder, names: {})
    run = open_store(tmp_path / "run")

    def save(*estimates, keep=2):
        ranks = SimpleNamespace(rank=1, world=1, local_world=1, local_rank=0)
        store = run.at("checkpoints")
        own = Checkpoints(store, tmp_path, ranks, settings={}, inputs={}, keep=keep)
        for step, its in enumerate(estimates, start=1):
            facts = {"finished": False} | ({estimate.KEY: its} if its is not None else {})
            own.save(Progress(step=step), {}, "{}", facts)
        return own

    save.run = run
    return save


def names(run):
    return [int(name.removeprefix("step-")) for name in checkpoints.list_complete(run.at("checkpoints"))]


def test_retention_keeps_the_newest_and_the_best(saved):
    own = saved(1.1, 1.6, 1.4, 1.5, 1.2)
    assert names(saved.run) == [2, 4, 5] and checkpoints.find_best(own.store) == ("step-000002", 1.6)
    assert own.newest()[0] == "step-000005"  # a resume goes on from the newest, not the best
    found = find_checkpoint(f"{saved.run.url}/checkpoints")
    assert found[1] == "step-000002" and "step-000005" in why_this(saved.run, found[1])
    assert find_checkpoint(f"{saved.run.url}/checkpoints/step-000005")[1] == "step-000005"


def test_a_better_one_takes_the_place_of_the_best(saved):
    saved(1.6, 1.4, 1.5, 1.6, 1.2, 1.3, 1.1)
    assert names(saved.run) == [4, 6, 7]  # of equal ones the newest


def test_without_estimates_the_newest_stay_and_are_exported(saved):
    saved(None, None, None, None)
    assert names(saved.run) == [3, 4]
    assert find_checkpoint(f"{saved.run.url}/checkpoints")[1] == "step-000004" and not why_this(
        saved.run, "step-000004"
    )


def test_one_that_was_saved_between_evaluations_is_never_the_best(saved):
    saved(1.2, 1.3, None)
    assert find_checkpoint(f"{saved.run.url}/checkpoints")[1] == "step-000002"


def test_the_report_calibrates_the_estimate_by_what_was_accepted(tmp_path):
    store = make_run(tmp_path / "run")
    html = page.render(gather(store))
    (row,) = [
        json.loads(line)
        for line in store.read("checkpoints/metrics.jsonl").splitlines()
        if b'"step": 400, "held' in line
    ]
    then = estimate.accept_length(row["held_out"]["accuracy_by_position"])
    assert f"At step 400 it was {then:.2f}, and real speculation accepted 1.75." in html
    chart = html[html.index('aria-label="Estimated accept length over the steps"') :]
    assert chart[: chart.index("</svg>")].count("<polyline") == 2
    store.delete("report/report.json")
    assert "real speculation accepted" not in page.render(gather(store))
