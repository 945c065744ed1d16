"""A server that crashes is told from one that waits for what passes."""

from typing import Any

import pytest

from spec.cluster.servers import wait_until_ready
from spec.errors import BadInput, PassingFault
from tests.unit.cluster.fake import FakeCluster


def deployment(*conditions: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"name": "server", "generation": 1}, "status": {"conditions": list(conditions)}}


def crashed(code: int) -> list[dict[str, Any]]:
    last = {"terminated": {"exitCode": code, "reason": "Error"}}
    container = {"name": "fetch-draft", "restartCount": 3, "state": {"waiting": {}}, "lastState": last}
    return [{"metadata": {"name": "server-x"}, "status": {"initContainerStatuses": [container]}}]


def wait(conditions: list[dict[str, Any]], pods: list[dict[str, Any]]) -> float:
    return wait_until_ready(FakeCluster(deployment=[deployment(*conditions)], pods=pods), "server", patience=0)


def test_a_server_that_keeps_crashing_is_final():
    with pytest.raises(BadInput, match="fetch-draft crashed 3 times"):
        wait([], crashed(1))


def test_crashes_before_it_came_up_after_all_count_for_nothing():
    pods = crashed(1)
    pods[0]["status"]["initContainerStatuses"][0]["ready"] = True  # as of one that ended well
    with pytest.raises(PassingFault, match="not ready"):
        wait([], pods)


def test_one_past_its_memory_limit_has_no_words_so_the_kernel_s_are_told():
    container = {
        "name": "server",
        "restartCount": 3,
        "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
    }
    pod = {"metadata": {"name": "server-x"}, "status": {"containerStatuses": [container]}}
    with pytest.raises(BadInput, match="OOMKilled, past its memory limit; raise server-memory"):
        wait([], [pod])


def test_a_store_that_is_away_is_waited_for():
    with pytest.raises(PassingFault, match="not ready"):
        wait([], crashed(75))


def test_pods_that_are_refused_are_told_in_the_cluster_s_words():
    refused = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: gpus"}
    with pytest.raises(PassingFault, match="exceeded quota: gpus"):
        wait([refused], [])


def test_a_ready_server_is_ready():
    available = {"type": "Available", "status": "True"}
    found = deployment(available)
    found["status"]["observedGeneration"] = 1
    assert wait_until_ready(FakeCluster(deployment=[found]), "server", patience=0) >= 0
