"""A deleted workflow goes, whatever Argo's finalizer for artifacts waits for; nothing else is taken from it."""

from datetime import UTC, datetime
from typing import Any

import pytest

from spec.cluster import deletion
from spec.cluster.deletion import FINALIZER, release
from spec.errors import PassingFault
from tests.unit.cluster.fake import FakeCluster

DELETED = 1_000_000.0


def workflow(name: str = "a", finalizers: tuple[str, ...] = (FINALIZER,), deleted: bool = True) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "finalizers": list(finalizers), "resourceVersion": "7"}
    if deleted:
        metadata["deletionTimestamp"] = datetime.fromtimestamp(DELETED, UTC).isoformat()
    return {"metadata": metadata}


def test_ten_minutes_after_it_was_deleted_and_no_other_s_finalizer():
    held = workflow(finalizers=("foregroundDeletion", FINALIZER))
    cluster = FakeCluster(workflow=[held])
    assert release(cluster, now=DELETED + 599) == []
    assert release(cluster, now=DELETED + 601) == ["workflow/a"]
    assert held["metadata"]["finalizers"] == ["foregroundDeletion"]
    assert release(cluster, now=DELETED + 720) == []  # it has none of Argo's any more


@pytest.mark.parametrize("other", [workflow(deleted=False), workflow(finalizers=()), workflow(finalizers=("theirs",))])
def test_any_other_is_left_alone(other: dict[str, Any]):
    class Untouched(FakeCluster):
        def patch(self, *_: Any) -> Any:
            raise AssertionError("it was changed")

    assert release(Untouched(workflow=[other]), now=DELETED + 9000) == []


def test_one_that_is_gone_or_has_changed_stops_no_other(capsys: pytest.CaptureFixture[str]):
    class Moving(FakeCluster):
        def patch(self, kind: str, name: str, change: dict[str, Any]) -> dict[str, Any]:
            assert change["metadata"]["resourceVersion"] == "7"
            if name == "gone":
                raise FileNotFoundError(name)
            if name == "changed":
                raise PassingFault("the API server answers 409 Conflict")
            return super().patch(kind, name, change)

    cluster = Moving(workflow=[workflow("gone"), workflow("changed"), workflow("a")])
    assert release(cluster, now=DELETED + 601) == ["workflow/a"]
    assert "workflow/changed: its finalizer stays for now: the API server answers 409" in capsys.readouterr().out


def test_the_sweep_lets_go(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    from tools import clean_up

    cluster = FakeCluster(workflow=[workflow()])
    monkeypatch.setattr(clean_up, "Cluster", lambda namespace: cluster)
    clean_up.main(sweep_up=True)
    assert "let go: workflow/a" in capsys.readouterr().out
    assert deletion.PATIENCE > 300  # what the pod that deletes artifacts has
