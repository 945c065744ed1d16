"""A step that no node takes ends in its time, says what lacks, and is not tried again; others are left alone."""

from typing import Any

import pytest

from spec.cluster.conclusion import conclude
from spec.cluster.pending import end_pending, failed
from spec.errors import BadInput
from tests.unit.cluster.fake import FakeCluster

CREATED = 1_000_000.0
LACKS = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."


def pod(phase: str = "Pending", *, queue: str | None = None, started: str = "", **status: Any) -> dict[str, Any]:
    labels = {"workflows.argoproj.io/workflow": "w"} | ({} if queue is None else {"kueue.x-k8s.io/queue-name": queue})
    there = {"startTime": started} if started else {}
    return {
        "metadata": {"name": "w-prove-1", "labels": labels, "creationTimestamp": "1970-01-12T13:46:40Z"},
        "status": {"phase": phase, **there, **status},
    }


def unscheduled(**more: Any) -> dict[str, Any]:
    return pod(conditions=[{"type": "PodScheduled", "status": "False", "message": LACKS}], **more)


def test_a_pod_that_no_node_takes_is_ended_with_the_scheduler_s_words():
    cluster = FakeCluster(pods=[unscheduled()])
    (told,) = end_pending(cluster, seconds=600, now=CREATED + 601)
    assert LACKS in told and "step-pending-seconds" in told
    assert cluster.statuses["w-prove-1"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 2


def test_one_whose_image_does_not_come_counts_from_when_it_has_a_node():
    waiting = {"name": "main", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
    late = pod(started="1970-01-12T14:46:40Z", containerStatuses=[waiting])  # an hour after it was made
    assert end_pending(FakeCluster(pods=[late]), seconds=600, now=CREATED + 3700) == []
    (told,) = end_pending(FakeCluster(pods=[late]), seconds=600, now=CREATED + 4300)
    assert "no such image" in told


@pytest.mark.parametrize(
    "other",
    [pod("Running"), pod("Failed"), unscheduled(queue="gpus"), pod()],
    ids=["runs", "has ended", "a queue holds it back", "is within its time"],
)
def test_any_other_pod_is_left_alone(other: dict[str, Any]):
    cluster = FakeCluster(pods=[other])
    seconds = 600 if other["status"]["phase"] != "Pending" or "conditions" in other["status"] else 6000
    assert end_pending(cluster, seconds=seconds, now=CREATED + 5000) == [] and not cluster.statuses


def test_one_whose_workflow_works_is_left_alone_and_counts_from_the_last_end():
    running = FakeCluster(pods=[unscheduled(), pod("Running")])
    assert end_pending(running, seconds=600, now=CREATED + 5000) == [] and not running.statuses
    end = {"name": "main", "state": {"terminated": {"exitCode": 0, "finishedAt": "1970-01-12T14:46:40Z"}}}
    worked = FakeCluster(pods=[unscheduled(), pod("Succeeded", containerStatuses=[end])])
    assert end_pending(worked, seconds=600, now=CREATED + 3600 + 599) == []
    assert end_pending(worked, seconds=600, now=CREATED + 3600 + 601)


def test_a_pod_of_a_cluster_without_queues_is_ended():
    assert end_pending(FakeCluster(pods=[unscheduled(queue="")]), seconds=600, now=CREATED + 601)


def test_the_workflow_ends_with_these_words():
    """As Argo tells of such a pod: `main: REASON (exit code N): MESSAGE`."""
    ended = failed(f"w-prove-1: {LACKS}")["containerStatuses"][0]["state"]["terminated"]
    message = f"main: {ended['reason']} (exit code {ended['exitCode']}): {ended['message']}"
    nodes = {
        "p": {"id": "p", "name": "w[0].pipeline", "displayName": "pipeline", "type": "DAG", "phase": "Failed"},
        "n": {"id": "n", "name": "w[0].pipeline.prove", "displayName": "prove", "type": "Pod", "phase": "Failed",
              "boundaryID": "p", "message": message},
    }  # fmt: skip
    with pytest.raises(BadInput, match="prove: w-prove-1: 0/1 nodes are available"):
        conclude({"metadata": {"name": "w"}, "status": {"nodes": nodes}})
