"""The cluster of KUBECONFIG, as an operator has it: kubectl, argo, and the S3 server through a forwarded port."""

import base64
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import boto3

from spec.server import start as serving
from spec.storage import Store, open_store

NAMESPACE = "sgl-spec"
BUCKET = "sgl-spec"
SESSION = f"e2e/{int(time.time())}"  # the runs of these tests; what they begin with is in e2e/ itself
OVER = ("Succeeded", "Failed", "Error")
THERE = ("Pending", "Running")  # phases of a pod
POLL = 2.0  # seconds; every look is a process, on the cores that the cluster may have too
Json = dict[str, Any]
T = TypeVar("T")


def kubectl(*words: str, namespace: str | None = NAMESPACE, given: str | None = None) -> str:
    """With `namespace=None` what is applied names its own."""
    return _run(["kubectl", *(("--namespace", namespace) if namespace else ()), *words], given)


def argo(*words: str) -> str:
    return _run(["argo", "--namespace", NAMESPACE, *words])


def get(*words: str, namespace: str = NAMESPACE) -> Json:
    """`kubectl get WORDS` as JSON."""
    return json.loads(kubectl("get", *words, "--output=json", namespace=namespace))


def _run(command: list[str], given: str | None = None) -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
    return done.stdout


def until(what: str, look: Callable[[], T], seconds: float, of: "Workflow | None" = None) -> T:
    """`look()` as soon as it is true of something; fails after `seconds`, or once the workflow `of` is over."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        if of is not None:
            status = of.status()
            assert status.get("phase") not in OVER, f"{of.name} ended before: {what}: {status.get('message')}"
        time.sleep(POLL)
    return found


@dataclass(frozen=True)
class Workflow:
    name: str
    run: str  # its run's folder among those of this session

    def status(self) -> Json:
        return get("workflow", self.name).get("status") or {}

    @property
    def phase(self) -> str:
        return self.status().get("phase", "")

    @property
    def message(self) -> str:
        return self.status().get("message", "")

    def wait(self, seconds: float) -> str:
        """Its phase at the end."""

        def end() -> str:
            phase = self.phase
            return phase if phase in OVER else ""

        return until(f"{self.name} ends", end, seconds)

    def nodes(self) -> list[Json]:
        return list((self.status().get("nodes") or {}).values())

    def ran(self) -> set[str]:
        """Display names of the steps that had a pod."""
        prefix = f"{self.name}[0].pipeline."  # the exit handler is not of the pipeline
        ran = [node["name"] for node in self.nodes() if node["type"] == "Pod" and node["phase"] != "Omitted"]
        return {re.split(r"[(\[.]", name.removeprefix(prefix))[0] for name in ran if name.startswith(prefix)}

    def pods(self, step: str = "", phases: tuple[str, ...] = ("Running",)) -> dict[str, str]:
        """The running pods of a step, or of all: uid to name, which a pod that is made again may have too."""
        found = get("pods", f"--selector=workflows.argoproj.io/workflow={self.name}")["items"]
        return {
            pod["metadata"]["uid"]: pod["metadata"]["name"]
            for pod in found
            if (not step or f".{step}" in pod["metadata"]["annotations"]["workflows.argoproj.io/node-name"])
            and pod["status"]["phase"] in phases
            and "deletionTimestamp" not in pod["metadata"]
        }

    def said(self, step: str) -> str:
        """What the step's running pods have logged so far."""
        return "".join(kubectl("logs", pod, "--container=main") for pod in self.pods(step).values())

    def replace_pod(self, step: str, seconds: float = 180) -> None:
        """Delete the step's running pod, and wait until another one runs in its place."""
        victims = until(f"{step}…) runs", lambda: self.pods(step), seconds, of=self)
        kubectl("delete", "pod", "--now", *victims.values())
        until(f"another pod for {step}…)", lambda: self.pods(step).keys() - victims, seconds, of=self)

    def kill(self, step: str, how: Callable[[str], object], seconds: float = 900) -> set[str]:
        """Do `how` to the step's pod as soon as it is there: a short step need not live until it runs. Its uid."""
        found = until(f"{step}…) begins", lambda: self.pods(step, THERE), seconds, of=self)
        for pod in found.values():
            how(pod)
        return set(found)

    def ever(self, step: str) -> set[str]:
        """The uids of the step's pods that are still known, ended ones too."""
        return set(self.pods(step, (*THERE, "Succeeded", "Failed")))

    def has_checkpoint(self) -> bool:
        with bucket() as store:
            found = store.at(f"{self.run}/run").list("checkpoints")
        return any(entry.key.endswith("/checkpoint.json") for entry in found)

    def made(self) -> list[str]:
        """Deployments, services and training jobs that it made and that are still there, and their pods."""
        kinds = "deployments,services,pytorchjobs,pods"
        return kubectl("get", kinds, f"--selector=sgl-spec/workflow={self.name}", "--output=name").split()

    def seconds(self) -> dict[str, float]:
        """How long each step took that had a pod, retries included."""
        spans: dict[str, float] = {}
        for node in self.nodes():
            if node["type"] == "Pod" and node.get("finishedAt"):
                step = re.sub(rf"^{self.name}(\[\d\])?\.(pipeline\.)?", "", node["name"]).split("(")[0]
                begun, ended = (datetime.fromisoformat(node[key]) for key in ("startedAt", "finishedAt"))
                spans[step] = spans.get(step, 0) + (ended - begun).total_seconds()
        return spans


def submit(run: str, **parameters: str) -> Workflow:
    """Submit tiny.yaml for a run of this session; `min_accept_length="2"` sets the parameter min-accept-length."""
    chosen = {"run": url(run, "run"), "destination": url(run, "drafts")}
    chosen |= {name.replace("_", "-"): value for name, value in parameters.items()}
    words = [word for name, value in chosen.items() for word in ("--parameter", f"{name}={value}")]
    file = str(Path(__file__).with_name("tiny.yaml"))
    name = argo("submit", file, "--output=name", "--generate-name", f"e2e-{run}-", *words)
    return Workflow(name.strip().removeprefix("workflow.argoproj.io/"), run)


def start(template: str, **parameters: str) -> Workflow:
    """Submit one step by itself, from its WorkflowTemplate."""
    words = [
        word for name, value in parameters.items() for word in ("--parameter", f"{name.replace('_', '-')}={value}")
    ]
    name = argo("submit", f"--from=workflowtemplate/{template}", "--output=name", "--labels=sgl-spec/e2e=true", *words)
    return Workflow(name.strip().removeprefix("workflow.argoproj.io/"), template)


def copy_run(source: str, to: str, *without: str) -> None:
    """A run of this session as if it had been made apart, without what lies in the folders `without`."""
    _copy(f"{source}/run", f"{to}/run", without)


def copy_drafts(source: str, to: str) -> None:
    """What a run of this session has published, as if it were another's."""
    _copy(f"{source}/drafts", f"{to}/drafts")


def _copy(source: str, to: str, without: tuple[str, ...] = ()) -> None:
    with bucket() as store:
        for entry in store.at(source).list():
            if entry.key.partition("/")[0] not in without:
                store.write(f"{to}/{entry.key}", store.read(f"{source}/{entry.key}"))


def sweep() -> None:
    """Run the CronJob `sweep` now, to its end."""
    name = f"sweep-{time.monotonic_ns()}"
    kubectl("create", "job", "--from=cronjob/sweep", name)
    kubectl("wait", "--for=condition=complete", f"job/{name}", "--timeout=180s")


@contextmanager
def setting(**changed: str) -> Iterator[None]:
    """The ConfigMap `settings` with other values; `trainer_memory="1Gi"` sets trainer-memory."""
    values = {name.replace("_", "-"): value for name, value in changed.items()}
    before = {name: get("configmap", "settings")["data"][name] for name in values}
    kubectl("patch", "configmap", "settings", "--patch", json.dumps({"data": values}))
    try:
        yield
    finally:
        kubectl("patch", "configmap", "settings", "--patch", json.dumps({"data": before}))


def url(run: str, part: str) -> str:
    return f"s3://{BUCKET}/{SESSION}/{run}/{part}"


def credentials() -> dict[str, str]:
    data = get("secret", "s3", namespace="object-store")["data"]
    return {name: base64.b64decode(value).decode() for name, value in data.items()}


@contextmanager
def bucket(prefix: str = SESSION) -> Iterator[Store]:
    """The cluster's s3://sgl-spec/PREFIX, through a port forwarded for as long as the block."""
    port = serving.free_port()
    command = ["kubectl", "--namespace", "object-store", "port-forward", "service/s3", f"{port}:7070"]
    forward = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert forward.stdout and "Forwarding" in forward.stdout.readline()
    settings = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_REGION": "us-east-1", **credentials()}
    os.environ.update(settings)
    try:
        yield open_store(f"s3://{BUCKET}/{prefix}")
    finally:
        forward.terminate()
        forward.wait()


def make_bucket() -> None:
    client = boto3.client("s3")
    if BUCKET not in {found["Name"] for found in client.list_buckets()["Buckets"]}:
        client.create_bucket(Bucket=BUCKET)
