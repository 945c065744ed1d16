"""A served draft is replaced by the next one that is published: the same tokens before, meanwhile and after."""

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from spec.server import start as serving
from tests.e2e.cluster import (
    BUCKET,
    OVER,
    THERE,
    Workflow,
    bucket,
    copy_drafts,
    copy_run,
    get,
    kubectl,
    submit,
    until,
    url,
)
from tests.e2e.conftest import GOOD, OTHER, OTHER_OPTIONS, make_secret, open_host_path

EXAMPLE = Path(__file__).with_name("serving")
IN = "serving"  # the namespace


@pytest.fixture(scope="module")
def served(good: Workflow) -> Iterator[str]:
    """The version that SGLang serves."""
    assert good.wait(1800) == "Succeeded", good.message
    copy_drafts(GOOD, "served")
    manifests = kubectl("kustomize", str(EXAMPLE), namespace=None).replace(
        f"s3://{BUCKET}/drafts/llama-3.1-8b", url("served", "drafts")
    )
    try:
        kubectl("apply", "--filename=-", given=manifests, namespace=None)
        make_secret(IN)
        until("its volume", lambda: "volumeName" in get("pvc", "models", namespace=IN)["spec"], 120)
        open_host_path(IN)
        kubectl("rollout", "status", "deployment/sglang", "--timeout=290s", namespace=IN)
        yield latest()
    finally:
        kubectl("delete", "namespace", IN, "--timeout=280s")


def test_the_next_draft_is_served_and_every_answer_meanwhile_is_the_same(served: str, other: Workflow) -> None:
    answer = ask()
    other.wait(1800)
    copy_run(OTHER, "served-next", "published")
    place = {"destination": url("served", "drafts"), "serves": f"{IN}/sglang"}
    nowhere = submit("served-nowhere", serves=f"{IN}/sgland")
    following = submit("served-next", train_options=OTHER_OPTIONS, **place)
    meanwhile = []
    until("roll-out…) begins", lambda: following.pods("roll-out(", THERE), 1200, of=following)
    while following.phase not in OVER:
        meanwhile.append(ask())
    assert following.phase == "Succeeded", following.message
    assert nowhere.wait(300) == "Failed" and nowhere.ran() <= {"preflight"}
    assert f"parameter serves: deployment/sgland: not in namespace {IN}" in nowhere.message, nowhere.message
    assert meanwhile and set(meanwhile) == {answer} == {ask()}
    assert latest() != served
    pods = get("pods", "--selector=sgl-spec/server=sglang", namespace=IN)["items"]
    assert [pod["metadata"]["annotations"]["sgl-spec/draft"] for pod in pods] == [latest()]
    held = kubectl("exec", pods[0]["metadata"]["name"], "--", "cat", "/draft/latest/manifest.json", namespace=IN)
    with bucket() as store:
        assert json.loads(held) == json.loads(store.read(f"served/drafts/versions/{latest()}/manifest.json"))


def latest() -> str:
    with bucket() as store:
        return json.loads(store.read("served/drafts/latest"))["version"]


def ask() -> str:
    """A greedy answer of a server that is ready, through a port forwarded for this one request."""
    port = serving.free_port()
    command = ["kubectl", "--namespace", IN, "port-forward", "service/sglang", f"{port}:30000"]
    forward = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert forward.stdout and "Forwarding" in forward.stdout.readline()
        body = {"text": "Tell me of number 7.", "sampling_params": {"temperature": 0, "max_new_tokens": 24}}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)["text"]
    finally:
        forward.terminate()
        forward.wait()
