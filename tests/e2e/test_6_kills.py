"""A run whose every step is killed once, and runs that end in their last steps; each ends as if nothing had been."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spec.conversations.shards import find_shards, read_rows
from spec.publishing.drafts import fetch
from spec.storage.markers import read_marker
from tests.e2e.cluster import (
    THERE,
    Workflow,
    argo,
    bucket,
    copy_run,
    get,
    kubectl,
    setting,
    submit,
    sweep,
    until,
    url,
)
from tests.e2e.conftest import GOOD, OTHER, OTHER_OPTIONS, UNTRAINED
from tests.e2e.harm import (
    cpus,
    delete,
    evict,
    free_cpu,
    pod_of_priority,
    priority_classes,
    store_gone,
    store_that_fills,
)

UNFINISHED = ("report", "published")  # a trained run without these is evaluated and published again
LOW, HIGHER = ("e2e-low", -10), ("e2e-higher", -5)  # priority classes; all else has 0


@pytest.fixture(scope="module")
def killed(good: Workflow, request: pytest.FixtureRequest) -> Iterator[Workflow]:
    """Its trainers and servers have a priority that others may be above."""
    good.wait(1800)
    with priority_classes(LOW, HIGHER), setting(gpu_priority_class=LOW[0]):
        yield request.getfixturevalue("other")


def test_the_server_s_pod_is_deleted_while_it_starts(killed: Workflow) -> None:
    selector = f"--selector=sgl-spec/server={killed.name}-server"
    pods = until("the server's pod", lambda: get("pods", selector)["items"], 300, of=killed)
    assert not any(found["ready"] for found in pods[0]["status"].get("containerStatuses", [])), "too late: it is ready"
    delete(pods[0]["metadata"]["name"])


def test_a_trainer_is_preempted(killed: Workflow) -> None:
    _kill_in_time(killed, "prepare", how=delete)
    trainer = cpus(get("configmap", "settings")["data"]["trainer-cpu"])
    first = f"--selector=training.kubeflow.org/job-name={killed.name}-train-1"
    until("both trainers run", lambda: _running(first) == 2, 900, of=killed)
    with pod_of_priority(HIGHER[0], cpu=free_cpu() + trainer / 2) as name:
        until("it has a trainer's place", lambda: get("pod", name, namespace="default")["spec"].get("nodeName"), 180)
    second = f"--selector=training.kubeflow.org/job-name={killed.name}-train-2"
    until("both train again", lambda: _running(second) == 2, 600, of=killed)


def test_the_store_is_gone_for_60_s_in_training(killed: Workflow) -> None:
    until("a checkpoint", killed.has_checkpoint, 900, of=killed)
    with store_gone():
        time.sleep(60)  # the next checkpoint falls due meanwhile
    assert killed.phase == "Running"


def test_the_api_server_is_restarted(killed: Workflow) -> None:
    restart = os.environ.get("E2E_RESTART_API_SERVER")
    if not restart:
        pytest.skip("E2E_RESTART_API_SERVER names no command that does it, see docs/kubernetes.md")
    subprocess.run(restart, shell=True, check=True, timeout=300)
    until("the API server answers", _api_server_answers, 300)
    assert killed.phase == "Running"


@pytest.mark.parametrize(
    ("steps", "how"),
    [(["extract"], delete), (["prove"], evict), (["evaluate"], delete), (["publish", "report"], delete)],
    ids=["extract deleted", "prove evicted", "evaluate deleted", "publish and report deleted"],
)
def test_a_step_s_pod_is_gone(killed: Workflow, steps: list[str], how: Callable[[str], object]) -> None:
    _kill_in_time(killed, *steps, how=how)


def test_it_ends_with_a_published_draft_and_nothing_lost_doubled_or_left(killed: Workflow, tmp_path: Path) -> None:
    assert killed.wait(1800) == "Succeeded", killed.message
    with bucket() as store:
        run = store.at(f"{killed.run}/run")
        ids = [row["id"] for shard, marker in find_shards(run).items() for row in read_rows(run, shard, marker)]
        report = read_marker(run, "report/report.json")
        fetch(url(killed.run, "drafts"), tmp_path / "draft", say=lambda line: None)
    assert len(ids) == len(set(ids)) == 80
    assert report is not None and report.facts["speculative"]["tokens_equal_baseline"]
    assert killed.made() == []


@pytest.fixture(scope="module")
def unfinished(good: Workflow) -> str:
    """A trained run that lacks its last steps, which the cases below end one after the other."""
    good.wait(1800)
    copy_run(GOOD, "unfinished", *UNFINISHED)
    return "unfinished"


@pytest.mark.parametrize("step", ["evaluate", "publish"])
def test_terminated_there_nothing_of_it_is_left(unfinished: str, step: str) -> None:
    terminated = submit(unfinished)
    terminated.kill(step, lambda pod: argo("terminate", terminated.name))
    assert terminated.wait(300) == "Failed"
    sweep()
    until("nothing of it is left", lambda: not terminated.made() and not terminated.pods(), 180)


@pytest.fixture(scope="module")
def published(unfinished: str) -> Workflow:
    """The same run, published while the store was away."""
    workflow = submit(unfinished)
    until("publish…) begins", lambda: workflow.pods("publish(", THERE), 900, of=workflow)
    with store_gone():
        time.sleep(60)
    workflow.wait(900)
    return workflow


def test_submitted_again_it_publishes_though_the_store_is_gone_for_60_s(published: Workflow, tmp_path: Path) -> None:
    assert published.phase == "Succeeded", published.message
    assert published.made() == []
    assert published.seconds()["publish"] > 30, "it had published before the store was gone"
    with bucket():
        fetch(url(published.run, "drafts"), tmp_path / "draft", say=lambda line: None)


def test_a_finished_run_is_submitted_again_after_its_workflow_and_artifacts_are_gone(published: Workflow) -> None:
    kubectl("delete", "workflow", published.name, "--timeout=120s")
    with bucket("artifacts") as store:  # what a lifecycle rule of the bucket does
        for entry in store.list(published.name):
            store.delete(entry.key)
    again = submit(published.run)
    assert again.wait(900) == "Succeeded", again.message
    assert not again.ran() & {"serve", "train", "prove"}, again.ran()


def test_two_runs_of_one_destination_publish_at_once(good: Workflow, killed: Workflow, tmp_path: Path) -> None:
    """Two drafts: both versions are whole, and `latest` is one of them. Two pairs of servers have no room here."""
    killed.wait(1800)
    for source in (GOOD, OTHER):
        copy_run(source, f"both-{source}", "published")
    both = [
        submit("both-" + GOOD, destination=url("both", "drafts")),
        submit("both-" + OTHER, destination=url("both", "drafts"), train_options=OTHER_OPTIONS),
    ]
    assert [workflow.wait(900) for workflow in both] == ["Succeeded"] * 2, [workflow.message for workflow in both]
    with bucket() as store:
        drafts = store.at("both/drafts")
        versions = {entry.key.split("/")[1] for entry in drafts.list("versions")}
        for version in versions:
            fetch(url("both", "drafts"), tmp_path / version, version=version, say=lambda line: None)
        assert len(versions) == 2 and json.loads(drafts.read("latest"))["version"] in versions


@pytest.fixture(scope="module")
def starved(good: Workflow) -> dict[str, Workflow]:
    """Two runs beside each other: one has its answers and trains, the other wants its first server."""
    good.wait(1800)
    copy_run(GOOD, "trainer-memory", *UNTRAINED)
    with setting(trainer_memory="200Mi", server_memory="300Mi"):
        ended = {"trainer": submit("trainer-memory", attempts="1"), "server": submit("server-memory")}
        for workflow in ended.values():
            workflow.wait(900)
    return ended


@pytest.mark.parametrize("part", ["trainer", "server"])
def test_past_its_memory_limit_it_ends_with_its_reason(starved: dict[str, Workflow], part: str) -> None:
    workflow = starved[part]
    assert workflow.phase == "Failed"
    assert "OOMKilled" in workflow.message, workflow.message
    assert workflow.made() == []


def test_the_store_is_full_in_training_and_has_room_again(good: Workflow) -> None:
    """Once it goes on it is stopped: what follows is as in any run."""
    good.wait(1800)
    copy_run(GOOD, "full", *UNTRAINED)
    with store_that_fills() as full:
        first = submit("full", attempts="1")
        until("a checkpoint", first.has_checkpoint, 900, of=first)
        with full():
            assert first.wait(900) == "Failed"
        assert "XMinioStorageFull" in first.message, first.message
        sweep()
        assert first.made() == []
        again = submit("full")
        # A step that has not said anything yet has an empty log, which Argo's executor sends to this store for minutes.
        until("training goes on", lambda: "going on from step-" in again.said("follow("), 600, of=again)
        argo("stop", again.name)
        assert again.wait(300) == "Failed"
        sweep()
        assert again.made() == []


def _kill_in_time(workflow: Workflow, *steps: str, how: Callable[[str], object]) -> None:
    """Each step's pod as soon as it is there; another one takes its place.

    Steps that run beside each other are all killed before their next pods are waited for. A pod that never ran is made
    again by Argo as the same attempt, one that did as the next.
    """
    killed = {step: workflow.kill(f"{step}(", how) for step in steps}
    for step, before in killed.items():
        until(f"another pod of {step}", lambda step=step, before=before: workflow.ever(f"{step}(") - before, 180)


def _running(selector: str) -> int:
    return sum(pod["status"]["phase"] == "Running" for pod in get("pods", selector)["items"])


def _api_server_answers() -> bool:
    return not subprocess.run(["kubectl", "get", "--raw", "/readyz"], capture_output=True, check=False).returncode
