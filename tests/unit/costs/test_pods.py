"""Followers keep in the run how long pods were there, so that deleted ones count."""

from pathlib import Path
from typing import Any

import pytest

from spec.cluster.cleanup import end, sweep
from spec.cluster.jobs import Patience, follow
from spec.costs.pods import RUN, Sightings, of_a_pod, saw_server
from spec.costs.records import Record, end_forgotten, read_all, seconds_of, write
from spec.costs.sums import by_step
from spec.errors import PassingFault
from spec.storage import open_store
from tests.unit.cluster.fake import FakeCluster, made

ASKED = {"requests": {"cpu": "1500m", "nvidia.com/gpu": "8"}}
SPEC = {"containers": [{"resources": ASKED}, {}], "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100"}}
AT = seconds_of("2026-11-30T10:00:00Z")


def worker(name: str = "train-worker-0", ended: str = "", started: bool = True) -> dict[str, Any]:
    status: dict[str, Any] = {"startTime": "2026-11-30T10:00:00Z"} if started else {}
    state = {"terminated": {"exitCode": 0, "finishedAt": ended}} if ended else {"running": {}}
    return {"metadata": {"name": name}, "spec": SPEC, "status": status | {"containerStatuses": [{"state": state}]}}


def server(run: Any, name: str = "a-server", workflow: str = "a") -> dict[str, Any]:
    found = made(name, workflow)
    found["metadata"] |= {"annotations": {RUN: run.url}, "creationTimestamp": "2026-11-30T09:59:00Z"}
    return found | {"spec": {"template": {"spec": SPEC}}}


def test_a_pod_is_what_it_asked_for_from_its_start_to_its_end():
    record = of_a_pod(worker(ended="2026-11-30T10:01:40Z"), "train", AT + 500)
    assert record is not None and record.over and record.of_cluster
    assert (record.gpus, record.cpus, record.kind) == (8, 1.5, "NVIDIA-H100")
    assert (record.began, record.seen) == (AT, AT + 100)
    still = of_a_pod(worker(), "train", AT + 7)
    assert still is not None and not still.over and still.seen == AT + 7
    assert of_a_pod(worker(started=False), "train", AT) is None  # no node holds anything for it


def test_a_deleted_pod_counts_to_when_any_follower_last_saw_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = open_store(tmp_path)
    for passed in (10, 75):  # two followers of the same job, the first one killed
        monkeypatch.setattr("time.time", lambda passed=passed: AT + passed)
        Sightings(run, "train").saw([worker()])
    assert by_step(read_all(run))["train"].gpu_seconds == {"NVIDIA-H100": 75 * 8}


def test_a_follower_writes_now_and_then_and_once_more_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run, seen = open_store(tmp_path), []
    sightings = Sightings(run, "train")
    for passed, pod in ((1, worker()), (30, worker()), (62, worker()), (70, worker(ended="2026-11-30T10:01:08Z"))):
        monkeypatch.setattr("time.time", lambda passed=passed: AT + passed)
        sightings.saw([pod])
        seen.append(read_all(run)[0].seen - AT)
    assert seen == [1, 1, 62, 68]


def test_a_store_that_is_away_stops_no_follower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = open_store(tmp_path)
    sightings, write = Sightings(run, "train"), run.write

    def away(*_: object) -> None:
        raise PassingFault("away")

    monkeypatch.setattr(run, "write", away)
    sightings.saw([worker()])
    monkeypatch.setattr(run, "write", write)
    sightings.saw([worker()])
    assert len(read_all(run)) == 1


def test_a_follower_of_a_job_tells_of_all_its_pods(tmp_path: Path):
    run = open_store(tmp_path)
    pods = [worker(f"train-worker-{node}", ended="2026-11-30T10:01:00Z") for node in range(2)]
    job = {"metadata": {"name": "train"}, "status": {"conditions": [{"type": "Succeeded", "status": "True"}]}}
    cluster = FakeCluster(pytorchjob=[job], pods=pods)
    follow(cluster, "train", patience=Patience(), poll=0, saw=Sightings(run, "train").saw)  # type: ignore[arg-type]
    assert by_step(read_all(run))["train"].gpu_seconds == {"NVIDIA-H100": 2 * 60 * 8}


def test_a_server_counts_from_its_first_pod_to_when_it_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = open_store(tmp_path)
    monkeypatch.setattr("time.time", lambda: AT + 40)
    saw_server(server(run), [worker("a-server-x")])
    (ready,) = read_all(run)
    assert ready.lives_on and not ready.over and ready.began == AT
    monkeypatch.setattr("time.time", lambda: AT + 300)
    end(FakeCluster(deployment=[server(run)]), "a", ("deployment",), patience=1, poll=0)  # type: ignore[arg-type]
    (gone,) = read_all(run)
    assert gone.over and (gone.began, gone.seen) == (AT, AT + 300)
    assert by_step([gone])["serve"].gpu_seconds == {"NVIDIA-H100": 300 * 8}


def test_a_server_that_was_never_ready_counts_from_when_it_was_asked_for(tmp_path: Path, monkeypatch):
    run = open_store(tmp_path)
    monkeypatch.setattr("time.time", lambda: AT)
    sweep(FakeCluster(workflow=[], deployment=[server(run)]))  # type: ignore[arg-type]
    (found,) = read_all(run)
    assert found.over and found.seen - found.began == 60


def test_another_server_of_the_same_name_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = open_store(tmp_path)
    monkeypatch.setattr("time.time", lambda: AT + 10)
    saw_server(server(run), [worker()], over=True)
    later = server(run)
    later["metadata"]["creationTimestamp"] = "2026-11-30T12:00:00Z"
    monkeypatch.setattr("time.time", lambda: AT + 7200 + 10)
    saw_server(later, over=True)
    assert by_step(read_all(run))["serve"].gpu_seconds == {"NVIDIA-H100": 20 * 8}


def test_a_server_whose_end_nobody_saw_counts_to_the_last_of_the_run_and_no_longer(tmp_path: Path, monkeypatch):
    run = open_store(tmp_path)
    monkeypatch.setattr("time.time", lambda: AT + 40)
    saw_server(server(run), [worker("a-server-x")])  # ready; then its Workflow is deleted, and it goes along
    write(run, Record(step="filter", pod="a-filter", began=AT + 50, seen=AT + 100))
    assert by_step(read_all(run), AT + 7200)["serve"].gpu_seconds == {"NVIDIA-H100": 7200 * 8}
    end_forgotten(run)
    assert by_step(read_all(run), AT + 7200)["serve"].gpu_seconds == {"NVIDIA-H100": 100 * 8}
    assert [its.over for its in read_all(run) if its.step == "filter"] == [False]  # that one ends when it was last seen


def test_a_run_that_cannot_be_written_to_is_said_and_nothing_else(capsys):
    class Nowhere:
        url = "gopher://x"

    saw_server(server(Nowhere()), over=True)
    assert "deployment/a-server is not recorded" in capsys.readouterr().out
