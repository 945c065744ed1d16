"""What is done to the cluster under a running pipeline: pods taken, the store gone or full, room taken by others."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from kubernetes.utils.quantity import parse_quantity

from tests.e2e.cluster import NAMESPACE, Json, get, kubectl

STORE = "object-store"  # its namespace


def delete(pod: str) -> None:
    kubectl("delete", "pod", "--now", "--wait=false", pod)


def evict(pod: str) -> None:
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": NAMESPACE}}
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction"
    kubectl("create", "--raw", path, "--filename=-", given=json.dumps(body))


@contextmanager
def store_gone() -> Iterator[None]:
    """The store is down, its connections are cut and new ones refused; what it holds is there again afterwards.

    Its pod gets an image that does not exist: a pod made anew would be an empty store.
    """
    pod = _store_pod()
    (container,) = pod["spec"]["containers"]
    name = f"pod/{pod['metadata']['name']}"
    _set_image(pod, container["name"], "localhost/none:1")
    try:
        kubectl("wait", "--for=condition=ready=false", name, "--timeout=60s", namespace=STORE)
        yield
    finally:
        _set_image(pod, container["name"], container["image"])
        kubectl("wait", "--for=condition=ready", name, "--timeout=120s", namespace=STORE)


def _set_image(pod: Json, container: str, image: str) -> None:
    change = {"spec": {"containers": [{"name": container, "image": image}]}}
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    kubectl("patch", "pod", name, "--patch", json.dumps(change), namespace=namespace)


@contextmanager
def store_that_fills() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """New connections to the store lead through a proxy, which takes no more within the block that the call makes."""
    script = Path(__file__).with_name("full_store.py").read_text()
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "full-store", "labels": {"app": "full-store"}},
        "spec": {
            "restartPolicy": "Never",
            "containers": [tools_container("python", "-c", script, _store_pod()["status"]["podIP"])],
        },
    }
    before = get("service", "s3", namespace=STORE)["spec"]["selector"]
    kubectl("apply", "--filename=-", namespace=STORE, given=json.dumps(pod))
    try:
        kubectl("wait", "pod/full-store", "--for=condition=ready", "--timeout=120s", namespace=STORE)
        _lead_to(dict.fromkeys(before) | {"app": "full-store"})
        yield _full
    finally:
        _lead_to({"app": None} | before)
        kubectl("delete", "pod/full-store", "--now", namespace=STORE)


@contextmanager
def _full() -> Iterator[None]:
    kubectl("exec", "full-store", "--", "touch", "/tmp/full", namespace=STORE)
    try:
        yield
    finally:
        kubectl("exec", "full-store", "--", "rm", "/tmp/full", namespace=STORE)


def _lead_to(selector: Json) -> None:
    kubectl("patch", "service", "s3", "--patch", json.dumps({"spec": {"selector": selector}}), namespace=STORE)


def _store_pod() -> Json:
    (pod,) = (pod for pod in get("pods", namespace=STORE)["items"] if pod["metadata"]["name"] != "full-store")
    return pod


def tools_container(*command: str) -> Json:
    """Of the image of the pipeline's small steps."""
    image = get("workflowtemplate", "preflight")["spec"]["templates"][0]["container"]["image"]
    return {"name": "main", "image": image, "imagePullPolicy": "IfNotPresent", "command": list(command)}


@contextmanager
def priority_classes(*wanted: tuple[str, int]) -> Iterator[None]:
    for name, value in wanted:
        found = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}}
        kubectl("apply", "--filename=-", namespace=None, given=json.dumps(found | {"value": value}))
    try:
        yield
    finally:
        kubectl("delete", "priorityclass", *(name for name, _ in wanted), namespace=None)


@contextmanager
def pod_of_priority(priority_class: str, cpu: float) -> Iterator[str]:
    """A pod of namespace `default` that asks for so many CPUs and does nothing with them; its name."""
    container = tools_container("sleep", "600") | {"resources": {"requests": {"cpu": f"{cpu * 1000:.0f}m"}}}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "preempts"},
        "spec": {"priorityClassName": priority_class, "restartPolicy": "Never", "containers": [container]},
    }
    kubectl("apply", "--filename=-", namespace="default", given=json.dumps(pod))
    try:
        yield "preempts"
    finally:
        kubectl("delete", "pod/preempts", "--now", namespace="default")


def free_cpu() -> float:
    """CPUs of the one node that no pod there has asked for."""
    (node,) = get("nodes")["items"]
    pods = json.loads(kubectl("get", "pods", "--all-namespaces", "--output=json", namespace=None))["items"]
    there = [pod["spec"] for pod in pods if pod["status"]["phase"] in ("Pending", "Running")]
    return cpus(node["status"]["allocatable"]["cpu"]) - sum(_asked(spec) for spec in there if "nodeName" in spec)


def _asked(spec: Json) -> float:
    """Of its containers together, or of one that runs before them."""
    of = {
        kind: [cpus(x.get("resources", {}).get("requests", {}).get("cpu", "0")) for x in spec.get(kind) or []]
        for kind in ("containers", "initContainers")
    }
    return max(sum(of["containers"]), *of["initContainers"], 0)


def cpus(quantity: str) -> float:
    return float(parse_quantity(quantity))
