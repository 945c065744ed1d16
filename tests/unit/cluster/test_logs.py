"""Logs of servers and trainers are in the run before their pods go; that they cannot be kept fails nothing."""

from pathlib import Path
from typing import Any

import pytest

from spec.cluster.cleanup import end, sweep
from spec.cluster.logs import keep
from spec.errors import PassingFault
from tests.unit.cluster.fake import FakeCluster, made


class Talking(FakeCluster):
    def log(self, pod: str, container: str, *, before_restart: bool = False, **options: Any) -> str:
        return f"{pod} {container} {'before' if before_restart else 'now'}\n"


def pod(name: str, container: str, restarts: int = 0) -> dict[str, Any]:
    status = {"containerStatuses": [{"name": container, "restartCount": restarts, "state": {}}]}
    return {"metadata": {"name": name}, "status": status}


def server(run: Path) -> dict[str, Any]:
    found = made("a-server", "a")
    found["metadata"] |= {"annotations": {"sgl-spec/run": str(run)}, "creationTimestamp": "2026-01-01T00:00:00Z"}
    return found | {"spec": {"template": {"spec": {}}}}


def test_of_a_pod_and_of_its_container_before_a_restart(tmp_path: Path):
    cluster = Talking(pods=[pod("worker-0", "pytorch"), pod("worker-1", "pytorch", restarts=2)])
    keep(cluster, str(tmp_path), "job=train", "pytorch")
    assert {path.name: path.read_text() for path in (tmp_path / "logs").iterdir()} == {
        "worker-0.log": "worker-0 pytorch now\n",
        "worker-1.log": "worker-1 pytorch now\n",
        "worker-1.before.log": "worker-1 pytorch before\n",
    }


@pytest.mark.parametrize("how", ["by its workflow", "by the sweep"])
def test_a_server_s_log_is_kept_before_it_is_deleted(tmp_path: Path, how: str):
    cluster = Talking(pods=[pod("a-server-0", "server")], deployment=[server(tmp_path)])
    if how == "by the sweep":
        assert sweep(cluster) == ["deployment/a-server"]
    else:
        end(cluster, "a", ("deployment",), patience=1, poll=0)
    assert (tmp_path / "logs/a-server-0.log").read_text() == "a-server-0 server now\n"


def test_a_log_that_cannot_be_kept_is_said_and_fails_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    class Away(FakeCluster):
        def log(self, pod: str, container: str, **options: Any) -> str:
            raise PassingFault("the API server cannot be reached")

    keep(Away(pods=[pod("worker-0", "pytorch")]), str(tmp_path), "job=train", "pytorch")
    assert "not kept: the API server cannot be reached" in capsys.readouterr().out
