"""Runs submitted again, whole or stopped in the middle, and one terminated: all at once, since each waits a lot."""

import pytest

from spec.conversations.shards import find_shards, folders_present, read_rows
from tests.e2e.cluster import Workflow, argo, bucket, kubectl, submit, until, url
from tests.e2e.conftest import GOOD

ROWS = 400
# One request at a time: on the fastest machine too, filtering takes long enough to be met in its middle.
SLOW = {
    "parallel": "1",
    "filter_options": f"--keep-truncated --limit {ROWS}",
    "train_options": "draft_vocab_size=128 epochs=8 optimizer.lr=3.0e-3 lr_scheduler.num_warmup_steps=5 save_every=100",
}


@pytest.fixture(scope="module")
def again(good: Workflow) -> Workflow:
    good.wait(1800)
    return submit(GOOD)


@pytest.fixture(scope="module")
def refused(again: Workflow) -> Workflow:
    until("it has the run to itself", again.nodes, 120, of=again)  # of two that both wait, either may come first
    return submit(GOOD, min_accept_length="9", destination=url(GOOD, "refused"))


@pytest.fixture(scope="module")
def interrupted(again: Workflow, refused: Workflow) -> dict[str, Workflow]:
    """One workflow stopped in the middle of filtering, and one terminated there."""
    begun = {how: submit(how, **SLOW) for how in ("stop", "terminate")}
    for how, workflow in begun.items():
        until(f"{how}: both shards have answers", lambda run=workflow.run: _shards(run) == 2, 900, of=workflow)
        argo(how, workflow.name)
    return begun


@pytest.fixture(scope="module")
def resumed(interrupted: dict[str, Workflow]) -> Workflow:
    interrupted["stop"].wait(300)
    return submit("stop", **SLOW)


def test_stopped_nothing_of_it_is_left(interrupted: dict[str, Workflow], resumed: Workflow) -> None:
    stopped = interrupted["stop"]
    assert stopped.phase == "Failed"
    assert "Stop" in stopped.message, stopped.message
    assert stopped.made() == []
    until("its last pod ends", lambda: not stopped.pods(), 60)


def test_terminated_nothing_of_it_is_left(interrupted: dict[str, Workflow]) -> None:
    terminated = interrupted["terminate"]
    assert terminated.wait(300) == "Failed"
    kubectl("create", "job", "--from=cronjob/sweep", f"sweep-{terminated.name}")  # else within two minutes
    until("nothing of it is left", lambda: not terminated.made() and not terminated.pods(), 180)


def test_the_same_run_again_does_only_what_is_missing(again: Workflow) -> None:
    assert again.wait(900) == "Succeeded", again.message
    assert not again.ran() & {"serve", "serve-draft", "serve-baseline", "train", "prove"}, again.ran()


def test_a_draft_below_the_bar_is_not_published_and_the_message_says_why(refused: Workflow) -> None:
    assert refused.wait(900) == "Failed"
    assert "below 9" in refused.message, refused.message
    with bucket() as store:
        assert store.list(f"{GOOD}/refused") == []


def test_the_second_workflow_of_a_run_waits_for_the_first(again: Workflow, refused: Workflow) -> None:
    begun = min(node["startedAt"] for node in refused.nodes() if node["type"] == "Pod")
    assert begun >= again.status()["finishedAt"]  # both are UTC, written alike


def test_stopped_and_submitted_again_it_goes_on(resumed: Workflow) -> None:
    assert resumed.wait(1800) == "Succeeded", resumed.message
    with bucket() as store:
        run = store.at(f"{resumed.run}/run")
        shards = find_shards(run)
        ids = [row["id"] for shard, marker in shards.items() for row in read_rows(run, shard, marker)]
    assert len(ids) == len(set(ids)) == ROWS
    assert all(0 < marker.facts["rows_before"] < marker.counts["rows"] for marker in shards.values())


def _shards(run: str) -> int:
    """How many shards of a run have answers."""
    with bucket() as store:
        return len(folders_present(store.at(f"{run}/run")))
