"""A follower tells a bad configuration from a passing fault, and waits for what passes."""

from typing import Any

import pytest

from spec.cluster.jobs import GaveUp, Patience, follow
from spec.errors import BadInput, PassingFault
from tests.unit.cluster.fake import FakeCluster

PATIENCE = Patience(missing=0, unreachable=0, pulling=0, pending=0)


def job(*conditions: str) -> dict[str, Any]:
    found = [{"type": kind, "status": "True", "message": f"it is {kind}"} for kind in conditions]
    return {"metadata": {"name": "train"}, "status": {"conditions": found}}


def worker(**state: Any) -> dict[str, Any]:
    return {"metadata": {"name": "train-worker-0"}, "status": {"containerStatuses": [{"state": state}]}}


def ended(code: int, message: str) -> dict[str, Any]:
    return worker(terminated={"exitCode": code, "reason": "Error", "message": message})


def test_a_job_that_succeeded():
    assert follow(FakeCluster(pytorchjob=[job("Succeeded")]), "train", patience=PATIENCE, poll=0) == "it is Succeeded"


def test_exit_code_2_of_a_rank_is_final_whatever_the_others_ended_with():
    pods = [ended(143, ""), ended(2, "error: no such target")]
    with pytest.raises(BadInput, match="no such target"):
        follow(FakeCluster(pytorchjob=[job("Failed")], pods=pods), "train", patience=PATIENCE, poll=0)


@pytest.mark.parametrize("pods", [[], [ended(137, "OOMKilled")], [ended(75, "a rank is gone")]])
def test_lost_pods_and_other_codes_may_pass(pods: list[dict[str, Any]]):
    with pytest.raises(PassingFault):
        follow(FakeCluster(pytorchjob=[job("Failed")], pods=pods), "train", patience=PATIENCE, poll=0)


def test_a_failed_and_succeeded_job_has_failed():
    with pytest.raises(PassingFault):
        follow(FakeCluster(pytorchjob=[job("Succeeded", "Failed")]), "train", patience=PATIENCE, poll=0)


def test_an_image_that_does_not_exist_is_final():
    pods = [worker(waiting={"reason": "ErrImageNeverPull", "message": "no such image"})]
    with pytest.raises(BadInput, match="no such image"):
        follow(FakeCluster(pytorchjob=[job()], pods=pods), "train", patience=PATIENCE, poll=0)


def test_a_job_that_is_gone_is_given_up_in_time():
    with pytest.raises(PassingFault, match="not there") as told:
        follow(FakeCluster(pytorchjob=[]), "train", patience=PATIENCE, poll=0)
    assert not isinstance(told.value, GaveUp)  # nothing is left of it: another attempt may begin


def test_no_other_job_is_started_beside_one_that_waits():
    unscheduled = {"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}
    waiting = {"metadata": {"name": "train-worker-0"}, "status": {"conditions": [unscheduled]}}
    with pytest.raises(GaveUp, match="0/1 nodes"):
        follow(FakeCluster(pytorchjob=[job()], pods=[waiting]), "train", patience=PATIENCE, poll=0)


def test_a_job_whose_pods_are_refused_says_where_to_look():
    with pytest.raises(GaveUp, match="no pods yet.*kubectl describe pytorchjob train"):
        follow(FakeCluster(pytorchjob=[job("Created")]), "train", patience=PATIENCE, poll=0)
