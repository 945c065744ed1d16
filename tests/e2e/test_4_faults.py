"""One run through one fault after another, each in the middle of a step; it ends as if nothing had been."""

import time
from collections.abc import Callable

import pytest

from spec.conversations.shards import find_shards, folders_present, read_rows
from spec.storage import Store
from spec.storage.markers import read_marker
from tests.e2e.cluster import Workflow, bucket, get, kubectl, submit, until
from tests.e2e.harm import store_gone

ROWS = 600


@pytest.fixture(scope="module")
def workflow() -> Workflow:
    options = "draft_vocab_size=128 epochs=3 optimizer.lr=3.0e-3 lr_scheduler.num_warmup_steps=5 save_every=20"
    # One request at a time for each shard: on the fastest machine too, filtering outlasts the faults in its middle.
    return submit("faults", parallel="1", filter_options=f"--keep-truncated --limit {ROWS}", train_options=options)


def in_store(workflow: Workflow, look: Callable[[Store], object]) -> Callable[[], object]:
    def from_here() -> object:
        with bucket() as store:
            return look(store.at(f"{workflow.run}/run"))

    return from_here


def test_a_filter_pod_is_deleted(workflow: Workflow) -> None:
    both = in_store(workflow, lambda run: len(folders_present(run)) == 2)
    until("both shards have answers", both, 900, of=workflow)
    other = workflow.pods("filter(1:")
    workflow.replace_pod("filter(0:")
    assert workflow.pods("filter(1:").keys() <= other.keys(), "the other shard was disturbed"


def test_the_server_is_killed(workflow: Workflow) -> None:
    selector = f"--selector=sgl-spec/server={workflow.name}-server"
    before = {pod["metadata"]["uid"] for pod in get("pods", selector)["items"]}
    assert before and workflow.pods("filter("), "the filter is over already: ROWS is too few"
    kubectl("delete", "pod", selector, "--now")
    until("the server is back", lambda: ready(selector, before), 600, of=workflow)
    assert workflow.pods("filter("), "the clients waited for it"


def test_the_controller_is_restarted(workflow: Workflow) -> None:
    kubectl("rollout", "restart", "deployment/workflow-controller", namespace="argo")
    kubectl("rollout", "status", "deployment/workflow-controller", "--timeout=240s", namespace="argo")
    assert workflow.phase == "Running"


def test_the_object_store_refuses_for_30_s(workflow: Workflow) -> None:
    with store_gone():
        for pod in workflow.pods("filter(").values():
            kubectl("delete", "pod", "--now", pod)  # the next one starts without it
        time.sleep(30)
    assert workflow.phase == "Running"


def test_a_trainer_is_deleted(workflow: Workflow) -> None:
    until("a checkpoint", workflow.has_checkpoint, 1800, of=workflow)
    kubectl("delete", "pod", "--now", f"{workflow.name}-train-1-worker-1")
    until("the next attempt", lambda: f"{workflow.name}-train-2" in jobs(workflow), 300, of=workflow)


def test_the_follower_is_deleted(workflow: Workflow) -> None:
    workflow.replace_pod("again[1].follow")
    assert jobs(workflow) == [f"{workflow.name}-train-1", f"{workflow.name}-train-2"]


def test_it_ends_with_a_published_draft(workflow: Workflow) -> None:
    assert workflow.wait(1800) == "Succeeded", workflow.message
    with bucket() as store:
        report = read_marker(store, f"{workflow.run}/run/report/report.json")
        assert store.exists(f"{workflow.run}/drafts/latest"), "nothing is published"
    assert report is not None and report.facts["speculative"]["tokens_equal_baseline"]
    assert workflow.made() == []


def test_no_row_is_lost_or_doubled(workflow: Workflow) -> None:
    with bucket() as store:
        run = store.at(f"{workflow.run}/run")
        ids = [row["id"] for shard, marker in find_shards(run).items() for row in read_rows(run, shard, marker)]
    assert len(ids) == len(set(ids)) == ROWS


def ready(selector: str, before: set[str]) -> bool:
    return any(
        pod["metadata"]["uid"] not in before
        and all(found["ready"] for found in pod["status"].get("containerStatuses", [{"ready": False}]))
        for pod in get("pods", selector)["items"]
    )


def jobs(workflow: Workflow) -> list[str]:
    found = get("pytorchjobs", f"--selector=sgl-spec/workflow={workflow.name}")["items"]
    return sorted(job["metadata"]["name"] for job in found)
