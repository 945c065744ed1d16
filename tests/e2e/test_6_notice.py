"""The end of a run is posted to the webhook of the Secret; one that is away changes nothing of the run."""

import hashlib
import hmac
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import Json, Workflow, kubectl, submit
from tests.e2e.harm import tools_container

IN = "notifications"  # as manifests/components/webhook has it
KEY, ADDRESS = "e2e-key", f"http://receiver.{IN}:8080/s3cret"
POLICY = Path(__file__).parents[2] / "manifests/components/webhook/network-policy.yaml"


@pytest.fixture(scope="module")
def receiver() -> Iterator[None]:
    script = Path(__file__).with_name("receiver.py").read_text()
    labels = {"app": "receiver"}
    made = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": IN}},
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "receiver", "namespace": IN, "labels": labels},
            "spec": {"restartPolicy": "Never", "containers": [tools_container("python", "-c", script)]},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "receiver", "namespace": IN},
            "spec": {"selector": labels, "ports": [{"port": 8080}]},
        },
    ]
    secret = {"WEBHOOK_URL": ADDRESS, "WEBHOOK_KEY": KEY}
    try:
        for manifest in made:
            kubectl("apply", "--filename=-", namespace=None, given=json.dumps(manifest))
        kubectl("apply", f"--filename={POLICY}")
        kubectl("create", "secret", "generic", "webhook", *(f"--from-literal={k}={v}" for k, v in secret.items()))
        kubectl("wait", "pod/receiver", "--for=condition=ready", "--timeout=120s", namespace=IN)
        yield
    finally:
        kubectl("delete", "secret", "webhook", "--ignore-not-found")
        kubectl("delete", f"--filename={POLICY}", "--ignore-not-found")
        kubectl("delete", "namespace", IN, "--timeout=120s")


def test_a_webhook_is_told_once_and_signed(receiver: None) -> None:
    refused = submit("told", shards="0")
    assert refused.wait(300) == "Failed"
    (posted,) = (json.loads(line) for line in kubectl("logs", "receiver", namespace=IN).splitlines())
    notice: Json = json.loads(posted["body"])
    assert (notice["workflow"], notice["outcome"]) == (refused.name, "failed") and "shards" in notice["why"]
    signed = hmac.new(KEY.encode(), posted["body"].encode(), hashlib.sha256).hexdigest()
    assert posted["signature"] == f"sha256={signed}"
    _says(refused, "notice sent")


def test_a_webhook_that_is_away_changes_nothing_of_the_run(receiver: None) -> None:
    kubectl("delete", "pod/receiver", "--now", namespace=IN)
    refused = submit("untold", shards="0")
    assert refused.wait(300) == "Failed"
    assert "parameter shards" in refused.message, refused.message
    _says(refused, "no notice was sent: the webhook cannot be reached")


def _says(workflow: Workflow, line: str) -> None:
    """In its pods' logs, which hold neither address nor key."""
    logs = kubectl(
        "logs", f"--selector=workflows.argoproj.io/workflow={workflow.name}", "--container=main", "--tail=-1"
    )
    assert line in logs and "s3cret" not in logs and KEY not in logs, logs
