"""One set of templates for two versions of Argo: what only one of them knows is an error that names the version."""

import copy

import pytest

from tests.manifests.objects import ROOT, Json, load
from tests.manifests.schemas import CRDS, findings, of_argo

TINY = ROOT / "tests/e2e/tiny.yaml"
ONLY_3 = {
    "mutex": {"name": "run"},
    "semaphore": {"configMapKeyRef": {"name": "gpus", "key": "pool"}},
}


def template(name: str) -> Json:
    return copy.deepcopy(load((ROOT / "workflows" / f"{name}.yaml").read_text())[0])


def test_there_is_a_schema_of_each_version() -> None:
    assert [version.split(".")[:2] for version in CRDS] == [["v3", "7"], ["v4", "0"]]


@pytest.mark.parametrize("name", ONLY_3)
def test_what_4_0_has_no_more_is_refused_by_it_alone(name: str) -> None:
    pipeline = template("pipeline")
    pipeline["spec"]["synchronization"] = {name: ONLY_3[name]}
    assert {version for version, _, _ in of_argo(pipeline)} == {"v4.0.5"}
    assert any("Argo v4.0.5: spec.synchronization" in message for _, message in findings(pipeline))


@pytest.mark.parametrize(
    ("pointer", "value"),
    [("retryStrategy", {"limits": 5}), ("podSpecPatch", {"containers": []}), ("timeout", 600)],
    ids=["a field that is none", "an object for text", "a number for text"],
)
def test_both_refuse_what_neither_knows(pointer: str, value: object) -> None:
    broken = template("filter")
    broken["spec"]["templates"][0][pointer] = value
    assert {version for version, _, _ in of_argo(broken)} == set(CRDS)


def test_both_know_what_the_end_to_end_tests_submit() -> None:
    assert [finding for item in load(TINY.read_text()) for finding in findings(item)] == []
