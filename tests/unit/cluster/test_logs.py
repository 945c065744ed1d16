"""Logs of servers and trainers are in the run before their pods go; that they cannot be kept fails nothing."""

from pathlib import Path
from typing import Any

import pytest

from spec.cluster import logs
from spec.cluster.cleanup import end, sweep
from spec.cluster.jobs import Patience, follow
from spec.cluster.logs import Keeper
from spec.errors import PassingFault, Stopped
from tests.unit.cluster.fake import FakeCluster, made


class Talking(FakeCluster):
    """Pods that say one more thing until they end, which is heard by who listens to their end."""

    def log(self, pod: str, container: str, *, before_restart: bool = False, to_its_end: float = 0, **_: Any) -> str:
        return f"{pod} {container} {'before' if before_restart else 'now'}\n" + ("last words\n" if to_its_end else "")


def pod(
    name: str, container: str = "pytorch", restarts: int = 0, phase: str = "Running", **more: str
) -> dict[str, Any]:
    status = {"containerStatuses": [{"name": container, "restartCount": restarts, "state": {}}], "phase": phase}
    return {"metadata": {"name": name, "uid": f"uid-of-{name}", **more}, "status": status}


def kept(run: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (run / "logs").iterdir()}


def item(name: str, run: Path) -> dict[str, Any]:
    found = made(name, "a")
    found["metadata"] |= {"annotations": {"sgl-spec/run": str(run)}, "creationTimestamp": "2026-01-01T00:00:00Z"}
    return found | {"spec": {"template": {"spec": {}}}}


def test_of_a_pod_and_of_its_container_before_a_restart(tmp_path: Path):
    cluster = Talking(pods=[pod("worker-0"), pod("worker-1", restarts=2)])
    Keeper(cluster, str(tmp_path), "job=train", "pytorch").keep()
    assert kept(tmp_path) == {
        "worker-0.log": "worker-0 pytorch now\n",
        "worker-1.log": "worker-1 pytorch now\n",
        "worker-1.before.log": "worker-1 pytorch before\n",
    }


def test_what_runs_at_the_end_is_heard_to_its_last_words_and_what_has_ended_is_read_once(tmp_path: Path):
    cluster = Talking(pods=[pod("worker-0", phase="Failed"), pod("worker-1")])
    keeper = Keeper(cluster, str(tmp_path), "job=train", "pytorch")
    keeper.end()
    keeper.wait()
    assert kept(tmp_path) == {
        "worker-0.log": "worker-0 pytorch now\n",
        "worker-1.log": "worker-1 pytorch now\nlast words\n",
    }
    keeper.keep()  # which was not listened to the end
    assert kept(tmp_path)["worker-1.log"].endswith("last words\n")


def test_a_deleted_pod_s_last_words_stay_beside_those_of_another_by_its_name(tmp_path: Path):
    cluster = Talking(pods=[pod("worker-0")])
    keeper = Keeper(cluster, str(tmp_path), "job=train", "pytorch")
    keeper.saw([pod("worker-0", deletionTimestamp="now")])
    keeper.wait()
    other = pod("worker-0")
    other["metadata"]["uid"] = "another"
    cluster._pods = [other]
    keeper.end()
    keeper.wait()
    assert set(kept(tmp_path)) == {"worker-0.uid-of-w.log", "worker-0.log"}


def test_what_runs_is_copied_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cluster = Talking(pods=[pod("worker-0")])
    keeper = Keeper(cluster, str(tmp_path), "job=train", "pytorch")
    keeper.saw(cluster._pods)
    assert not (tmp_path / "logs").exists()
    monkeypatch.setattr(logs, "EVERY", 0.0)
    keeper.saw(cluster._pods)
    assert set(kept(tmp_path)) == {"worker-0.log"}


def test_a_job_s_pods_are_kept_before_the_operator_may_end_them():
    job = {"metadata": {"name": "train"}, "status": {"conditions": [{"type": "Succeeded", "status": "True"}]}}
    policies = []
    cluster = FakeCluster(pytorchjob=[job])
    follow(cluster, "train", patience=Patience(), poll=0, over=lambda: policies.append(job.get("spec")))
    assert policies == [None] and job["spec"] == {"runPolicy": {"cleanPodPolicy": "Running"}}


def test_an_operator_that_is_away_is_told_later():
    class Away(FakeCluster):
        calls = 0

        def patch(self, kind: str, name: str, change: dict[str, Any]) -> dict[str, Any]:
            self.calls += 1
            if self.calls == 1:
                raise PassingFault("the API server answers 500: its webhook cannot be reached")
            return super().patch(kind, name, change)

    job = {"metadata": {"name": "train"}, "status": {"conditions": [{"type": "Failed", "status": "True"}]}}
    with pytest.raises(PassingFault, match="pytorchjob/train"):
        follow(Away(pytorchjob=[job]), "train", patience=Patience(), poll=0)
    assert job["spec"]


@pytest.mark.parametrize("stopped", [False, True], ids=["failed", "its follower stopped"])
def test_the_follower_keeps_every_rank_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: bool):
    from tools import watch_job

    class Told(Talking):
        def get(self, kind: str, name: str) -> dict[str, Any]:
            if stopped:
                raise Stopped("told to stop watching")
            return super().get(kind, name)

    failed = [{"type": "Failed", "status": "True", "message": "one replica failed"}]
    job = {"metadata": {"name": "train"}, "status": {"conditions": failed}}
    cluster = Told(pods=[pod("train-worker-0"), pod("train-worker-1", phase="Failed")], pytorchjob=[job])
    monkeypatch.setattr(watch_job, "Cluster", lambda namespace: cluster)
    words = {"job": "train", "run": str(tmp_path), "attempt": 1, "attempts": 2, "outcome": tmp_path / "outcome"}
    if stopped:
        with pytest.raises(Stopped):
            watch_job.main(**words)
    else:
        watch_job.main(**words)
        assert (tmp_path / "outcome").read_text() == "retry"
    last = "" if stopped else "last words\n"
    assert kept(tmp_path) == {
        "train-worker-0.log": f"train-worker-0 pytorch now\n{last}",
        "train-worker-1.log": "train-worker-1 pytorch now\n",
    }


@pytest.mark.parametrize("kind", ["deployment", "pytorchjob"])
@pytest.mark.parametrize("how", ["by its workflow", "by the sweep"])
def test_what_it_says_is_kept_before_it_is_deleted(tmp_path: Path, kind: str, how: str):
    cluster = Talking(pods=[pod("a-pod")], **{kind: [item("a-thing", tmp_path)]})
    if how == "by the sweep":
        assert sweep(cluster) == [f"{kind}/a-thing"]
    else:
        end(cluster, "a", (kind,), patience=1, poll=0)
        assert kept(tmp_path)["a-pod.log"].endswith("last words\n")
    assert kept(tmp_path)["a-pod.log"].startswith(f"a-pod {'server' if kind == 'deployment' else 'pytorch'} now\n")


def test_a_log_that_cannot_be_kept_is_said_fails_nothing_and_costs_no_other(tmp_path: Path, capsys: Any):
    class Lost(Talking):
        def log(self, pod: str, container: str, **options: Any) -> str:
            if pod == "worker-0":
                raise PassingFault("its node cannot be reached")
            return super().log(pod, container, **options)

    Keeper(Lost(pods=[pod("worker-0"), pod("worker-1")]), str(tmp_path), "job=train", "pytorch").keep()
    assert "log of worker-0 is not kept: its node cannot be reached" in capsys.readouterr().out
    assert set(kept(tmp_path)) == {"worker-1.log"}
