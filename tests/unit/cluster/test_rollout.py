"""A published draft is served once old servers are gone and new ones ready; again restarts nothing."""

from typing import Any

import pytest

from spec.cluster.rollout import VERSION, check_served, named, roll_out
from spec.errors import BadInput, PassingFault
from tests.unit.cluster.fake import FakeCluster


def server(*, replicas: int = 1, updated: int = 1, available: int = 1, **annotations: str) -> dict[str, Any]:
    conditions = [{"type": "Available", "status": "True"}]
    counts = {"replicas": replicas, "updatedReplicas": updated, "availableReplicas": available}
    return {
        "metadata": {"name": "sglang", "generation": 2},
        "spec": {"replicas": 1, "template": {"metadata": {"annotations": annotations}}},
        "status": {"observedGeneration": 2, "conditions": conditions, **counts},
    }


def annotations(found: dict[str, Any]) -> dict[str, str]:
    return found["spec"]["template"]["metadata"]["annotations"]


def test_its_pods_are_named_after_the_version_and_what_else_they_are_stays():
    found = server(team="a")
    assert roll_out(FakeCluster(deployment=[found]), "sglang", "0123", patience=0) >= 0
    assert annotations(found) == {"team": "a", VERSION: "0123"}


@pytest.mark.parametrize(
    "counts", [{"replicas": 2}, {"updated": 0}, {"available": 0}], ids=["the old one lives", "none is new", "not ready"]
)
def test_it_is_waited_for(counts: dict[str, int]):
    with pytest.raises(PassingFault, match="not ready"):
        roll_out(FakeCluster(deployment=[server(**counts)]), "sglang", "0123", patience=0)


def test_pods_that_have_the_version_are_not_started_again():
    class ReadOnly(FakeCluster):
        def patch(self, kind: str, name: str, change: dict[str, Any]) -> dict[str, Any]:
            raise AssertionError("restarted")

    roll_out(ReadOnly(deployment=[server(**{VERSION: "0123"})]), "sglang", "0123", patience=0)


@pytest.mark.parametrize(("version", "kind"), [("0122", PassingFault), ("0123", BadInput)], ids=["old", "new"])
def test_an_old_server_that_crashes_does_not_judge_the_new_one(version: str, kind: type[Exception]):
    container = {"name": "server", "restartCount": 9, "lastState": {"terminated": {"exitCode": 1}}}
    pod = {"metadata": {"name": "s", "annotations": {VERSION: version}}, "status": {"containerStatuses": [container]}}
    with pytest.raises(kind, match="not ready" if kind is PassingFault else "server crashed 9 times"):
        roll_out(FakeCluster(deployment=[server(updated=0)], pods=[pod]), "sglang", "0123", patience=0)


class Serving(FakeCluster):
    namespace = "serving"


def test_a_deployment_that_is_not_there_is_final():
    with pytest.raises(BadInput, match="not in namespace serving"):
        roll_out(Serving(), "sglang", "0123", patience=0)


def test_before_anything_starts_a_deployment_that_is_not_there_is_refused():
    assert "there" in check_served(Serving(deployment=[server()]), "sglang")
    with pytest.raises(BadInput, match="deployment/sgland: not in namespace serving"):
        check_served(Serving(deployment=[server()]), "sgland")


def test_an_account_that_may_not_look_leaves_it_to_the_last_step():
    class Closed(Serving):
        def get(self, kind: str, name: str) -> dict[str, Any]:
            raise BadInput(f"{kind}/{name}: the API server refuses (Forbidden)")

    assert "may not look" in check_served(Closed(), "sglang")


@pytest.mark.parametrize(
    "serves",
    [
        *("sglang", "/sglang", "serving/", "a/b/c", "serving /sglang", "Serving/sglang", "serving/SG_lang", "../x"),
        *("a.b/sglang", "serving/-sglang", "serving/sglang\n", f"{'n' * 64}/sglang", f"serving/{'n' * 254}"),
    ],
)
def test_what_names_no_deployment_is_refused(serves: str):
    with pytest.raises(BadInput, match="NAMESPACE/DEPLOYMENT"):
        named(serves)


@pytest.mark.parametrize("name", ["sglang", "sglang-0.5", "n" * 253])
def test_a_namespace_is_a_label_and_a_deployment_a_subdomain(name: str):
    assert named(f"serving-2/{name}") == ("serving-2", name)
