"""What the API server is asked, by the real client over a real connection."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from kubernetes.config import kube_config

from spec.cluster.api import Cluster
from spec.errors import BadInput

ASKED: list[tuple[str, str, str, Any]] = []  # method, path, media type, body


class Api(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        ASKED.append((self.command, self.path, self.headers["Accept"], None))
        if self.path.endswith("/workflows"):
            self._answer(b'{"items": [{"metadata": {"name": "a"}}]}', "application/json")
        elif "forbidden" in self.path:
            self._answer(b"{}", "application/json", 403)
        elif "nobody" in self.path:
            self._answer(b"not found", "text/plain", 404)
        elif "waiting" in self.path:
            self._answer(b"container is waiting to start", "text/plain", 400)
        else:
            self._answer(b"2026-01-01T00:00:00Z a line \xff\n", "text/plain")

    def do_PATCH(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        ASKED.append((self.command, self.path, self.headers["Content-Type"], json.loads(body)))
        self._answer(body, "application/json")

    def _answer(self, body: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    Thread(target=server.serve_forever, daemon=True).start()
    where = {"cluster": {"server": f"http://127.0.0.1:{server.server_port}"}, "name": "here"}
    context = {"context": {"cluster": "here", "user": "me"}, "name": "here"}
    users = [{"name": "me", "user": {}}]
    told = {"clusters": [where], "contexts": [context], "users": users, "current-context": "here"}
    (tmp_path / "config").write_text(json.dumps(told))
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    ASKED.clear()
    yield Cluster("ours")
    server.shutdown()


def test_a_kind_of_a_crd_takes_a_merge_and_no_strategic_one(cluster: Cluster):
    change = {"spec": {"runPolicy": {"cleanPodPolicy": "Running"}}}
    assert cluster.patch("pytorchjob", "train", change) == change
    (asked,) = ASKED
    path = "/apis/kubeflow.org/v1/namespaces/ours/pytorchjobs/train"
    assert asked == ("PATCH", path, "application/merge-patch+json", change)


@pytest.mark.parametrize("seconds", [0.0, 5.0])
def test_a_log_until_now_or_to_its_end(cluster: Cluster, seconds: float):
    assert cluster.log("train-worker-0", "pytorch", to_its_end=seconds) == "2026-01-01T00:00:00Z a line \ufffd\n"
    assert f"follow={str(bool(seconds)).lower()}" in ASKED[0][1]


def test_no_log_yet_and_no_pod(cluster: Cluster):
    assert cluster.log("waiting", "pytorch") == ""
    with pytest.raises(FileNotFoundError, match="log of nobody"):
        cluster.log("nobody", "pytorch")


def test_a_missing_right_is_said_with_both_places_that_give_one(cluster: Cluster):
    with pytest.raises(BadInput, match=r"^deployment/forbidden: .*manifests/base.*workflows/examples/serving"):
        cluster.get("deployment", "forbidden")


def test_of_many_workflows_only_the_metadata_is_asked_for(cluster: Cluster):
    assert cluster.metadata("workflow") == [{"name": "a"}]
    assert "as=PartialObjectMetadataList" in ASKED[0][2]
