"""Of a workflow nothing is left but what is another's."""

import pytest

from spec.cluster.cleanup import end, sweep
from spec.errors import PassingFault
from tests.unit.cluster.fake import FakeCluster, made


def test_a_workflow_s_servers_and_jobs_end_and_no_others():
    cluster = FakeCluster(
        deployment=[made("a-server", "a"), made("b-server", "b")], pytorchjob=[made("a-train-1", "a")]
    )
    ended = end(cluster, "a", ("deployment", "pytorchjob"), patience=1, poll=0)
    assert ended == ["deployment/a-server", "pytorchjob/a-train-1"] == cluster.deleted


def test_what_does_not_go_is_named():
    stuck = made("a-server", "a")
    stuck["metadata"]["deletionTimestamp"] = "now"
    with pytest.raises(PassingFault, match="deployment/a-server: still there"):
        end(FakeCluster(deployment=[stuck]), "a", ("deployment",), patience=0, poll=0)


def test_an_api_server_that_is_away_for_a_moment_is_waited_for():
    class Away(FakeCluster):
        calls = 0

        def find(self, kind: str, selector: str) -> list[dict]:
            self.calls += 1
            if self.calls == 1:
                raise PassingFault("the API server cannot be reached")
            return super().find(kind, selector)

    cluster = Away(deployment=[made("a-server", "a")])
    assert end(cluster, "a", ("deployment",), patience=1, poll=0) == ["deployment/a-server"]
    with pytest.raises(PassingFault, match="cannot be reached"):
        end(Away(), "a", ("deployment",), patience=0, poll=0)


def test_the_sweep_takes_what_workflows_left_that_are_over_or_gone():
    running = {"metadata": {"name": "running"}, "status": {"phase": "Running"}}
    over = {"metadata": {"name": "over"}, "status": {"phase": "Failed"}}
    deleted = {"metadata": {"name": "deleted", "deletionTimestamp": "now"}, "status": {"phase": "Running"}}
    servers = [made(f"{name}-server", name) for name in ("running", "over", "gone", "deleted")]
    cluster = FakeCluster(workflow=[running, over, deleted], deployment=servers)
    assert sweep(cluster) == ["deployment/over-server", "deployment/gone-server", "deployment/deleted-server"]
