"""What becomes of logs and artifacts, and what must go on without a store."""

import copy
from collections.abc import Callable

import pytest

from tests.manifests.judge import judge, world_of
from tests.manifests.objects import ROOT, Json, World

LOCAL = ROOT / "manifests/overlays/local"
BLOCKED = {("preflight", "preflight"), ("clean-up", "stop-servers"), ("clean-up", "conclude")}


def changed(name: str, change: Callable[[Json], object]) -> World:
    world = world_of(LOCAL)
    broken = copy.deepcopy(world.named("WorkflowTemplate", name))
    assert broken
    change(broken["spec"])
    return World(
        [broken if item is world.named("WorkflowTemplate", name) else item for item in world.objects], world.secrets
    )


def test_every_step_s_log_is_archived_but_of_those_that_must_run_without_a_store() -> None:
    """With a log to archive Argo mounts the store's Secret, and the pod waits for one that is missing for ever."""
    without = set()
    for owner, template in world_of(LOCAL).templates():
        if owner["kind"] == "WorkflowTemplate":
            assert owner["spec"]["archiveLogs"] is True
            if (template.get("archiveLocation") or {}).get("archiveLogs") is False and "container" in template:
                without.add((owner["metadata"]["name"], template["name"]))
    assert without == BLOCKED


@pytest.mark.parametrize(
    ("name", "change", "rule"),
    [
        ("train", lambda spec: spec["templates"][1].pop("archiveLocation"), "security-context"),
        ("report", lambda spec: spec["artifactGC"].pop("forceFinalizerRemoval"), "deadline"),
        ("report", lambda spec: spec["artifactGC"].update(podSpecPatch="containers: []"), "deadline"),
        ("report", lambda spec: spec["artifactGC"].update(serviceAccountName="nobody"), "service-account"),
        ("report", lambda spec: spec["artifactGC"].pop("podMetadata"), "network"),
    ],
    ids=["a log of a resource", "a finalizer that stays", "no deadline", "no such account", "no way out"],
)
def test_is_refused(name: str, change: Callable[[Json], object], rule: str) -> None:
    assert rule in {finding.rule for finding in judge(changed(name, change))}


def test_a_semaphore_s_config_map_follows_a_prefix() -> None:
    world = world_of(ROOT / "tests/manifests/renamed")
    pipeline = world.named("WorkflowTemplate", "team-a-pipeline")
    assert pipeline
    reference = pipeline["spec"]["synchronization"]["semaphores"][0]["configMapKeyRef"]
    assert world.data(reference["name"], reference["key"]) == "2"
    assert pipeline["spec"]["artifactGC"]["serviceAccountName"] == "team-a-artifact-collector"
